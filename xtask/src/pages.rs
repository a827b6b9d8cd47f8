//! The pages of `docs/` run as they are written: each file that they show is written to a fresh folder, each line after a `$` is
//! typed there into one shell, and what it prints is compared with what the page shows, where `…` stands for what varies.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use crate::package::{FRESH, fresh_folder};
use crate::step::{During, Outcome, Project, failed};

/// The pages with a shell in them.
const PAGES: [&str; 2] = ["docs/tutorial.md", "docs/troubleshooting.md"];
/// Ports that pages name. Others stand in their place here, as these may be taken.
const PORTS: [&str; 2] = ["8080", "8443"];
/// How long a page may take before it is stopped, in seconds.
const PATIENCE: &str = "120";
/// Before what the shell says of itself.
const MARK: char = '\u{1}';

/// Runs every page.
pub(crate) fn check(project: &Project) -> Outcome {
    let mut notes = Vec::new();
    for page in PAGES {
        let text = std::fs::read_to_string(project.path(page)).during(page)?;
        let (pieces, commands) = run(project, page, &text)?;
        notes.push(format!("{page}: {pieces} files, {commands} commands"));
    }
    Ok(notes.join(", "))
}

/// A piece of a page: a file that it shows, or a command with what it prints.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    File { name: &'a str, lines: Vec<&'a str> },
    Command { line: usize, typed: Vec<&'a str>, shown: Vec<&'a str> },
}

