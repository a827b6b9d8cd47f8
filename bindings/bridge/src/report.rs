//! A client's breakers as JSON, which every host reads: a list of objects in the order of the core's.
//!
//! Nothing in here is of this crate: the browser's part, which has no threads and so no bridge, includes this file.

use std::{
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use valkyrie_sdk::BreakerInfo;

/// `[{"server":…,"method":…,"state":…,"age_ms":…,"opens_for_ms":…,"calls":…,"failures":…,"changes":…}]`; what there is not is null.
pub(crate) fn breakers(breakers: &[BreakerInfo]) -> String {
    let mut out = String::from("[");
    for breaker in breakers {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str("{\"server\":");
        text(&mut out, &breaker.server);
        out.push_str(",\"method\":");
        match &breaker.method {
            Some(method) => text(&mut out, method),
            None => out.push_str("null"),
        }
        out.push_str(",\"state\":");
        text(&mut out, breaker.state.name());
        milliseconds(&mut out, "age_ms", breaker.age);
        milliseconds(&mut out, "opens_for_ms", breaker.opens_for);
        let counts = [("calls", breaker.calls), ("failures", breaker.failures), ("changes", breaker.changes)];
        for (key, count) in counts {
            // A string takes whatever is written.
            let _ = write!(out, ",\"{key}\":{count}");
        }
        out.push('}');
    }
    out.push(']');
    out
}

/// A number that stands for them, and for others once one has changed; one that never changed is like none. It is not 0, and every
/// host has it exactly: less than 2^53.
pub(crate) fn mark(breakers: &[BreakerInfo]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for BreakerInfo { server, method, state, changes, .. } in breakers.iter().filter(|one| one.changes > 0) {
        (server, method, state.name(), changes).hash(&mut hasher);
    }
    hasher.finish() >> 11 | 1
}

fn milliseconds(out: &mut String, key: &str, time: Option<Duration>) {
    let _ = match time {
        Some(time) => write!(out, ",\"{key}\":{}", u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        None => write!(out, ",\"{key}\":null"),
    };
}

/// A string, whatever is in it.
fn text(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                out.push('\\');
                out.push(letter);
            }
            '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_json_whatever_is_in_it() {
        let mut out = String::new();
        text(&mut out, "/a\"b\\c\n\u{e4}");
        assert_eq!(out, "\"/a\\\"b\\\\c\\u000a\u{e4}\"");
        assert_eq!(breakers(&[]), "[]");
    }
}
