//! The audit: what is done to its file is found, and what happens to its device is survived.
#![cfg(feature = "access")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use valkyrie_sdk::{
    Principal, Reason, Refusal, Time,
    access::{Access, Audit, AuditBuilder, AuditVerifier, Policy},
};

/// A file in a folder of this test's own.
fn file(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("audit-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder.join("audit.log")
}

fn access(audit: AuditBuilder) -> Access {
    let policy =
        "version = 1\n[roles.some]\nallow = ['/a']\n[[bindings]]\nprincipals = ['sub:*']\nroles = ['some']\n";
    Access::new(Policy::from_toml(policy).unwrap()).with_audit(audit.open().unwrap())
}

fn call(access: &Access, principal: &str, method: &str) -> Result<(), valkyrie_sdk::Status> {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_000_000_123_456);
    access.admit(&Principal::new(principal), method, "tcp://192.0.2.1:5", 7, Time::default(), wall)
}

fn flush(access: &Access) -> (u64, String) {
    assert!(access.audit().unwrap().flush(), "{:?}", access.audit());
    access.audit().unwrap().last()
}

/// What is wrong with these lines, with their numbers.
fn wrong(mut verifier: AuditVerifier, lines: &[u8]) -> Vec<(u64, String)> {
    let mut wrong = Vec::new();
    verifier.file(lines, |line, what| wrong.push((line, what))).unwrap();
    wrong
}

