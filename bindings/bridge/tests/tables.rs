//! The tables of codes, classes and reasons that each language's package has by hand are the core's.

use std::{collections::BTreeSet, fs, path::Path};

use valkyrie_bridge::{Class, Code, Reason};

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// What stands between the first of one and the next of the other.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, text) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    text.split_once(to).unwrap_or_else(|| panic!("no {to} after {from}")).0
}

fn codes() -> Vec<(String, u32)> {
    Code::ALL.iter().map(|code| (code.name().to_owned(), code.number())).collect()
}

/// The hundreds of a reason's number give the class, so these are all.
fn classes() -> Vec<&'static str> {
    let mut classes: Vec<_> = (0..=9).map(|hundreds| Reason::from_number(hundreds * 100).class()).collect();
    classes.dedup();
    assert_eq!((classes[0], classes.len()), (Class::Application, 6));
    classes.into_iter().map(Class::name).collect()
}

/// What stands in single or double quotes and is written as codes and reasons are.
fn quoted_names(text: &str) -> BTreeSet<&str> {
    let is_name = |word: &&str| {
        word.len() > 1
            && word.starts_with(|first: char| first.is_ascii_uppercase())
            && word.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
    };
    text.split(['\'', '"', '`']).filter(is_name).collect()
}

/// What stands between pairs of `quote`, in order.
fn quoted(text: &str, quote: char) -> Vec<&str> {
    let parts: Vec<_> = text.split(quote).collect();
    parts.chunks_exact(2).map(|pair| pair[1]).collect()
}

/// `UPPER_CASE` as a class is named.
fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_owned() + &word[1..].to_ascii_lowercase();
    name.split('_').map(word).collect()
}

#[test]
fn pythons_codes_and_classes_are_the_cores() {
    let text = source("python/valkyrie/_errors.py");
    let entries = |text: &str, separator: &str| -> Vec<(String, String)> {
        let split = |line: &str| {
            line.trim().trim_end_matches(',').split_once(separator).map(|(a, b)| (a.into(), b.into()))
        };
        text.lines().filter_map(split).collect()
    };
    let numbers = entries(between(&text, "class Code(enum.IntEnum):", "\n\n\nclass "), " = ");
    let numbers: Vec<(String, u32)> =
        numbers.into_iter().map(|(name, number)| (name, number.parse().unwrap())).collect();
    assert_eq!(numbers, codes());

    let made = entries(between(&text, "_CLASSES: dict[int, type[StatusError]] = {", "\n}"), ": ");
    let failures = codes().into_iter().filter(|(_, number)| *number != 0);
    let wanted: Vec<_> = failures.map(|(name, number)| (number.to_string(), camel(&name))).collect();
    assert_eq!(made, wanted);
    for (_, class) in &made {
        assert!(text.contains(&format!("\nclass {class}(StatusError")), "{class}");
    }
    let exported = source("python/valkyrie/__init__.py");
    for (_, class) in made {
        assert!(exported.contains(&format!("    \"{class}\",\n")), "{class} is not exported");
    }
}

#[test]
fn javascripts_codes_and_classes_are_the_cores() {
    for folder in ["node", "wasm"] {
        let text = source(&format!("{folder}/index.d.ts"));
        let names = quoted(between(&text, "export type CodeName =", ";"), '\'');
        assert_eq!(names, Code::ALL.iter().map(|code| code.name()).collect::<Vec<_>>());
        assert_eq!(quoted(between(&text, "export type ErrorClass =", ";"), '\''), classes());
    }
    // The one status that the page's side makes by itself.
    let text = source("wasm/index.js");
    let (code, reason) = (Code::Internal, Reason::INTERNAL);
    let facts = format!(
        "code: '{}', number: {}, reason: '{}', class: '{}'",
        code.name(),
        code.number(),
        reason.name(),
        reason.class().name()
    );
    assert!(text.contains(&facts), "{facts}");
    assert_eq!(reason.code(), code);
}

#[test]
fn cs_codes_and_classes_are_the_cores() {
    let text = source("c/include/valkyrie/valkyrie.h");
    let defined: Vec<(String, u32)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#define VALKYRIE_CODE_")?.split_once(' '))
        .map(|(name, number)| (name.to_owned(), number.parse().unwrap()))
        .collect();
    assert_eq!(defined, codes());
    assert_eq!(quoted(between(&text, "Whose fault it is: ", ";"), '"'), classes());
}

#[test]
fn no_package_names_a_code_or_reason_that_the_core_has_not() {
    let known: BTreeSet<_> = Code::ALL
        .iter()
        .map(|code| code.name())
        .chain(Reason::ALL.iter().map(|reason| reason.name()))
        .collect();
    for file in [
        "python/valkyrie/__init__.py",
        "python/valkyrie/_aio.py",
        "python/valkyrie/_client.py",
        "python/valkyrie/_errors.py",
        "python/valkyrie/sync.py",
        "node/index.js",
        "node/index.d.ts",
        "wasm/index.js",
        "wasm/index.d.ts",
        "wasm/layout.js",
        "c/include/valkyrie/valkyrie.h",
    ] {
        let text = source(file);
        // What is written so and is no code.
        let others =
            BTreeSet::from(["WARNING", "INFO", "DEBUG", "NULL", "PRIVATE", "SHUTDOWN", "TYPE_CHECKING"]);
        let strange: Vec<_> = quoted_names(&text)
            .into_iter()
            .filter(|name| !known.contains(name) && !others.contains(name))
            .collect();
        assert!(strange.is_empty(), "{file}: {strange:?}");
    }
}
