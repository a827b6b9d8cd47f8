//! docs/troubleshooting.md says of each code and reason what the sources say of it. `VALKYRIE_BLESS=1 cargo test -p
//! valkyrie-tools page` writes its tables.

use valkyrie_sdk::{Reason, Status};

use super::{Way, explain};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md");
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/src/status.rs");

/// The comment of each line that `name` finds a name in.
fn comments(source: &str, name: fn(&str) -> Option<&str>) -> Vec<(&str, String)> {
    let (mut found, mut comment) = (Vec::new(), Vec::new());
    for line in source.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("/// ") {
            comment.push(words);
        } else {
            found.extend(name(line).map(|name| (name, comment.join(" "))));
            comment.clear();
        }
    }
    found
}

/// Writes links of the sources' documentation as plain words, and keeps a cell in its column.
fn cell(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}

#[test]
fn the_page_says_of_each_code_and_reason_what_the_sources_say() {
    let source = std::fs::read_to_string(SOURCE).expect("the source of statuses");
    let mut codes = String::from("| code | what it means |\n|---|---|\n");
    for (name, meaning) in comments(&source, |line| line.split_once(", \"")?.1.strip_suffix("\";")) {
        codes += &format!("| `{name}` | {} |\n", cell(&meaning));
    }
    let mut reasons =
        String::from("| reason | code | class | what it means | what to do |\n|---|---|---|---|---|\n");
    let meanings = comments(&source, |line| {
        line.split_once(" = ").filter(|(_, rest)| rest.contains(" => ")).map(|(name, _)| name)
    });
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NONE) {
        let meaning = meanings.iter().find(|(name, _)| *name == reason.name()).expect("a comment");
        let status = Status::from_reason(*reason, "");
        reasons += &format!(
            "| `{}` | `{}` | {} | {} | {} |\n",
            reason.name(),
            reason.code(),
            reason.class().name(),
            cell(&meaning.1),
            cell(&explain(&status, Way::Greeted, "of that name"))
        );
    }
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let mut expected = page.clone();
    for (head, table) in [("| code |", codes), ("| reason |", reasons)] {
        let (before, rest) = expected.split_once(head).expect("a table");
        let rest = rest.split_once("\n\n").map_or("", |(_, rest)| rest);
        expected = format!("{before}{table}\n{rest}");
    }
    if std::env::var_os("VALKYRIE_BLESS").is_some() {
        return std::fs::write(PAGE, &expected).expect("written");
    }
    assert!(
        page == expected,
        "docs/troubleshooting.md is not what the sources say: VALKYRIE_BLESS=1 writes it"
    );
}