#[track_caller]
fn intact(path: &Path) -> Vec<Value> {
    let text = fs::read(path).unwrap();
    assert_eq!(wrong(AuditVerifier::new(), &text), [], "{}", String::from_utf8_lossy(&text));
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Fifty records.
fn fifty(name: &str) -> Vec<u8> {
    let path = file(name);
    let access = access(Audit::builder(&path));
    for number in 1..50 {
        let _ = call(&access, &format!("sub:{number}"), if number % 2 == 0 { "/a" } else { "/b" });
    }
    flush(&access);
    assert_eq!(intact(&path).len(), 50);
    fs::read(path).unwrap()
}

#[test]
fn each_decision_is_a_record_with_all_that_decided_it() {
    let path = file("records");
    let access = access(Audit::builder(&path));
    call(&access, "sub:a", "/a").unwrap();
    call(&access, "anonymous", "/a").unwrap_err();
    let (peer, wall) = ("tcp://192.0.2.1:5", SystemTime::UNIX_EPOCH);
    access.authenticated(Ok(&Principal::new("sub:a")), peer, 7, wall).unwrap();
    access.authenticated(Err(&Refusal("the token has expired".into())), peer, 7, wall).unwrap();
    let (seq, last) = flush(&access);
    let records = intact(&path);
    assert_eq!((seq, records[4]["hash"].as_str()), (5, Some(last.as_str())));
    let version = access.policy().rules().version().to_owned();
    let expected = serde_json::json!({
        "seq": 2, "time": "2026-11-18T11:06:40.123456Z",
        "event": "call", "outcome": "allowed", "connection": 7, "peer": "tcp://192.0.2.1:5", "principal": "sub:a",
        "method": "/a", "policy": version, "rule": "role some: allow /a",
        "prev": records[0]["hash"], "hash": records[1]["hash"],
    });
    assert_eq!(records[1], expected);
    let said =
        |record: &Value, keys: &[&str]| keys.iter().map(|key| record[key].to_string()).collect::<String>();
    assert_eq!(
        said(&records[2], &["outcome", "principal", "rule"]),
        "\"denied\"\"anonymous\"\"no rule allows it\""
    );
    assert_eq!(said(&records[3], &["event", "outcome", "principal"]), "\"credentials\"\"accepted\"\"sub:a\"");
    assert_eq!(
        said(&records[4], &["outcome", "message", "time"]),
        "\"refused\"\"the token has expired\"\"1970-01-01T00:00:00.000000Z\""
    );
}

/// What was written once stays verifiable: the line is a format.
#[test]
fn a_log_that_was_written_before_is_intact() {
    let mut verifier = AuditVerifier::new();
    let lines = verifier.file(&include_bytes!("audit.jsonl")[..], |line, what| panic!("{line} {what}"));
    assert_eq!(lines.unwrap(), 8);
    let last = "27b747feeafd9ce91db8f6fb44d54ec707af512a5f57b95898cc3f071cfa7fae";
    assert_eq!(verifier.last(), (8, last));
}

#[test]
fn times_are_dates() {
    let path = file("times");
    let access = access(Audit::builder(&path));
    let times = [
        (68_169_600, "1972-02-29T00:00:00"),
        (951_782_399, "2000-02-28T23:59:59"),
        (951_782_400, "2000-02-29T00:00:00"),
        (951_868_800, "2000-03-01T00:00:00"),
        (1_795_000_000, "2026-11-18T11:06:40"),
        (4_107_542_399, "2100-02-28T23:59:59"),
        (4_107_542_400, "2100-03-01T00:00:00"),
        (253_402_300_799, "9999-12-31T23:59:59"),
    ];
    for (seconds, _) in times {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        access.authenticated(Ok(&Principal::anonymous()), "", 1, wall).unwrap();
    }
    flush(&access);
    let expected: Vec<_> = times.iter().map(|(_, text)| Value::from(format!("{text}.000000Z"))).collect();
    let found: Vec<_> = intact(&path)[1..].iter().map(|record| record["time"].clone()).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_bit_that_flips_is_found() {
    let text = fifty("bits");
    let starts: Vec<usize> = std::iter::once(0)
        .chain(text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1))
        .collect();
    let (mut before, mut flips) = (AuditVerifier::new(), 0);
    for (line, bounds) in starts.windows(2).enumerate() {
        // What comes before a flip is as it was, so it is enough to begin at its line; and to see the two after it.
        let end = starts[(line + 3).min(starts.len() - 1)];
        for at in bounds[0]..bounds[1] {
            for bit in 0..8 {
                let mut part = text[bounds[0]..end].to_vec();
                part[at - bounds[0]] ^= 1 << bit;
                let wrong = wrong(before.clone(), &part);
                assert!(!wrong.is_empty(), "line {}, byte {}, bit {bit}", line + 1, at - bounds[0]);
                assert_eq!(wrong[0].0, 1, "{wrong:?}");
                flips += 1;
            }
        }
        before.line(&text[bounds[0]..bounds[1] - 1]).unwrap();
    }
    assert_eq!(flips, text.len() * 8);
}

#[test]
fn lines_that_are_missing_moved_repeated_or_added_are_found_and_named() {
    let text = fifty("lines");
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let said = |lines: &[&[u8]]| wrong(AuditVerifier::new(), &lines.concat());
    for at in 0..50 {
        let line = at as u64 + 1;
        let mut removed = lines.clone();
        removed.remove(at);
        match at {
            // The end alone is not to be seen in what is left.
            49 => assert_eq!(said(&removed), []),
            _ => assert_eq!(said(&removed), [(line, format!("follows a missing line, number {line}"))]),
        }
        let mut repeated = lines.clone();
        repeated.insert(at, lines[at]);
        assert_eq!(said(&repeated), [(line + 1, "repeats the line before it".into())]);
        for to in 0..50 {
            let mut swapped = lines.clone();
            swapped.swap(at, to);
            let wrong = said(&swapped);
            assert_eq!(wrong.is_empty(), at == to);
            assert!(
                wrong.iter().all(|(_, what)| what.contains("missing") || what.contains("out of its place"))
            );
        }
        let mut torn = lines.clone();
        let half = &lines[at][..lines[at].len() / 2];
        torn[at] = half;
        assert_eq!(said(&torn)[0].0, line);
        torn.truncate(at + 1);
        assert_eq!(said(&torn), [(line, "is not finished".into())]);
        let mut added = lines.clone();
        added.insert(at, b"{\"seq\":1}\n");
        assert_eq!(said(&added)[0], (line, "is not a record".into()));
    }
    let others = fifty("others");
    let mixed: Vec<&[u8]> =
        [&lines[..20], &others.split_inclusive(|byte| *byte == b'\n').collect::<Vec<_>>()[20..]].concat();
    // Made at another time, from the first line on.
    assert_eq!(said(&mixed), [(21, "does not follow the line before it: that has another hash".into())]);
    let long = [&b"x".repeat(200_000)[..], b"\n"].concat();
    let wrong = said(&[lines[0], &long, lines[1]]);
    assert_eq!(wrong, [(2, "is not a record: it is longer than 65536 bytes".into())]);
}

#[test]
fn a_key_is_needed_to_verify_and_to_go_on() {
    let path = file("key");
    let keyed = || Audit::builder(&path).key(b"a key of thirty-two bytes, or so");
    drop(access(keyed()));
    call(&access(keyed()), "sub:a", "/a").unwrap();
    let text = fs::read(&path).unwrap();
    let with = |key: &[u8]| wrong(AuditVerifier::new().with_key(key), &text).len();
    assert_eq!((with(b"a key of thirty-two bytes, or so"), with(b"another")), (0, 3));
    assert_eq!(wrong(AuditVerifier::new(), &text).len(), 3);
    assert!(Audit::builder(&path).open().is_err());
}

#[test]
fn text_from_outside_is_printable_and_has_a_bound() {
    let path = file("text");
    let access = access(Audit::builder(&path));
    let nasty = "sub:\n{\"seq\":9}\r\u{1b}[2J\"\\\u{202e}é\u{1f600}\u{0}";
    let _ = call(&access, nasty, "/\u{85}");
    let _ = call(&access, &"é".repeat(10_000), "/a");
    flush(&access);
    let text = fs::read(&path).unwrap();
    assert!(text.iter().all(|byte| *byte == b'\n' || (b' '..=b'~').contains(byte)));
    let records = intact(&path);
    assert_eq!((records.len(), &records[1]["principal"]), (3, &Value::from(nasty)));
    let long = records[2]["principal"].as_str().unwrap();
    assert_eq!(long, format!("{} ... and 18976 bytes", "é".repeat(512)));
}

#[test]
fn a_restart_goes_on_with_the_chain() {
    let path = file("restart");
    for _ in 0..3 {
        let access = access(Audit::builder(&path));
        call(&access, "sub:a", "/a").unwrap();
    }
    let records = intact(&path);
    let events: Vec<_> = records.iter().map(|record| record["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["open", "call", "open", "call", "open", "call"]);

    // Killed in the middle of a line: it is recorded, not dropped, and the chain goes on from the last whole one.
    let text = fs::read(&path).unwrap();
    let last = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for end in [last + 1, last + 40, text.len() - 1] {
        fs::write(&path, &text[..end]).unwrap();
        drop(access(Audit::builder(&path)));
        let records = intact(&path);
        assert_eq!((records.len(), records[6]["event"].as_str()), (7, Some("torn")), "{end}");
        let torn = String::from_utf8_lossy(&text[last..end]);
        assert_eq!(
            (&records[6]["message"], &records[6]["lost"]),
            (&Value::from(torn), &Value::from(end - last))
        );
    }
    fs::write(&path, &text[..last / 3]).unwrap();
    drop(access(Audit::builder(&path)));
    intact(&path);
    // Nothing but half of a line.
    fs::write(&path, &text[..9]).unwrap();
    drop(access(Audit::builder(&path)));
    assert_eq!(intact(&path).len(), 2);
}

#[test]
fn what_is_not_its_own_file_is_refused() {
    let path = file("refused");
    let said = || Audit::builder(&path).open().map(drop).unwrap_err().message().to_owned();
    let standing = access(Audit::builder(&path));
    assert!(said().ends_with("another process writes it"), "{}", said());
    drop(standing);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("opened", "0pened")).unwrap();
    assert!(said().ends_with("does not match its hash; run `valkyrie audit verify`"), "{}", said());
    fs::write(&path, "127.0.0.1 - - GET /\n").unwrap();
    assert!(said().contains("is not a record"), "{}", said());
    fs::write(&path, "x".repeat(1 << 20)).unwrap();
    assert!(said().contains("is not an audit log"), "{}", said());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(said().ends_with("is not a file"), "{}", said());
    let absent = Audit::builder(path.join("no/folder")).open().map(drop).unwrap_err();
    assert_eq!(absent.reason(), Reason::INVALID_CONFIGURATION);
    assert!(Audit::builder(path.join("x")).queue(0).open().is_err());
}

#[test]
fn a_file_that_is_full_is_set_aside_and_the_chain_goes_on() {
    let path = file("aside");
    let small = || Audit::builder(&path).max_file_bytes(2_000).sync();
    for _ in 0..3 {
        let access = access(small());
        for number in 0..20 {
            let _ = call(&access, &format!("sub:{number}"), "/a");
            flush(&access);
        }
    }
    let files = || {
        let mut files: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The one that is written is the last of them.
        files.sort();
        files.rotate_left(1);
        files
    };
    let check = |files: &[PathBuf]| {
        let (mut verifier, mut lines) = (AuditVerifier::new(), 0);
        for file in files {
            let text = fs::read(file).unwrap();
            assert!(text.len() <= 2_000 && text.ends_with(b"\n"));
            lines +=
                verifier.file(&text[..], |line, what| panic!("{}:{line} {what}", file.display())).unwrap();
        }
        (lines, verifier.last().0)
    };
    let all = files();
    assert!(all.len() > 10, "{all:?}");
    assert_eq!(check(&all), (63, 63));
    // Without one of them, from a later one on, and the end cut off.
    let mut found = 0;
    let mut verifier = AuditVerifier::new();
    for file in [&all[..3], &all[4..]].concat() {
        verifier
            .file(&fs::read(file).unwrap()[..], |line, what| {
                found += usize::from(line == 1 && what.contains("missing"))
            })
            .unwrap();
    }
    assert_eq!(found, 1);
    let first: Value =
        serde_json::from_slice(fs::read(&all[4]).unwrap().split(|b| *b == b'\n').next().unwrap()).unwrap();
    let rest = fs::read(&all[4]).unwrap();
    assert_eq!(wrong(AuditVerifier::new().following(first["prev"].as_str().unwrap()), &rest), []);
    assert_eq!(wrong(AuditVerifier::new().following(&"0".repeat(64)), &rest)[0].0, 1);
    // Ended between setting one aside and making the next: it goes on from the one that was set aside.
    let mut next = path.clone().into_os_string();
    next.push(format!(".{:020}", 63));
    fs::rename(&path, next).unwrap();
    drop(access(small()));
    assert_eq!(check(&files()), (64, 64));
}

/// A device that is full: this test runs itself once more, in a process that may write files of 16 KiB, and that takes the
/// limit away later.
#[cfg(target_os = "linux")]
#[test]
fn a_full_device_loses_or_refuses_as_told_and_tears_nothing() {
    use std::process::Command;

    const ROLE: &str = "VALKYRIE_TEST_FULL_DEVICE";
    if std::env::var_os(ROLE).is_none() {
        let name = "a_full_device_loses_or_refuses_as_told_and_tears_nothing";
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec prlimit --fsize=16384: \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let limit = |fsize: &str| {
        let pid = std::process::id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, fsize]).status().unwrap();
        assert!(status.success());
    };
    let whole = |path: &Path| {
        let text = fs::read(path).unwrap();
        // An attempt may be under way, whose beginning is then there and will be taken back.
        let end = text.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(wrong(AuditVerifier::new(), &text[..end]), []);
    };
    for closed in [false, true] {
        limit("--fsize=16384:");
        let path = file(if closed { "full-closed" } else { "full-open" });
        let builder = Audit::builder(&path).queue(8);
        let access = access(if closed { builder.fail_closed() } else { builder });
        let audit = access.audit().unwrap();
        let (mut calls, mut refused) = (0, 0);
        while if closed { refused < 20 } else { audit.stats().lost < 20 || audit.stats().failing.is_none() } {
            match call(&access, "sub:a", "/a") {
                Ok(()) => calls += 1,
                Err(status) => {
                    assert!(
                        closed && status.reason() == Reason::STREAM_REFUSED && status.is_retryable(),
                        "{status}"
                    );
                    assert!(status.message().contains("audit"), "{status}");
                    refused += u64::from(audit.stats().failing.is_some());
                }
            }
        }
        let stats = audit.stats();
        assert!(stats.failures > 0 && stats.failing.is_some(), "{stats:?}");
        assert!(!audit.flush());
        whole(&path);
        limit("--fsize=unlimited:");
        while !audit.flush() {
            std::thread::yield_now();
        }
        call(&access, "sub:b", "/a").unwrap();
        flush(&access);
        let records = intact(&path);
        let count = |event: &str| records.iter().filter(|record| record["event"] == event).count() as u64;
        let lost: u64 = records.iter().filter_map(|record| record["lost"].as_u64()).sum();
        assert_eq!(count("call") + lost, calls + 1);
        assert_eq!((lost, count("gap") > 0), (audit.stats().lost, !closed));
        assert_eq!(records.last().unwrap()["principal"], "sub:b");
        assert_eq!(audit.stats().failing, None);
        assert_eq!(audit.stats().refused > 0, closed);
    }
}
