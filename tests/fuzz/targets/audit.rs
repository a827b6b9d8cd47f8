//! Any bytes as an audit log, and any change to one that is as it was written: it is found, unless whole lines were cut off
//! the end. The first byte chooses; the others are a log, or changes of four bytes each: what, where, and with what.
#![no_main]

use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::measure;
use valkyrie_sdk::access::AuditVerifier;

/// A log as it was written.
const LOG: &[u8] = include_bytes!("../../../core/sdk/tests/audit.jsonl");
/// The most memory that verifying may take: a line of 64 KiB, twice, and what JSON makes of it.
const MOST: usize = 512 << 10;

fn is_intact(log: &[u8]) -> bool {
    let (mut intact, lines) = (true, log.split_inclusive(|byte| *byte == b'\n').count() as u64);
    let usage = measure(|| {
        let mut verifier = AuditVerifier::new();
        let count = verifier.file(log, |line, what| {
            assert!(line <= lines && !what.is_empty());
            intact = false;
        });
        assert_eq!(count.expect("bytes can be read"), lines);
    });
    assert!(usage.peak <= MOST, "{usage:?}");
    intact
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    if choice % 4 == 0 {
        is_intact(input);
        return;
    }
    let mut log = LOG.to_vec();
    for change in input.chunks_exact(4).take(8) {
        if log.is_empty() {
            break;
        }
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % log.len();
        let lines: Vec<Vec<u8>> = log.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let (from, to) = (at % lines.len(), usize::from(change[3]) % lines.len());
        let mut moved = lines.clone();
        match change[0] % 7 {
            0 => log[at] ^= change[3],
            1 => drop(log.remove(at)),
            2 => log.insert(at, change[3]),
            3 => log.truncate(at),
            4 => {
                moved.remove(from);
                log = moved.concat();
            }
            5 => {
                moved.swap(from, to);
                log = moved.concat();
            }
            _ => {
                moved.insert(to, lines[from].clone());
                log = moved.concat();
            }
        }
    }
    let cut = LOG.starts_with(&log) && (log.is_empty() || log.ends_with(b"\n"));
    assert_eq!(is_intact(&log), cut, "{}", String::from_utf8_lossy(&log));
});
