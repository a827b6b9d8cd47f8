//! The descriptors that the runtime lives on, and how the child of a fork lets go of its copies: a connection would not
//! end with the parent for as long as the child held its socket too.
//!
//! What the runtime polls is its own, and Linux tells what an epoll descriptor watches. The child closes by `close(2)` and
//! touches nothing else: the epoll instance is the parent's, and taking a socket out of it would silence the parent.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    sync::Mutex,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
};

use crate::{fork::Held, handle::lock};

/// The descriptors that a runtime has from its beginning to its end.
pub(crate) struct Descriptors {
    /// One epoll instance, by all the descriptors that it has.
    epoll: Vec<i32>,
    /// What it watches for the runtime itself: an eventfd.
    wakers: Vec<i32>,
}

/// What threads poll instead of the runtime, with their inodes.
static POLLED: Mutex<Vec<(i32, u64)>> = Mutex::new(Vec::new());

pub(crate) fn hold(held: &mut Held) {
    held.push(Box::new(lock(&POLLED)));
}

/// Keeps a descriptor in the list of those that a thread polls, until dropped.
pub(crate) struct Polled((i32, u64));

impl Polled {
    /// Before a socket leaves the runtime's poller, so that a fork between finds it twice rather than never.
    pub(crate) fn new(fd: i32) -> Self {
        let entry = (fd, inode(fd).unwrap_or_default());
        lock(&POLLED).push(entry);
        Self(entry)
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        let mut all = lock(&POLLED);
        if let Some(at) = all.iter().position(|entry| *entry == self.0) {
            all.swap_remove(at);
        }
    }
}

/// What an epoll descriptor watches: descriptors and their inodes.
fn watched(epoll: i32) -> Vec<(i32, u64)> {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
        Some((fd, u64::from_str_radix(inode, 16).ok()?))
    };
    told.lines().filter_map(entry).collect()
}

fn metadata(fd: i32) -> Option<fs::Metadata> {
    fs::metadata(format!("/proc/self/fd/{fd}")).ok()
}

fn inode(fd: i32) -> Option<u64> {
    Some(metadata(fd)?.ino())
}

/// The inode of a descriptor that is a socket: no other socket has it.
fn socket(fd: i32) -> Option<u64> {
    metadata(fd).filter(|metadata| metadata.file_type().is_socket()).map(|metadata| metadata.ino())
}

impl Descriptors {
    /// Those of a runtime that runs nothing yet; `None` where the system does not tell (`/proc` is not there).
    pub(crate) fn of(runtime: &Runtime) -> Option<Self> {
        let _entered = runtime.enter();
        // The instance that watches this pipe is the runtime's.
        let (reader, _writer) = std::io::pipe().ok()?;
        // SAFETY: the result owns the reader, which so stays open until it is registered no more.
        let probe = unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) }.ok()?;
        let found = (probe.as_raw_fd(), metadata(probe.as_raw_fd())?.ino());
        let is_epoll = |fd: &i32| {
            fs::read_link(format!("/proc/self/fd/{fd}"))
                .is_ok_and(|to| to.as_os_str() == "anon_inode:[eventpoll]")
        };
        let all = fs::read_dir("/proc/self/fd").ok()?;
        let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let epoll: Vec<i32> = all.filter(is_epoll).filter(|epoll| watched(*epoll).contains(&found)).collect();
        let wakers = watched(*epoll.first()?).into_iter().filter(|watched| *watched != found);
        let wakers = wakers.map(|(fd, _)| fd).filter(|fd| socket(*fd).is_none());
        Some(Self { wakers: wakers.collect(), epoll })
    }

    /// In the child of a fork, once: closes its copies of these and of the sockets that the parent's runtime polls.
    pub(crate) fn close_inherited(self) {
        let sockets = self.epoll.first().map_or_else(Vec::new, |epoll| watched(*epoll));
        // The parent goes on meanwhile, and what it has opened since may have the number of something else here.
        let sockets = sockets.into_iter().chain(std::mem::take(&mut *lock(&POLLED)));
        let sockets = sockets.filter(|(fd, is)| inode(*fd) == Some(*is)).map(|(fd, _)| fd);
        for fd in sockets.chain(self.wakers).chain(self.epoll) {
            // SAFETY: close takes a number. It is the child's copy of a descriptor of the parent's runtime, which is
            // leaked in the child: nothing here uses it.
            unsafe { libc::close(fd) };
        }
    }
}
