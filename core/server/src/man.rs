//! `man`: the manual as roff, from the same words as --help.

use std::{io, path::PathBuf};

use clap::Command;

/// Prints the manual page, or writes a page for each command into a folder.
#[derive(clap::Args)]
pub(crate) struct Man {
    /// The folder for the pages, as /usr/local/share/man/man1. It is made if need be.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    /// What is to be printed.
    pub(crate) fn run(self, command: Command) -> io::Result<Vec<u8>> {
        let mut page = Vec::new();
        let Some(folder) = self.dir else {
            clap_mangen::Man::new(command).render(&mut page)?;
            return Ok(page);
        };
        let written =
            std::fs::create_dir_all(&folder).and_then(|()| clap_mangen::generate_to(command, &folder));
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
        Ok(page)
    }
}
