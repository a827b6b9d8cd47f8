//! Tells systemd how the server is: sd_notify(3), a datagram of lines to the socket that `NOTIFY_SOCKET` names. Where nobody
//! named one, nothing happens.

use std::time::Duration;

/// The service manager, if there is one.
pub(crate) struct Notify {
    #[cfg(unix)]
    socket: Option<std::os::unix::net::UnixDatagram>,
    /// How often it wants to hear of the server.
    watchdog: Option<Duration>,
    failed: std::sync::atomic::AtomicBool,
}

impl Notify {
    /// The one that the environment names. A name that cannot be used is a warning.
    pub(crate) fn from_environment() -> Self {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let pid = std::process::id().to_string();
        // WATCHDOG_PID says whom it is meant for: not who was started by whom it was meant for.
        let is_meant = text("WATCHDOG_PID").is_none_or(|meant| meant == pid);
        let watchdog = text("WATCHDOG_USEC").filter(|_| is_meant).and_then(|micros| micros.parse().ok());
        Self {
            #[cfg(unix)]
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
                connect(&name)
                    .inspect_err(
                        |why| tracing::warn!(socket = ?name, %why, "systemd is not told how the server is"),
                    )
                    .ok()
            }),
            // Half of what it allows, as systemd advises; 0 is none.
            watchdog: watchdog
                .filter(|micros| *micros > 1)
                .map(|micros: u64| Duration::from_micros(micros / 2)),
            failed: false.into(),
        }
    }

    /// Says lines such as `READY=1`. Never waits; the first failure is logged.
    pub(crate) fn say(&self, lines: &str) {
        #[cfg(unix)]
        if let Some(socket) = &self.socket
            && let Err(why) = socket.send(lines.as_bytes())
            && !self.failed.swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            tracing::warn!(%why, "systemd could not be told how the server is");
        }
        #[cfg(not(unix))]
        let _ = (lines, &self.failed);
    }

    /// Says that a reload begins, and when, which `Type=notify-reload` compares with the time at which it asked for one.
    pub(crate) fn reloading(&self) {
        #[cfg(unix)]
        {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
            self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        }
    }

    /// Says that the server is alive as often as is asked for, from a task: a runtime that stands still says nothing. Ends at
    /// once where nobody asked.
    pub(crate) async fn watch(&self) {
        let Some(time) = self.watchdog else { return };
        let mut ticks = tokio::time::interval(time);
        loop {
            ticks.tick().await;
            self.say("WATCHDOG=1");
        }
    }
}

/// A socket to `/path`, or to `@name`, which on Linux is in no folder.
#[cfg(unix)]
fn connect(name: &std::ffi::OsStr) -> std::io::Result<std::os::unix::net::UnixDatagram> {
    #[cfg(target_os = "linux")]
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::{
        ffi::OsStrExt,
        net::{SocketAddr, UnixDatagram},
    };
    let address = match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(std::io::Error::other("NOTIFY_SOCKET begins with / or @")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
