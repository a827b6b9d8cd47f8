//! What Valkyrie's own crates share. It is no part of the API and may change with any version.

use std::{
    fs::Metadata,
    time::{Duration, SystemTime},
};

/// A file that changed so short a time ago may change again without looking another one.
pub const YOUNG: Duration = Duration::from_secs(2);

/// What tells that a file is another one: when it was changed, its length, and which one of the disk's it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    changed: Option<SystemTime>,
    len: u64,
    inode: (u64, u64),
}

impl FileStamp {
    /// The stamp of a file.
    pub fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let inode = (0, 0);
        Self { changed: metadata.modified().ok(), len: metadata.len(), inode }
    }

    /// Whether the file changed less than [`YOUNG`] ago.
    pub fn is_young(&self) -> bool {
        // One that is of the future is young as well.
        !self.changed.is_some_and(|changed| changed.elapsed().is_ok_and(|age| age >= YOUNG))
    }
}

/// Binds a Unix socket of mode 0600, nonblocking. A socket that nobody listens on any more is replaced; anything else at the path is left
/// alone.
///
/// # Errors
/// The system's, AlreadyExists where the path is no socket, AddrInUse where somebody listens.
#[cfg(unix)]
pub fn bind_unix(path: &std::path::Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    use std::{
        io::{Error, ErrorKind},
        os::unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(Error::new(ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(Error::new(ErrorKind::AddrInUse, "another server listens there")),
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
