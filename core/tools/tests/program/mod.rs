//! Which program the tests run.

use std::path::PathBuf;

/// The one that was built with them, or the installed one where `VALKYRIE_TEST_PROGRAMS` names the folder.
pub(crate) fn valkyrie() -> PathBuf {
    match std::env::var_os("VALKYRIE_TEST_PROGRAMS") {
        Some(folder) => PathBuf::from(folder).join("valkyrie"),
        None => env!("CARGO_BIN_EXE_valkyrie").into(),
    }
}
