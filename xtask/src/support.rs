//! `tests/conformance/SUPPORT.md`: every feature in every language. It is made from `features.json` beside it, which says
//! by which items of its API a language has a feature, or why it has not, and which conformance cases prove it. What an
//! API has and the description lacks fails, as does the reverse: a feature reaches every language or has a written reason.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::conformance::{CASES, columns};
use crate::package::read_json;
use crate::step::{During, Outcome, Project, failed};

const FEATURES: &str = "tests/conformance/features.json";
const DOCUMENT: &str = "tests/conformance/SUPPORT.md";
const RESULTS: &str = "target/matrix.json";

/// A language, the sources of its API, and how to read the public names out of a line of them.
type Language = (&'static str, &'static [&'static str], fn(&str) -> Option<&str>);

const LANGUAGES: [Language; 7] = [
    ("rust", &["core/sdk/src/client.rs", "core/sdk/src/options.rs", "core/sdk/src/stream.rs"], rust_name),
    (
        "python",
        &[
            "python/valkyrie/__init__.py",
            "python/valkyrie/_client.py",
            "python/valkyrie/_aio.py",
            "python/valkyrie/sync.py",
        ],
        python_name,
    ),
    ("node", &["node/index.d.ts"], typescript_name),
    ("c", &["c/include/valkyrie/valkyrie.h"], c_name),
    (
        "kotlin",
        &[
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Client.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Stream.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Options.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Metadata.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/StatusException.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Breaker.kt",
            "bindings/kotlin/src/main/kotlin/dev/valkyrie/Valkyrie.kt",
        ],
        kotlin_name,
    ),
    (
        "swift",
        &[
            "bindings/swift/Sources/Valkyrie/Breaker.swift",
            "bindings/swift/Sources/Valkyrie/Client.swift",
            "bindings/swift/Sources/Valkyrie/Connectivity.swift",
            "bindings/swift/Sources/Valkyrie/Log.swift",
            "bindings/swift/Sources/Valkyrie/MessageStream.swift",
            "bindings/swift/Sources/Valkyrie/Metadata.swift",
            "bindings/swift/Sources/Valkyrie/Operation.swift",
            "bindings/swift/Sources/Valkyrie/Options.swift",
            "bindings/swift/Sources/Valkyrie/Status.swift",
            "bindings/swift/Sources/ValkyrieFoundation/Data.swift",
        ],
        swift_name,
    ),
    ("browser", &["wasm/index.d.ts"], typescript_name),
];

/// Writes the document.
pub(crate) fn write(project: &Project) -> Outcome {
    let text = document(project)?;
    std::fs::write(project.path(DOCUMENT), text).during(DOCUMENT)?;
    Ok(DOCUMENT.to_owned())
}

/// Checks the description against the APIs, and that the document is what it gives.
pub(crate) fn check(project: &Project) -> Outcome {
    let text = document(project)?;
    if std::fs::read_to_string(project.path(DOCUMENT)).ok().as_ref() != Some(&text) {
        return failed(format!("{DOCUMENT} is not what {FEATURES} gives: run `cargo xtask support`"));
    }
    let rows = text.lines().filter(|line| line.starts_with("| ")).count() - 1;
    Ok(format!("{rows} features in {} languages", LANGUAGES.len()))
}

/// Checks that the cases of each feature passed in each language that says it has the feature.
pub(crate) fn check_results(project: &Project) -> Outcome {
    let results = read_json(&project.path(RESULTS))?;
    let mut cells = 0;
    for feature in features(project)? {
        for (language, ..) in LANGUAGES {
            if feature["absent"][language].is_string() {
                continue;
            }
            for row in results.as_array().into_iter().flatten() {
                let case = row["case"].as_str().unwrap_or_default();
                if !is_of(&feature, case) {
                    continue;
                }
                for (column, mark) in row.as_object().into_iter().flatten() {
                    if language_of(column) == Some(language) {
                        if mark != "ok" {
                            return failed(format!("{}: {case} in {column} is {mark}", name(&feature)));
                        }
                        cells += 1;
                    }
                }
            }
        }
    }
    if cells == 0 { failed("no case of any feature was run") } else { Ok(format!("{cells} results")) }
}

/// The number of a reason in the list of them, in which it is from now on.
pub(crate) fn number_of<'a>(reasons: &mut Vec<&'a str>, reason: &'a str) -> usize {
    let known = reasons.iter().position(|known| *known == reason);
    known.unwrap_or_else(|| {
        reasons.push(reason);
        reasons.len() - 1
    }) + 1
}

fn features(project: &Project) -> Outcome<Vec<Value>> {
    match read_json(&project.path(FEATURES))? {
        Value::Array(features) => Ok(features),
        _ => failed(format!("{FEATURES} is no list")),
    }
}

fn name(feature: &Value) -> &str {
    feature["feature"].as_str().unwrap_or_default()
}

/// Words of a text value; none where there is none.
fn words(value: &Value) -> impl Iterator<Item = &str> {
    value.as_str().unwrap_or_default().split_whitespace()
}

/// Whether a case proves a feature: its name, or the beginning of it before a `*`.
fn is_of(feature: &Value, case: &str) -> bool {
    words(&feature["cases"]).any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => case.starts_with(beginning),
        None => case == pattern,
    })
}

