//! What systemd is told: sd_notify(3), read from real sockets.

use std::{
    fs,
    os::unix::net::{SocketAddr, UnixDatagram},
    time::Duration,
};

use super::{Folder, Server, binary, open_echo};

const ARGUMENTS: [&str; 2] = ["--bind", "127.0.0.1:0"];

fn heard(socket: &UnixDatagram) -> String {
    let mut lines = [0; 4096];
    let count = socket.recv(&mut lines).expect("nobody said anything");
    String::from_utf8(lines[..count].to_vec()).unwrap()
}

/// The next that is no sign of life.
fn news(socket: &UnixDatagram) -> String {
    loop {
        let lines = heard(socket);
        if lines != "WATCHDOG=1" {
            return lines;
        }
    }
}

fn bound(address: &SocketAddr) -> UnixDatagram {
    let socket = UnixDatagram::bind_addr(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_of_the_start_the_reload_and_the_end() {
    let folder = Folder::new();
    let policy = folder.write(
        "policy.toml",
        "version = 1\n[roles.all]\nallow = [\"/*\"]\n[[bindings]]\nprincipals = [\"*\"]\nroles = [\"all\"]\n",
    );
    let path = folder.path("notify");
    let mut sockets = vec![(path.clone(), bound(&SocketAddr::from_pathname(&path).unwrap()))];
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("valkyrie-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        sockets.push((format!("@{name}"), bound(&address)));
    }
    for (name, socket) in sockets {
        let mut command = binary();
        command.env("NOTIFY_SOCKET", &name).env("WATCHDOG_USEC", "100000");
        let mut server = Server::spawn(&mut command, &[&ARGUMENTS[..], &["--policy", &policy]].concat());
        let listening = format!("READY=1\nSTATUS=listening on {}", server.endpoints.join(" "));
        assert_eq!(news(&socket), listening, "{name}");
        for _ in 0..3 {
            assert_eq!(heard(&socket), "WATCHDOG=1", "{name}");
        }
        server.signal("HUP");
        let reloading = news(&socket);
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        // A machine's time since its start, which is not 0 and not that of a calendar.
        assert!((1..1_000_000_000_000_000).contains(&since.parse::<u64>().unwrap()), "{reloading}");
        assert_eq!(news(&socket), "READY=1", "{name}");
        let client = server.client().await;
        let (send, mut recv) = open_echo(&client).await;
        server.signal("TERM");
        assert_eq!(news(&socket), "STOPPING=1\nSTATUS=draining, 1 calls left", "{name}");
        // A drain may be long: it is no sign of death.
        assert_eq!(heard(&socket), "WATCHDOG=1", "{name}");
        drop(send);
        let _ = recv.recv().await;
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("systemd"), "{log}");
    }
}

#[test]
fn a_watchdog_of_another_process_is_not_answered() {
    let folder = Folder::new();
    let path = folder.path("notify");
    let socket = bound(&SocketAddr::from_pathname(&path).unwrap());
    for variables in [
        [("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")],
        [("WATCHDOG_USEC", "soon"), ("WATCHDOG_PID", "")],
    ] {
        let mut server = Server::spawn(binary().env("NOTIFY_SOCKET", &path).envs(variables), &ARGUMENTS);
        assert!(heard(&socket).starts_with("READY=1"));
        server.signal("TERM");
        assert!(heard(&socket).starts_with("STOPPING=1"));
        assert_eq!(server.ended().0, Some(0));
    }
}

#[test]
fn a_wrong_socket_is_one_warning() {
    let folder = Folder::new();
    let gone = folder.path("gone");
    for name in ["notify", "/no/such/folder/notify", "vsock:2:1", &gone] {
        let socket = (name == gone).then(|| bound(&SocketAddr::from_pathname(name).unwrap()));
        let mut server =
            Server::spawn(binary().env("NOTIFY_SOCKET", name).env("WATCHDOG_USEC", "1000"), &ARGUMENTS);
        if let Some(socket) = socket {
            assert!(heard(&socket).starts_with("READY=1"));
            drop(socket);
            fs::remove_file(&gone).unwrap();
            server.wait_for_log("systemd could not be told");
        }
        server.signal("TERM");
        let (code, log) = server.ended();
        let log = format!("{}{log}", server.heard);
        assert_eq!((code, log.matches("systemd").count()), (Some(0), 1), "{name}: {log}");
    }
}
