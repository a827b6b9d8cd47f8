//! The workflows of `.github`: what a machine does on a push, a person can do by the same line. Each step that runs something
//! runs one verb of this program; what is foreign is pinned to a commit; rights are the least, and every job ends some day.

use serde_json::Value;

use crate::step::{During, Outcome, Project, failed};

/// The workflows that there are.
const WORKFLOWS: [&str; 6] = ["bench", "fuzz", "lint", "release", "security", "test"];
/// What a job may be given beyond reading the sources, and the workflow that may give it.
const RIGHTS: [(&str, &str); 3] =
    [("release", "attestations: write"), ("release", "contents: write"), ("release", "id-token: write")];

/// Reads every workflow; `help` names the verbs and their flags.
pub(crate) fn check(project: &Project, help: &str) -> Outcome {
    let mut names = Vec::new();
    let (mut wrong, mut verbs) = (Vec::new(), 0);
    for file in project.files(&[".github/workflows"])? {
        let name = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".yml").to_owned();
        let text = std::fs::read_to_string(project.path(&file)).during(&file)?;
        let workflow: Value = yaml_serde::from_str(&text).during(&file)?;
        wrong.extend(faults(&name, &workflow, &text, help).into_iter().map(|why| format!("{file}: {why}")));
        verbs += runs(&workflow).count();
        names.push(name);
    }
    names.sort();
    if names != WORKFLOWS {
        wrong.push(format!("there are {}, and should be {}", names.join(", "), WORKFLOWS.join(", ")));
    }
    for why in &wrong {
        println!("   {why}");
    }
    match wrong.first() {
        Some(first) => failed(format!("{} faults: {first}", wrong.len())),
        None => Ok(format!("{} workflows, {verbs} verbs", names.len())),
    }
}

/// What is wrong with a workflow.
fn faults(name: &str, workflow: &Value, text: &str, help: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if workflow["name"] != name {
        wrong.push(format!("its name is {}, and its file's {name}", workflow["name"]));
    }
    if workflow["permissions"] != serde_json::json!({ "contents": "read" }) {
        wrong.push(format!(
            "its permissions are {}: `contents: read` alone is asked",
            workflow["permissions"]
        ));
    }
    for (id, job) in workflow["jobs"].as_object().into_iter().flatten() {
        if job["timeout-minutes"].as_u64().is_none_or(|minutes| minutes > 180) {
            wrong.push(format!("the job {id} has no timeout-minutes of at most 180"));
        }
        if job["runs-on"].as_str().is_none_or(|machine| machine.ends_with("-latest")) {
            wrong.push(format!("the job {id} runs on {}: name one version", job["runs-on"]));
        }
        for (right, level) in job["permissions"].as_object().into_iter().flatten() {
            let given = format!("{right}: {}", level.as_str().unwrap_or_default());
            if given != "contents: read" && !RIGHTS.contains(&(name, given.as_str())) {
                wrong.push(format!("the job {id} may not have {given}"));
            }
        }
    }
    wrong.extend(runs(workflow).filter_map(|line| refuse(line, help)));
    // The version of what is pinned is a comment, which the parser leaves out.
    for line in text.lines() {
        let Some((_, used)) = line.split_once("uses: ") else { continue };
        let (action, version) = used.split_once(" # ").unwrap_or((used, ""));
        let commit = action.split_once('@').map_or("", |(_, commit)| commit);
        let pinned = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !pinned || !version.starts_with('v') {
            wrong.push(format!("{used} is not pinned: `owner/name@<commit> # v1.2.3`"));
        }
    }
    wrong
}

/// Every command of a workflow.
fn runs(workflow: &Value) -> impl Iterator<Item = &str> {
    let jobs = workflow["jobs"].as_object().into_iter().flatten();
    let steps = jobs.flat_map(|(_, job)| job["steps"].as_array().into_iter().flatten());
    steps.filter_map(|step| step["run"].as_str())
}

/// Why a command is not one of this program's, if it is none.
fn refuse(line: &str, help: &str) -> Option<String> {
    let Some(words) = line.strip_prefix("cargo xtask ") else {
        return Some(format!("`{line}` is not one verb of `cargo xtask`"));
    };
    let mut words = words.split(' ');
    let verb = words.next().unwrap_or_default();
    let mut lines = help.lines().skip_while(|line| {
        line.strip_prefix("  ").and_then(|line| line.split(' ').next()).is_none_or(|known| known != verb)
    });
    let Some(first) = lines.next() else { return Some(format!("`{line}`: there is no verb {verb:?}")) };
    // Its lines go on as far as they are indented further.
    let about: Vec<&str> =
        [first].into_iter().chain(lines.take_while(|line| line.starts_with("    "))).collect();
    let about = about.join("\n");
    let mut words = words.filter(|word| !word.bytes().all(|byte| byte.is_ascii_digit()));
    let unknown =
        words.find(|word| !about.split([' ', '[', ']', ':', ';', '\n', ',']).any(|known| known == *word))?;
    Some(format!("`{line}`: {verb} has no {unknown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "  test [--quick]    all\n                    of it; --long: more\n  fuzz [flags]  some. --seconds N: so long\n";

    #[test]
    fn a_command_is_one_verb_that_there_is_with_flags_that_it_has() {
        for line in ["test", "test --quick", "test --long", "fuzz --seconds 600"] {
            assert_eq!(refuse(&format!("cargo xtask {line}"), HELP), None, "{line}");
        }
        for line in [
            "cargo build",
            "cargo xtask tests",
            "cargo xtask test --slow",
            "cargo xtask test && rm x",
            "cargo xtask all",
        ] {
            assert!(refuse(line, HELP).is_some(), "{line}");
        }
    }

    #[test]
    fn each_fault_of_a_workflow_is_told() {
        let good = "name: test\non: push\npermissions:\n  contents: read\njobs:\n  test:\n    runs-on: ubuntu-24.04\n    \
            timeout-minutes: 5\n    steps:\n      - uses: a/b@0123456789012345678901234567890123456789 # v1\n      \
            - run: cargo xtask test\n";
        let told = |text: &str| faults("test", &yaml_serde::from_str(text).unwrap(), text, HELP);
        assert_eq!(told(good), [""; 0]);
        for (from, to) in [
            ("name: test", "name: rest"),
            ("contents: read", "contents: write"),
            ("timeout-minutes: 5", "env: {}"),
            ("24.04", "latest"),
            ("0123456789012345678901234567890123456789", "v4"),
            (" # v1", ""),
            ("cargo xtask test", "make"),
            ("    steps:", "    permissions:\n      id-token: write\n    steps:"),
        ] {
            assert_eq!(told(&good.replace(from, to)).len(), 1, "{to}: {:?}", told(&good.replace(from, to)));
        }
    }
}