/// The language of a column such as `python/tcp`: the browsers are one.
fn language_of(column: &str) -> Option<&'static str> {
    let head = column.split('/').next()?;
    let head = if matches!(head, "chromium" | "firefox") { "browser" } else { head };
    LANGUAGES.iter().map(|(language, ..)| *language).find(|language| *language == head)
}

fn document(project: &Project) -> Outcome {
    let features = features(project)?;
    let cases = read_json(&project.path(CASES))?;
    let cases: Vec<&str> =
        cases.as_array().into_iter().flatten().filter_map(|case| case["case"].as_str()).collect();
    for feature in &features {
        for pattern in words(&feature["cases"]) {
            let alone = serde_json::json!({ "cases": pattern });
            if !cases.iter().any(|case| is_of(&alone, case)) {
                return failed(format!("{}: no case is named {pattern}", name(feature)));
            }
        }
    }
    if let Some(case) = cases.iter().find(|case| !features.iter().any(|feature| is_of(feature, case))) {
        return failed(format!("the case {case} is of no feature in {FEATURES}"));
    }

    let heads = columns();
    let mut table = vec![String::new(); features.len()];
    let mut reasons: Vec<&str> = Vec::new();
    for (language, sources, read) in LANGUAGES {
        let mut surface = BTreeSet::new();
        let mut text = String::new();
        for source in sources {
            let source = std::fs::read_to_string(project.path(source)).during(source)?;
            surface.extend(source.lines().filter_map(read).map(str::to_owned));
            text.push_str(&source);
        }
        for (feature, row) in features.iter().zip(&mut table) {
            let place = format!("{}, {language}", name(feature));
            let mut items: Vec<String> = Vec::new();
            for item in words(&feature["api"][language]) {
                if !has_word(&text, item) {
                    return failed(format!("{place}: the API has no {item}"));
                }
                surface.remove(item);
                items.push(format!("`{item}`"));
            }
            // In the types, which several packages share, and refused with the reason.
            for item in words(&feature["refused"][language]) {
                surface.remove(item);
            }
            let scheme = feature["column"].as_str();
            let has_column = scheme.is_some_and(|scheme| {
                heads.iter().any(|head| {
                    language_of(head) == Some(language)
                        && head.split_once('/').is_some_and(|(_, rest)| rest.contains(scheme))
                })
            });
            let present = has_column || !items.is_empty();
            let cell = match (present, feature["absent"][language].as_str()) {
                (true, None) if items.is_empty() => "yes".to_owned(),
                (true, None) => items.join(" "),
                (false, Some(reason)) if !reason.is_empty() => {
                    format!("no ({})", number_of(&mut reasons, reason))
                }
                (true, Some(_)) => {
                    return failed(format!("{place}: it is there, and a reason says why it is not"));
                }
                (false, _) => return failed(format!("{place}: neither in the API nor a reason why not")),
            };
            *row += &format!(" {cell} |");
        }
        if let Some(item) = surface.first() {
            return failed(format!(
                "{language} has {item}, and {FEATURES} does not say of what feature it is"
            ));
        }
    }
    let heads: Vec<&str> = LANGUAGES.iter().map(|(language, ..)| *language).collect();
    let mut text = format!(
        "# What each language has\n\nMade by `cargo xtask support` from `features.json`, which a check compares with \
         the API of each language; `cargo xtask matrix`\nproves the cases that it names; `a column` are all cases of a table of it. Do not edit.\n\n\
         | feature | {} | cases |\n|---|{}---:|\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for (feature, row) in features.iter().zip(&table) {
        let count = match feature["column"].is_string() {
            true => "a column".to_owned(),
            false => cases.iter().filter(|case| is_of(feature, case)).count().to_string(),
        };
        text += &format!("| {} |{row} {count} |\n", name(feature));
    }
    text.push_str("\nWhy not:\n\n");
    for (number, reason) in reasons.iter().enumerate() {
        text += &format!("{}. {reason}\n", number + 1);
    }
    Ok(text)
}

/// Whether a text has a word, whole.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(inside) && !text[at + word.len()..].starts_with(inside))
}

