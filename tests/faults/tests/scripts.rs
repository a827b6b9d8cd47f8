//! Every script of `scripts/`, one test each, named like its file.

use std::{collections::BTreeSet, fs};

use valkyrie_faults::{evil, script};

macro_rules! scripts {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                evil::run(stringify!($name)).await;
            }
        )*
    };
}

scripts! {
    f01_server_wrong_magic
    f01_wrong_magic
    f02_server_unknown_version
    f02_unknown_version
    f02_version_in_the_header
    f03_header_checksum
    f04_payload_checksum
    f04_server_payload_checksum
    f05_metadata_length
    f05_payload_length
    f05_server_payload_length
    f06_silence_inside_a_frame
    f06_silence_inside_a_message
    f07_end_inside_a_frame
    f07_server_end_inside_a_frame
    f08_optional_frame
    f08_unknown_frame
    f09_reserved_byte
    f09_reserved_flag
    f12_compression_that_nobody_offered
    f10_metadata_bomb
    f11_metadata_with_a_nul
    f11_method_that_is_not_utf8
    f11_method_with_a_line_break
    f15_call_ahead_of_its_credentials
    f15_frames_for_a_stream_that_is_gone
    f15_message_after_the_half_close
    f15_message_on_a_stream_that_never_was
    f15_server_accepts_what_nobody_sent
    f15_server_answers_nobody
    f15_status_from_the_caller
    f16_server_opens_a_stream
    f16_stream_beyond_the_last
    f16_stream_of_the_other_side
    f16_stream_used_twice
    f17_rapid_reset
    f17_rapid_reset_starts_few_handlers
    f18_credit_past_its_end
    f18_deadlines_of_a_microsecond
    f18_made_you_reset
    f18_made_you_reset_keeps_the_permits
    f19_stream_flood
    f19_streams_beyond_the_limit
    f20_empty_fragments
    f20_empty_messages_unread
    f20_fragments_of_16_bytes
    f20_frames_that_say_nothing
    f20_server_empty_fragments
    f21_auth_flood
    f21_goaway_flood
    f21_hello_again
    f21_ping_flood
    f21_ping_flood_unread
    f21_pong_flood
    f21_server_ping_flood
    f22_credit_in_crumbs
    f22_more_than_the_credit
    f22_no_credit_ever
    f22_server_overflows_the_credit
    f23_metadata_over_the_limit
    f23_server_heads_without_end
    f23_too_many_entries
    f25_deadlines_at_the_edges
    f27_slow_frame
    f40_fragmented_control
    f40_half_a_frame
    f40_length_of_64_bits
    f40_ping_flood
    f40_text
    f40_unmasked
    f40_wrong_origin
}

#[test]
fn every_script_has_its_test_and_every_name_its_number() {
    let files = fs::read_dir(script::folder()).unwrap().map(|file| file.unwrap().path());
    let names: BTreeSet<_> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names.iter().map(String::as_str).collect::<BTreeSet<_>>(), NAMES.iter().copied().collect());
    for name in names {
        let number: u32 = script::Script::read(&name).fault[1..].parse().unwrap();
        assert!(name.starts_with(&format!("f{number:02}_")), "{name} is of F{number}");
    }
}
