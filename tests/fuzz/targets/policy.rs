//! Any text as a policy: it is refused in a sentence, or it decides as a plain reading of the same text does, and without
//! allocating. The first byte chooses the format, TOML or JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use valkyrie_fuzz::measure;
use valkyrie_sdk::{Principal, access::Policy};

/// The longest file tried, and the most memory that reading one may take.
const LONGEST: usize = 4 << 10;
const MOST: usize = 8 << 20;
/// How many of a text's strings are tried as methods, each for as many as principals.
const TRIED: usize = 12;

fuzz_target!(|input: &[u8]| {
    let Some((format, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(&text[..text.len().min(LONGEST)]) else { return };
    let json = format % 2 == 1;
    let read = || if json { Policy::from_json(text) } else { Policy::from_toml(text) };
    let usage = measure(|| drop(read()));
    assert!(usage.peak <= MOST, "{usage:?} for {} bytes", text.len());
    let policy = match read() {
        Ok(policy) => policy,
        Err(status) => {
            // `policy:LINE: key: sentence`
            let line = status.message().split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
            assert!(line.is_none_or(|line| line <= 2 + text.matches('\n').count()), "{status} of {text:?}");
            return;
        }
    };
    let rules = policy.rules();
    assert_eq!(rules.version().len(), 32);
    let plain: Option<Value> = json.then(|| serde_json::from_str(text).expect("it was read before"));
    let strings = || text.split(['"', '\'']).skip(1).step_by(2).take(TRIED);
    for principal in strings().chain(["anonymous", "sub:a"]) {
        let principal = Principal::new(principal).with_roles(strings().map(str::to_owned));
        for method in strings().chain(["/valkyrie.Health/Check", "/a/b"]) {
            for method in [method, method.trim_end_matches('*'), &method.replace('*', "x/y")] {
                let mut allowed = false;
                let usage = measure(|| allowed = rules.decide(&principal, method).allowed);
                assert_eq!(usage.largest, 0, "{usage:?}");
                if let Some(plain) = &plain {
                    assert_eq!(
                        allowed,
                        plainly(plain, &principal, method),
                        "{principal:?} {method:?} {text}"
                    );
                }
            }
        }
    }
});

/// What a policy says of a call, read in the plainest way.
fn plainly(policy: &Value, principal: &Principal, method: &str) -> bool {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let matches = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.len() > start.len() && text.starts_with(start),
        None => text == pattern,
    };
    let path = method.strip_prefix('/').unwrap_or("");
    let canonical = path.split('/').all(|part| !part.is_empty() && !part.ends_with('.'))
        && method.len() <= 512
        && method.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%' && byte != b'\\');
    let mut roles = Vec::new();
    for binding in policy["bindings"].as_array().into_iter().flatten() {
        if strings(&binding["principals"]).iter().any(|pattern| matches(pattern, principal.id())) {
            roles.extend(strings(&binding["roles"]));
        }
    }
    for role in principal.roles() {
        roles.extend(strings(&policy["credential_roles"][role]));
    }
    let says = |word: &str| {
        let rules = roles.iter().flat_map(|role| strings(&policy["roles"][role][word]));
        rules.into_iter().any(|rule| matches(&rule, method))
    };
    canonical && !says("deny") && (says("allow") || method.starts_with("/valkyrie.Health/"))
}
