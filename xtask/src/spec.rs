//! The rules of PROTOCOL.md and what proves them: each number stands at a test (`// spec: W1-02` beside its `#[test]`)
//! or in a vector (`"spec": ["W1-02"]`), and each claim names a rule that exists. No vector ever goes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::step::{During, Outcome, Project, failed, output};

const PAGE: &str = "PROTOCOL.md";
const VECTORS: &str = "tests/vectors/v1.json";
/// A line for every vector there ever was.
const SUMS: &str = "tests/vectors/v1.sums";
/// The one sentence that says MUST and is no rule.
const MEANING: &str = "MUST, SHOULD and MAY are meant as in RFC 2119";

/// Holds the page against the tests and the vectors; the note counts all three.
pub(crate) fn check(project: &Project) -> Outcome {
    let read = |file: &str| std::fs::read_to_string(project.path(file)).during(file);
    let (rules, mut wrong) = rules(&read(PAGE)?);
    let mut claims = Claims::default();
    for file in project.files(&["core/*.rs", "bindings/*.rs", "tests/*.rs", "wasm/test/*.mjs"])? {
        claims.read_source(&file, &read(&file)?);
    }
    claims.read_vectors(&serde_json::from_str(&read(VECTORS)?).during(VECTORS)?);
    wrong.extend(claims.against(&rules));
    let history = ["log", "--patch", "--unified=0", "--format=", "--", SUMS];
    wrong.extend(gone(&output(project.command("git").args(history))?, &read(SUMS)?));
    if wrong.is_empty() {
        return Ok(format!("{} rules, {} tests, {} vectors", rules.len(), claims.tests, claims.vectors));
    }
    for sentence in &wrong {
        println!("   {sentence}");
    }
    failed(format!("{} faults: {}", wrong.len(), wrong[0]))
}

/// Lines that were committed once and stand there no more: a vector that was changed or removed with its sum.
fn gone(history: &str, kept: &str) -> Vec<String> {
    let kept: BTreeSet<&str> = kept.lines().collect();
    let added: BTreeSet<&str> = history.lines().filter_map(|line| line.strip_prefix('+')).collect();
    let gone = added.iter().filter(|line| !line.starts_with("++ ") && !kept.contains(*line));
    gone.map(|line| format!("{SUMS}: this vector is kept for ever and gone: {line}")).collect()
}

/// The numbers on the page, and what is wrong with them.
fn rules(page: &str) -> (BTreeSet<String>, Vec<String>) {
    let (mut found, mut retired, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut section = 0;
    for (number, text) in blocks(page) {
        if let Some(heading) = text.strip_prefix("## ") {
            section = heading.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        }
        if let Some(gone) = text.strip_prefix("Retired numbers:") {
            retired.extend(gone.split([',', ' ', '.']).filter(|id| place(id).is_some()).map(str::to_owned));
            continue;
        }
        let ids: Vec<&str> = text.split('[').skip(1).filter_map(|rest| rest.split(']').next()).collect();
        let ids: Vec<&str> = ids.into_iter().filter(|id| place(id).is_some()).collect();
        for id in &ids {
            if place(id).is_some_and(|(of, _)| of != section) {
                wrong.push(format!("{PAGE}:{number}: {id} stands in section {section}"));
            }
            if !found.insert((*id).to_owned()) {
                wrong.push(format!("{PAGE}:{number}: {id} is the number of two rules"));
            }
        }
        if ids.is_empty() && text.contains("MUST") && !text.contains(MEANING) {
            wrong.push(format!("{PAGE}:{number}: a MUST without a number"));
        }
    }
    // A number that vanished was a rule: it is retired by name, so that it is not given again.
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    for (section, number) in found.iter().chain(&retired).filter_map(|id| place(id)) {
        let highest = last.entry(section).or_default();
        *highest = number.max(*highest);
    }
    for (section, highest) in last {
        for number in 1..=highest {
            let id = format!("W{section}-{number:02}");
            match (found.contains(&id), retired.contains(&id)) {
                (true, true) => wrong.push(format!("{PAGE}: {id} is retired and was given again")),
                (false, false) => wrong.push(format!("{PAGE}: {id} is gone and not listed as retired")),
                _ => {}
            }
        }
    }
    if found.is_empty() {
        wrong.push(format!("{PAGE} has no rule"));
    }
    (found, wrong)
}

/// Section and number of `W7-03`.
fn place(id: &str) -> Option<(u32, u32)> {
    let (section, number) = id.strip_prefix('W')?.split_once('-')?;
    if number.len() == 2 { Some((section.parse().ok()?, number.parse().ok()?)) } else { None }
}

/// Paragraphs, headings, items and table rows with the line they begin at; pictures are left out.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let (mut picture, mut goes_on) = (false, false);
    for (index, line) in page.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("```") {
            picture = !picture;
        }
        if picture || line.is_empty() || line.starts_with("```") {
            goes_on = false;
            continue;
        }
        let item = line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        let begins = item || line.starts_with("* ") || line.starts_with('|') || line.starts_with('#');
        match blocks.last_mut() {
            Some((_, block)) if goes_on && !begins => {
                block.push(' ');
                block.push_str(line);
            }
            _ => blocks.push((index + 1, line.to_owned())),
        }
        goes_on = !line.starts_with('#');
    }
    blocks
}

/// Who says to prove what.
#[derive(Default)]
struct Claims {
    /// Each number that is claimed, with where it first is.
    of: BTreeMap<String, String>,
    tests: usize,
    vectors: usize,
    wrong: Vec<String>,
}

