//! What a machine does to a server: ports and files that it may not have, descriptors and disks that run out, logs that nobody
//! takes. What needs a right that the tests do not have says so and is left out.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use valkyrie_sdk::{Client, Code};

use super::{Folder, Server, binary, run};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether that command does what it does, which takes rights.
fn may(what: &str, command: &mut Command) -> bool {
    let may = command.output().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("left out: this machine or user may not {what}");
    }
    may
}

/// A folder with the server in it, and a command that runs it there as nobody, who has no rights.
fn as_nobody(folder: &Folder, before: &[&str]) -> Command {
    let program = folder.path("valkyrie-server");
    if !fs::exists(&program).unwrap() {
        fs::copy(super::program(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"];
    let all: Vec<&str> = before.iter().copied().chain(nobody).chain([program.as_str()]).collect();
    let mut command = Command::new(all[0]);
    command.args(&all[1..]);
    command
}

#[test]
fn a_port_that_only_root_may_bind_is_named_with_the_right_that_is_missing() {
    let folder = Folder::new();
    // In a network of its own no setting of this machine lets everybody bind it.
    let before = ["unshare", "--net"];
    if !may("drop its rights in a network of its own", as_nobody(&folder, &before).arg("--version")) {
        return;
    }
    let output = as_nobody(&folder, &before).args(["start", "--bind", "0.0.0.0:80"]).output().unwrap();
    let error = said(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for word in ["tcp://0.0.0.0:80", "Permission denied", "CAP_NET_BIND_SERVICE"] {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn files_that_may_not_be_read_are_named() {
    let folder = Folder::new();
    let output = run(&["start", "--config", &folder.0.join("").display().to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    if !may("drop its rights", as_nobody(&folder, &[]).arg("--version")) {
        return;
    }
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificates = folder.write("chain.pem", &made.cert.pem());
    let key = folder.write("chain.key", &made.signing_key.serialize_pem());
    let config = folder.write("server.yaml", "bind: ['127.0.0.1:0']\n");
    for path in [&key, &config] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let secret =
        ["start", "--bind", "tls://127.0.0.1:0", "--certificates", &certificates, "--private-key", &key];
    for (arguments, path) in [(&["start", "--config", &config][..], &config), (&secret, &key)] {
        let output = as_nobody(&folder, &[]).args(arguments).output().unwrap();
        let error = said(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(path) && error.contains("Permission denied"), "{path}: {error}");
    }
}

/// F71: whose socket it is.
#[tokio::test]
async fn sockets_that_are_left_are_replaced_and_all_else_at_the_path_is_left_alone() {
    let folder = Folder::new();
    let path = folder.path("sock");
    let endpoint = format!("unix://{path}");
    // Left by a process that was killed.
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(&["--bind", &endpoint]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let client = Client::connect(&endpoint).await.unwrap();
    assert_eq!(client.request("x").await.unwrap(), "x");

    fs::write(folder.path("file"), "precious").unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    std::os::unix::fs::symlink(&path, folder.path("link")).unwrap();
    let long = "x".repeat(120);
    for (name, words) in [
        ("sock", "another server listens there"),
        ("file", "exists and is not a socket"),
        ("folder", "exists and is not a socket"),
        ("link", "exists and is not a socket"),
        ("no/such/folder", "No such file"),
        (&long, "SUN_LEN"),
    ] {
        let endpoint = format!("unix://{}", folder.path(name));
        let output = run(&["start", "--bind", &endpoint]);
        let error = said(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(words) && error.contains(&endpoint), "{words}: {error}");
    }
    assert_eq!(fs::read_to_string(folder.path("file")).unwrap(), "precious");
    drop(server);
}

/// F53: those that stand go on, and accepting does when there are descriptors again.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_descriptor_nobody_comes_in_and_everybody_inside_goes_on() {
    let mut server = Server::start(&["--bind", "127.0.0.1:0"]);
    let client = server.client().await;
    client.request("x").await.unwrap();
    let pid = server.process.id();
    let limit = |most: u64| {
        let limit = format!("--nofile={most}:");
        let limited = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
        assert!(limited.success());
    };
    // Descriptors are given lowest first: none is below the first that is free.
    let is_free = |descriptor: &u64| !Path::new(&format!("/proc/{pid}/fd/{descriptor}")).exists();
    limit((0..).find(is_free).unwrap());
    let endpoint = server.endpoint("tcp").to_owned();
    let waiting = tokio::spawn(async move {
        let client = Client::builder().endpoint(&endpoint).connect_timeout_ms(60_000).timeout_ms(60_000);
        client.build().await.unwrap().request("y").await.unwrap()
    });
    server.wait_for_log("no descriptor is left");
    for _ in 0..100 {
        assert_eq!(client.request("x").await.unwrap(), "x");
    }
    limit(1024);
    assert_eq!(waiting.await.unwrap(), "y");
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0));
}

/// A file system in memory. Goes with its test.
struct SmallDisk(Folder);

impl SmallDisk {
    fn new() -> Option<Self> {
        let disk = Self(Folder::new());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&disk.0.0);
        may("mount a small disk", &mut mount).then_some(disk)
    }

    /// Until nothing more goes onto it.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.path("ballast")).unwrap();
        for size in [65_536, 1] {
            while file.write_all(&[0; 65_536][..size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0.0).output();
    }
}

/// F55: what cannot be recorded goes on or is refused, as the configuration says, and does again when it can.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_on_a_full_disk_does_what_is_configured() {
    for (on_failure, goes_on) in [("fail_open", true), ("fail_closed", false)] {
        let Some(disk) = SmallDisk::new() else { return };
        let folder = Folder::new();
        let audit = disk.0.path("audit.jsonl");
        let text = format!("bind: ['127.0.0.1:0']\naudit: {audit}\naudit_on_failure: {on_failure}\n");
        let file = folder.write("server.yaml", &text);
        let mut server = Server::start(&["--config", &file, "--admin", "127.0.0.1:0"]);
        let client = server.client().await;
        client.request("x").await.unwrap();
        disk.fill();
        let (caller, enough) = (client.clone(), Arc::new(AtomicBool::new(false)));
        let until = enough.clone();
        let calls = tokio::spawn(async move {
            let mut refused = 0;
            while !until.load(Relaxed) {
                refused += u32::from(caller.request("x").await.is_err());
                // What waits to be recorded is to have room afterwards.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            refused
        });
        server.wait_for_log("the audit cannot be written");
        let during = client.request("x").await;
        let probed = run(&["probe", &server.admin]);
        assert_eq!(probed.status.success(), goes_on, "{probed:?}");
        if !goes_on {
            assert!(
                String::from_utf8_lossy(&probed.stderr).contains("the audit cannot be written"),
                "{probed:?}"
            );
        }
        fs::remove_file(disk.0.path("ballast")).unwrap();
        server.wait_for_log("the audit is written again");
        assert!(run(&["probe", &server.admin]).status.success());
        enough.store(true, Relaxed);
        let refused = calls.await.unwrap();
        assert_eq!((during.is_ok(), refused == 0), (goes_on, goes_on), "{on_failure}: {refused} {during:?}");
        assert!(during.map_or_else(|status| status.code() == Code::Unavailable, |answer| answer == "x"));
        // Another one: the breaker of the first has seen refusals.
        assert_eq!(server.client().await.request("x").await.unwrap(), "x", "{on_failure}");
        server.signal("TERM");
        assert_eq!(server.ended().0, Some(0), "{on_failure}");
        let whole = fs::read_to_string(&audit).unwrap();
        let torn = whole.lines().find(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
        assert_eq!(torn, None, "{on_failure}");
    }
}

/// Nobody takes the log: the server goes on, and its exit code is still right.
#[tokio::test(flavor = "multi_thread")]
async fn logs_that_cannot_be_written_cost_no_call() {
    let start = |stderr: Stdio| -> (Child, String) {
        let mut command = binary();
        command.args(["start", "--bind", "127.0.0.1:0", "--log-level", "debug"]).stderr(stderr);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (process, line.split_whitespace().nth(1).expect(&line).to_owned())
    };
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for kind in ["full", "closed"] {
        let (mut process, endpoint) = start(if kind == "full" { full().into() } else { Stdio::piped() });
        drop(process.stderr.take());
        let client = Client::connect(&endpoint).await.unwrap();
        for _ in 0..100 {
            assert_eq!(client.request("x").await.unwrap(), "x", "{kind}");
        }
        let id = process.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
        assert_eq!(process.wait().unwrap().code(), Some(0), "{kind}");
    }
    // Nor are errors lost with their exit code, where there is nobody to tell.
    let wrong = ["start", "--bind", "tcp://"];
    assert_eq!(binary().args(wrong).stderr(full()).status().unwrap().code(), Some(2));
    let mut version = binary();
    assert_eq!(version.args(["config", "generate"]).stdout(full()).output().unwrap().status.code(), Some(1));
}
