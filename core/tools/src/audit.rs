//! `audit verify`: whether audit logs are as they were written. What a line may look like is the sdk's to say.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use valkyrie_sdk::{Class, access::AuditVerifier};

use crate::output::{Failure, escape, named, print};

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Find lines that were changed, taken out, put in, moved or repeated.
    ///
    /// Give all files of a log in their order, the one that is being written last: `audit.log.* audit.log`. Every line
    /// holds the hash of the one before it, so that nothing inside can be changed without a trace. The lines alone
    /// do not show that the end was cut off: for that, say with --expect-last which one it was; nor that somebody without a key
    /// made all of them anew, unless they were written with a key.
    #[command(after_help = crate::EXIT_CODES)]
    Verify(Verify),
}

impl Audit {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Verify(verify) => verify.run(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Verify {
    /// The files, in the order in which they were written.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The hash that the last line must have, as it was kept elsewhere.
    #[arg(long, value_name = "HASH")]
    expect_last: Option<String>,
    /// The hash of the line that the first one must follow; without it the first one must be the log's first.
    #[arg(long, value_name = "HASH")]
    following: Option<String>,
    /// The file with the key that the log was written with: all of its bytes.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Verify {
    fn run(self) -> Result<(), Failure> {
        let mut verifier = AuditVerifier::new();
        if let Some(path) = &self.key_file {
            verifier = verifier.with_key(&fs::read(path).map_err(|error| named(path, error))?);
        }
        if let Some(hash) = &self.following {
            verifier = verifier.following(hash);
        }
        let (mut lines, mut wrong) = (0, Vec::new());
        for path in &self.files {
            let file = BufReader::new(File::open(path).map_err(|error| named(path, error))?);
            let mut tell = Ok(());
            let found = verifier.file(file, |line, what| {
                if tell.is_ok() {
                    tell = self.tell(&mut wrong, path, Some(line), format!("the line {what}"));
                }
            });
            tell?;
            lines += found.map_err(|error| named(path, error))?;
        }
        let (seq, last) = verifier.last();
        if let (Some(expected), Some(path)) = (&self.expect_last, self.files.last())
            && expected != last
        {
            let what = format!(
                "the last line has not the hash {expected}: lines are missing after it, or it is another log"
            );
            self.tell(&mut wrong, path, None, what)?;
        }
        if self.json {
            let report = json!({ "lines": lines, "last": { "seq": seq, "hash": last }, "wrong": wrong });
            print(format!("{report}\n").as_bytes())?;
        } else if wrong.is_empty() {
            let text = format!("{lines} lines are as they were written; the last is number {seq}, {last}");
            print(format!("{}\n", escape(&text)).as_bytes())?;
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::Reported(Class::Protocol)) }
    }

    /// Says at once what is wrong, or keeps it for the report. Of a log that is wrong everywhere a thousand places are kept.
    fn tell(
        &self,
        wrong: &mut Vec<Value>,
        path: &Path,
        line: Option<u64>,
        what: String,
    ) -> Result<(), Failure> {
        let file = path.display().to_string();
        if !self.json {
            let place = line.map_or(file.clone(), |line| format!("{file}:{line}"));
            print(format!("{}\n", escape(&format!("{place}: {what}"))).as_bytes())?;
        }
        if wrong.len() < 1_000 {
            wrong.push(json!({ "file": file, "line": line, "what": what }));
        }
        Ok(())
    }
}