impl Claims {
    fn read_source(&mut self, file: &str, text: &str) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let around = |line: &str| line.starts_with("//") || line.starts_with("#[");
        for (index, line) in lines.iter().enumerate() {
            let Some(ids) = line.strip_prefix("// spec: ") else { continue };
            let here = format!("{file}:{}", index + 1);
            let above = lines[..index].iter().rev().take_while(|line| around(line));
            let below = lines[index..].iter().take_while(|line| around(line));
            let is_test = above.clone().chain(below.clone()).any(|line| {
                line.strip_prefix("#[").is_some_and(|attribute| {
                    attribute.starts_with("test]") || attribute.starts_with("tokio::test")
                })
            });
            let next = lines.get(index + below.count());
            let is_script = file.ends_with(".mjs") && next.is_some_and(|line| line.starts_with("test("));
            let function = next.and_then(|line| line.split_once("fn "));
            let name = function.and_then(|(_, rest)| rest.split('(').next());
            // A macro may make a test of it, which lists it by its bare name.
            let is_listed = name.is_some_and(|name| lines.contains(&name));
            if !is_script && (name.is_none() || !(is_test || is_listed)) {
                self.wrong.push(format!("{here}: the claim is at no test"));
                continue;
            }
            self.tests += 1;
            self.claim(&here, ids.split(',').map(str::trim));
        }
    }

    fn read_vectors(&mut self, vectors: &Value) {
        for kind in ["frames", "broken"] {
            for vector in vectors[kind].as_array().into_iter().flatten() {
                let Some(ids) = vector["spec"].as_array() else { continue };
                self.vectors += 1;
                let here = format!("{VECTORS}: {}", vector["name"]);
                self.claim(&here, ids.iter().map(|id| id.as_str().unwrap_or_default()));
            }
        }
    }

    fn claim<'a>(&mut self, here: &str, ids: impl Iterator<Item = &'a str>) {
        for id in ids {
            self.of.entry(id.to_owned()).or_insert_with(|| here.to_owned());
        }
    }

    fn against(&mut self, rules: &BTreeSet<String>) -> Vec<String> {
        let mut wrong = std::mem::take(&mut self.wrong);
        for (id, here) in &self.of {
            if !rules.contains(id) {
                wrong.push(format!("{here}: {PAGE} has no rule {id:?}"));
            }
        }
        let unproven = rules.iter().filter(|id| !self.of.contains_key(*id));
        wrong.extend(unproven.map(|id| format!("{PAGE}: no test and no vector claims {id}")));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SMALL: &str = "MUST, SHOULD and MAY are meant as in RFC 2119.\n\n## 1. One\n\n* [W1-01] It MUST.\n\
        * [W1-02] It MUST\n  NOT.\n\n## 2. Two\n\n```text\na picture MUST not count\n```\n1. [W2-01] So.\n\n\
        Retired numbers: W2-02.\n";

    fn faults(page: &str, source: &str, vectors: &Value) -> Vec<String> {
        let (rules, mut wrong) = rules(page);
        let mut claims = Claims::default();
        claims.read_source("a.rs", source);
        claims.read_vectors(vectors);
        wrong.extend(claims.against(&rules));
        wrong
    }

    #[track_caller]
    fn refuses(page: &str, source: &str, fault: &str) {
        let wrong = faults(page, source, &json!({"broken": [{"name": "v", "spec": ["W2-01"]}]}));
        assert!(wrong.iter().any(|sentence| sentence.contains(fault)), "{fault} is not in {wrong:#?}");
    }

    const TEST: &str = "/// Says so.\n// spec: W1-01, W1-02\n#[test]\nfn it_holds() {}\n";

    #[test]
    fn a_page_whose_numbers_are_all_claimed_passes() {
        let vectors = json!({"broken": [{"name": "v", "spec": ["W2-01"]}, {"name": "w"}], "frames": []});
        assert_eq!(faults(SMALL, TEST, &vectors), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_proven_or_not_numbered_is_refused() {
        refuses(SMALL, &TEST.replace(", W1-02", ""), "no test and no vector claims W1-02");
        refuses(SMALL, &TEST.replace("W1-02", "W1-09"), "no rule \"W1-09\"");
        refuses(SMALL, &TEST.replace("#[test]\n", ""), "a.rs:2: the claim is at no test");
        refuses(&SMALL.replace("[W1-02] ", ""), TEST, "PROTOCOL.md:6: a MUST without a number");
    }

    #[test]
    fn a_test_of_a_page_claims_too() {
        let mut claims = Claims::default();
        claims.read_source(
            "a.mjs",
            "// spec: W1-01\ntest('it holds', () => {});\n// spec: W1-02\nconst it = 1;\n",
        );
        assert_eq!((claims.tests, claims.wrong.len()), (1, 1));
    }

    #[test]
    fn a_vector_that_was_committed_once_stays() {
        let history = "--- a/v1.sums\n+++ b/v1.sums\n@@ -1 +1 @@\n-frame 1 one\n+frame 1 one\n+frame 2 two\n";
        assert_eq!(gone(history, "frame 2 two\nframe 1 one\nframe 3 new\n"), Vec::<String>::new());
        assert!(gone(history, "frame 1 one\nframe 2 other\n")[0].ends_with("gone: frame 2 two"));
    }

    #[test]
    fn a_number_is_given_once() {
        refuses(&SMALL.replace("[W1-02]", "[W1-01]"), TEST, "W1-01 is the number of two rules");
        refuses(&SMALL.replace("[W1-02]", "[W2-03]"), TEST, "W2-03 stands in section 1");
        refuses(&SMALL.replace("[W1-01]", "[W1-03]"), TEST, "W1-01 is gone and not listed as retired");
        refuses(&SMALL.replace("W2-02", "W2-01"), TEST, "W2-01 is retired and was given again");
    }
}