/// The identifier that a text begins with.
fn identifier(text: &str) -> Option<&str> {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

fn rust_name(line: &str) -> Option<&str> {
    let line = line.trim_start().strip_prefix("pub ")?;
    identifier(line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?)
}

fn python_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("    ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = identifier(line.strip_prefix("def ").or_else(|| line.strip_prefix("class "))?)?;
    (!name.starts_with('_')).then_some(name)
}

/// Exported values, and the members of classes and interfaces.
fn typescript_name(line: &str) -> Option<&str> {
    if let Some(line) = line.strip_prefix("export ") {
        let kinds = ["function ", "class ", "const "];
        return identifier(kinds.iter().find_map(|kind| line.strip_prefix(kind))?);
    }
    let line = line.strip_prefix("  ")?;
    let name = identifier(line.strip_prefix("readonly ").unwrap_or(line))?;
    let rest = &line.strip_prefix("readonly ").unwrap_or(line)[name.len()..];
    rest.starts_with(['(', ':', '?']).then_some(name)
}

/// Public values, functions and types.
fn kotlin_name(line: &str) -> Option<&str> {
    const KINDS: &str =
        "fun val var class interface object enum companion suspend inline operator const constructor()";
    let line = line.trim_start();
    let line = if line.starts_with('@') { line.split_once(' ')?.1 } else { line };
    let mut words = line.strip_prefix("public ")?.split(' ');
    identifier(words.find(|word| !KINDS.split(' ').any(|kind| kind == *word))?)
}

fn c_name(line: &str) -> Option<&str> {
    if line.starts_with([' ', '/', '*', '#', '}']) || line.starts_with("typedef") {
        return None;
    }
    let name = identifier(&line[line.find("valkyrie_")?..])?;
    let function = line.find('(')?;
    let name =
        if line[..function].ends_with(name) { name } else { line[..function].rsplit([' ', '*']).next()? };
    name.starts_with("valkyrie_").then_some(name)
}

/// Public functions, values and types, without the constants of a type.
fn swift_name(line: &str) -> Option<&str> {
    let line = line.trim_start().strip_prefix("public ")?;
    if line.starts_with("static let ") {
        return None;
    }
    let (mut word, mut rest) = line.split_once(' ')?;
    while ["static", "final", "mutating"].contains(&word) {
        (word, rest) = rest.split_once(' ')?;
    }
    let kinds = ["func", "var", "let", "class", "struct", "enum", "protocol"];
    kinds.contains(&word).then(|| identifier(rest.trim_start_matches('`')))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_each_language() {
        assert_eq!(rust_name("    pub async fn call(&self)"), Some("call"));
        assert_eq!(rust_name("    fn hidden()"), None);
        assert_eq!(python_name("    async def call_with_response("), Some("call_with_response"));
        assert_eq!(python_name("    def __init__(self)"), None);
        assert_eq!(typescript_name("  halfClose(): Promise<void>;"), Some("halfClose"));
        assert_eq!(typescript_name("  readonly code: CodeName;"), Some("code"));
        assert_eq!(typescript_name("  private constructor();"), None);
        assert_eq!(typescript_name("export class Client {"), Some("Client"));
        assert_eq!(kotlin_name("    public suspend inline fun call(method: String)"), Some("call"));
        assert_eq!(
            kotlin_name("        @JvmStatic public fun file(path: Path): Pem = Pem(path)"),
            Some("file")
        );
        assert_eq!(kotlin_name("    public companion object {"), None);
        assert_eq!(kotlin_name("    internal fun hidden()"), None);
        assert_eq!(c_name("const char *valkyrie_version(void);"), Some("valkyrie_version"));
        assert_eq!(swift_name("    public static func connect(_ endpoint: String,"), Some("connect"));
        assert_eq!(swift_name("    public let `class`: ErrorClass"), Some("class"));
        assert_eq!(swift_name("    public static let ok = Code(rawValue: 0)"), None);
        assert_eq!(swift_name("    func hidden()"), None);
        assert_eq!(
            c_name("valkyrie_code valkyrie_queue_new(valkyrie_queue **out,"),
            Some("valkyrie_queue_new")
        );
        assert_eq!(c_name(" * valkyrie_free() frees it"), None);
    }

    #[test]
    fn a_word_is_found_whole() {
        assert!(has_word("def call(self)", "call") && has_word("call", "call"));
        assert!(!has_word("callWithResponse recall", "call"));
    }

    #[test]
    fn a_case_is_of_a_feature_by_name_or_beginning() {
        let feature = serde_json::json!({ "cases": "one two_*" });
        assert!(is_of(&feature, "one") && is_of(&feature, "two_more"));
        assert!(!is_of(&feature, "one_more") && !is_of(&feature, "two"));
    }
}
