//! `man`: the manual as roff, from the same words as --help.

use std::path::PathBuf;

use clap::Command;

use crate::output::{Failure, named, print};

/// Prints the manual page, or writes a page for each command into a folder.
#[derive(clap::Args)]
pub(crate) struct Man {
    /// The folder for the pages, as /usr/local/share/man/man1. It is made if need be.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(crate) fn run(self, command: Command) -> Result<(), Failure> {
        let Some(folder) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            return print(&page);
        };
        std::fs::create_dir_all(&folder).map_err(|error| named(&folder, error))?;
        clap_mangen::generate_to(command, &folder).map_err(|error| named(&folder, error))
    }
}