/// Reads a page: blocks of `console`, and those with a file's name behind their language, as in "```python hello.py".
fn read(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut block: Option<(&str, &str)> = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(words) = line.strip_prefix("```") {
            block = match block {
                Some(_) => None,
                None => Some(words.trim().split_once(' ').unwrap_or((words.trim(), ""))),
            };
            if let Some((_, name)) = block.filter(|(_, name)| !name.is_empty()) {
                pieces.push(Piece::File { name, lines: Vec::new() });
            }
            continue;
        }
        match (block, pieces.last_mut()) {
            (Some((_, name)), Some(Piece::File { lines, .. })) if !name.is_empty() => lines.push(line),
            (Some(("console", _)), last) => match (line.strip_prefix("$ "), last) {
                (Some(typed), _) => {
                    pieces.push(Piece::Command { line: index + 1, typed: vec![typed], shown: Vec::new() });
                }
                (None, Some(Piece::Command { typed, shown, .. })) => {
                    // A command goes on where its line ends with a backslash.
                    if shown.is_empty() && typed.last().is_some_and(|typed| typed.ends_with('\\')) {
                        typed.push(line);
                    } else {
                        shown.push(line);
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    pieces
}

/// Runs a page in a folder of its own, whose `~/valkyrie` is this checkout.
fn run(project: &Project, page: &str, text: &str) -> Outcome<(usize, usize)> {
    let mut text = text.to_owned();
    // All are held until all are chosen.
    let chosen = PORTS.map(|_| TcpListener::bind("127.0.0.1:0"));
    for (port, other) in PORTS.iter().zip(&chosen) {
        let other = other.as_ref().ok().and_then(|listener| listener.local_addr().ok());
        let Some(other) = other else { return failed("there is no free port") };
        text = text.replace(port, &other.port().to_string());
    }
    drop(chosen);
    let pieces = read(&text);
    let home = fresh_folder(project, &format!("target/docs/{}", page.trim_start_matches("docs/")))?;
    std::os::unix::fs::symlink(&project.root, home.join("valkyrie")).during("~/valkyrie")?;
    let mut script = String::from("exec 2>&1\n");
    let (mut files, mut commands) = (0, Vec::new());
    for piece in &pieces {
        match piece {
            // A file is there once the page shows it, and may be shown again with other lines.
            Piece::File { name, lines } => {
                script += &format!("cat > '{name}' <<'END OF FILE'\n{}\nEND OF FILE\n", lines.join("\n"));
                files += 1;
            }
            Piece::Command { line, typed, shown } => {
                let typed = typed.join("\n");
                script += &format!(
                    "{typed}\nvalkyrie_code=$?; printf '\\001%s\\n' $valkyrie_code; (exit $valkyrie_code)\n"
                );
                commands.push((*line, typed, shown));
            }
        }
    }
    // What a page starts and does not end, ends with it.
    script += "kill $(jobs -p) 2>/dev/null\nwait\n";
    let mut shell = project.command("timeout");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = project.path(FRESH).join("rust/bin");
    let folders = std::iter::once(programs).chain(std::env::split_paths(&path));
    shell.env("PATH", std::env::join_paths(folders).during("PATH")?);
    shell.args(["--kill-after=5", PATIENCE, "bash"]).arg("-c").arg(&script);
    shell.current_dir(&home).env("HOME", &home).env_remove("VALKYRIE_TOKEN").stdin(Stdio::null());
    let said = shell.output().during("bash")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut told = said.split(MARK);
    // A command's lines stand before its mark, and its exit code behind it, before the next one's lines.
    let mut printed = told.next().unwrap_or_default();
    for (at, (line, typed, shown)) in commands.iter().enumerate() {
        println!("   {page}:{line}: $ {}", typed.lines().next().unwrap_or_default());
        let Some((code, next)) = told.next().and_then(|rest| rest.split_once('\n')) else {
            return failed(format!("{page}:{line}: `{typed}` did not end: {printed}"));
        };
        let printed_lines: Vec<&str> = printed.lines().collect();
        if !matches(shown, &printed_lines) {
            return failed(format!(
                "{page}:{line}: `{typed}` is shown with\n{}\nand printed\n{printed}",
                shown.join("\n")
            ));
        }
        // A page that shows a failure asks for its code.
        let asked = commands.get(at + 1).is_some_and(|(_, next, _)| next == "echo $?");
        if code != "0" && !asked {
            return failed(format!("{page}:{line}: `{typed}` ended with {code}: {printed}"));
        }
        printed = next;
    }
    Ok((files, commands.len()))
}

/// Whether lines are as they are shown: a line `…` is any number of them, and `…` within a line any words.
fn matches(shown: &[&str], printed: &[&str]) -> bool {
    match shown {
        [] => printed.is_empty(),
        ["…", rest @ ..] => (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..])),
        [line, rest @ ..] => match printed {
            [first, others @ ..] => line_matches(line, first) && matches(rest, others),
            [] => false,
        },
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    match shown.split_once('…') {
        None => shown.trim_end() == printed.trim_end(),
        Some((before, after)) => printed.strip_prefix(before).is_some_and(|rest| {
            let mut ends = (0..=rest.len()).filter(|at| rest.is_char_boundary(*at));
            ends.any(|at| line_matches(after, &rest[at..]))
        }),
    }
}

/// Fails where a link of a page leads nowhere; gives how many lead somewhere.
pub(crate) fn links(project: &Project) -> Outcome<usize> {
    let mut count = 0;
    for page in project.files(&["docs/*.md", "README.md"])? {
        let text = std::fs::read_to_string(project.path(&page)).during(&page)?;
        let folder = Path::new(&page).parent().unwrap_or(Path::new("")).to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !project.root.join(&folder).join(file).exists() {
                return failed(format!("{page} leads to {link}, which is not there"));
            }
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_files_and_commands_with_what_they_print() {
        let page = "# Title\n```python a.py\nprint(1)\n```\n```console\n$ python a.py\n1\n$ echo a \\\n  b\n```\n```rust\nfn f() {}\n```\n";
        let expected = [
            Piece::File { name: "a.py", lines: vec!["print(1)"] },
            Piece::Command { line: 6, typed: vec!["python a.py"], shown: vec!["1"] },
            Piece::Command { line: 8, typed: vec!["echo a \\", "  b"], shown: vec![] },
        ];
        assert_eq!(read(page), expected);
    }

    #[test]
    fn dots_stand_for_what_varies() {
        assert!(matches(&["a … c", "…", "end"], &["a 12 c", "x", "y", "end"]));
        assert!(matches(&["…"], &[]) && matches(&["a"], &["a "]));
        for (shown, printed) in
            [(&["a … c"][..], &["a 12 d"][..]), (&["a"], &["a", "b"]), (&["…", "z"], &["y"])]
        {
            assert!(!matches(shown, printed), "{shown:?}");
        }
    }

    #[test]
    fn a_page_that_shows_something_else_is_told_with_its_line() {
        let project = Project::find();
        let ran = |text: &str| run(&project, "docs/try.md", text);
        assert_eq!(ran("```console\n$ echo 8080\n8080\n$ false\n$ echo $?\n1\n```\n").unwrap(), (0, 3));
        assert_eq!(ran("```text a\nb\n```\n```console\n$ cat a\nb\n```\n").unwrap(), (1, 1));
        for text in
            ["```console\n$ echo a\nb\n```\n", "```console\n$ false\n```\n", "```console\n$ exit 3\n```\n"]
        {
            assert!(ran(text).is_err(), "{text}");
        }
    }
}
