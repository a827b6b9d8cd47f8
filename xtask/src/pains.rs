//! `tests/PAINS.md`: what users of SDKs over a shared native core suffer elsewhere, and what keeps each from ours. Every
//! row names tests that exist, or says why it has none.

use crate::step::{During, Outcome, Project, failed};

const LIST: &str = "tests/PAINS.md";
const ROWS: usize = 22;

/// Checks that each row is there once, in order, and that every test it names exists.
pub(crate) fn check(project: &Project) -> Outcome {
    let text = std::fs::read_to_string(project.path(LIST)).during(LIST)?;
    let (mut rows, mut named, mut reasons) = (0, 0, 0);
    for (number, line) in text.lines().enumerate() {
        let Some((pain, guard)) = row(line) else { continue };
        let place = format!("{LIST}:{}", number + 1);
        rows += 1;
        if pain != rows {
            return failed(format!("{place}: row {pain} stands where {rows} belongs"));
        }
        let tests = tests(guard);
        for (file, test) in &tests {
            let source = std::fs::read_to_string(project.path(file)).during(format!("{place}: {file}"))?;
            if !has(file, &source, test) {
                return failed(format!("{place}: {file} has no test {test:?}"));
            }
        }
        let reason = guard.contains("Reason:");
        if tests.is_empty() && !reason {
            return failed(format!("{place}: neither a test nor a reason"));
        }
        named += tests.len();
        reasons += usize::from(reason);
    }
    if rows != ROWS {
        return failed(format!("{LIST} has {rows} rows, and there are {ROWS}"));
    }
    Ok(format!("{rows} pains, {named} tests, {reasons} reasons"))
}

/// Number and last cell of a row such as `| 7 | what | guard |`.
fn row(line: &str) -> Option<(usize, &str)> {
    let mut cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
    let number = cells.next()?.trim().parse().ok()?;
    Some((number, cells.next_back()?))
}

/// The tests that a cell names, as `file: test` between backticks.
fn tests(guard: &str) -> Vec<(&str, &str)> {
    guard.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(": ")).collect()
}

/// Whether a source has a test of this name: what follows is its own.
fn has(file: &str, source: &str, test: &str) -> bool {
    let written = match file.rsplit('.').next() {
        // A step of `cargo xtask test`.
        Some("rs") if file.starts_with("xtask/") && source.contains(&format!("\"{test}\",")) => return true,
        Some("rs") => format!("fn {test}()"),
        Some("py") => format!("def {test}("),
        Some("mjs") => format!("test('{test}'"),
        Some("kt") => format!("fun `{test}`("),
        Some("json") => format!("\"case\": \"{test}\""),
        Some("c") => format!("{test}("),
        _ => return false,
    };
    source.contains(&written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_the_tests_they_name_are_found() {
        let line = "| 3 | a `thing: x` lost | `a/b.rs: is_kept`, `c.mjs: is: kept too`. Reason: none |";
        let (number, guard) = row(line).expect("a row");
        assert_eq!(number, 3);
        assert_eq!(tests(guard), [("a/b.rs", "is_kept"), ("c.mjs", "is: kept too")]);
        for other in ["|---|---|", "| # | what | guard |", "text", ""] {
            assert_eq!(row(other), None);
        }
    }

    #[test]
    fn a_test_is_found_by_its_whole_name() {
        for (file, source) in [
            ("a.rs", "#[test]\nfn kept() {"),
            ("a.py", "async def kept(tmp_path):"),
            ("a.mjs", "test('kept', async () => {"),
            ("a.kt", "@Test\n    fun `kept`() = test {"),
            ("a.json", r#"{"case": "kept", "#),
            ("xtask/src/a.rs", "steps.add(\"kept\", \"about\""),
        ] {
            assert!(has(file, source, "kept"), "{file}");
            assert!(!has(file, source, "kep") && !has(file, source, "ept"), "{file}");
        }
    }
}
