//! The configuration of a server that runs: by its file, by SIGHUP, and while it drains.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use valkyrie_sdk::{Client, Reason};

use super::{Folder, Server, open_echo, run};

/// Calls that are made meanwhile, at least.
const CALLS: usize = 10_000;

async fn has_metrics(client: &Client) -> bool {
    match client.call("/valkyrie.Metrics/Get", "").await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.reason(), Reason::UNKNOWN_METHOD, "{status}");
            false
        }
    }
}

/// N5: no call fails while the file is changed under load, and what is new is in force within a second (printed; on this machine's word only).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n5_a_changed_file_is_in_force_under_load_and_no_call_fails() {
    let folder = Folder::new();
    let file = folder.write("server.yaml", "bind: ['127.0.0.1:0']\nmetrics: true\n");
    let mut server = Server::start(&["--config", &file]);
    let client = server.client().await;
    let (calls, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = Vec::new();
    for _ in 0..8 {
        let (calls, done, client) = (calls.clone(), done.clone(), server.client().await);
        callers.push(tokio::spawn(async move {
            while !done.load(Relaxed) || calls.load(Relaxed) < CALLS {
                assert_eq!(client.request("under load").await.unwrap(), "under load");
                calls.fetch_add(1, Relaxed);
            }
        }));
    }
    for round in 0..3 {
        let on = round % 2 == 1;
        let before = calls.load(Relaxed);
        let began = Instant::now();
        folder.write("server.yaml", &format!("bind: ['127.0.0.1:0']\nmetrics: {on}\n"));
        while has_metrics(&client).await != on {
            tokio::task::yield_now().await;
        }
        println!("in force after {:?}, {} calls meanwhile", began.elapsed(), calls.load(Relaxed) - before);
    }
    done.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(calls.load(Relaxed) >= CALLS);
    server.signal("TERM");
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("the configuration has changed key=\"metrics\"").count(), 3, "{log}");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_what_needs_a_restart_is_named() {
    let folder = Folder::new();
    let good = "bind: ['127.0.0.1:0']\nmax_message_bytes: 70000\n";
    let file = folder.write("server.yaml", good);
    let mut server = Server::start(&["--config", &file]);
    let client = server.client().await;
    // The first loop of the server may not have begun: SIGHUP is read when it has.
    folder.write("server.yaml", "metrics: false\ndrain_timeout_ms: soon\n");
    server.signal("HUP");
    let said = server.wait_for_log("refused");
    for words in [&format!("{file}:2:1: drain_timeout_ms: ") as &str, "soon", "stays in force, whole"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(has_metrics(&client).await);
    folder.write("server.yaml", "bind: ['127.0.0.1:0']\nmax_message_bytes: 80000\nlog_level: debug\n");
    server.signal("HUP");
    let said = server.wait_for_log("needs a restart");
    assert!(said.contains("max_message_bytes") && said.contains("70000") && said.contains("80000"), "{said}");
    server.wait_for_log("configuration loaded");
    client.request("x").await.unwrap();
    server.wait_for_log("call ended");
    // While it drains, too.
    let (mut send, mut recv) = open_echo(&client).await;
    server.signal("TERM");
    server.wait_for_log("draining");
    folder.write("server.yaml", &good.replace("70000", "90000"));
    server.signal("HUP");
    server.wait_for_log("configuration loaded");
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap(), None);
    assert_eq!(server.ended().0, Some(0));
}

/// By call: who asks is told what came of it.
#[tokio::test]
async fn who_asks_for_a_reload_is_told_what_changed_and_what_is_wrong() {
    let folder = Folder::new();
    let good = "bind: ['127.0.0.1:0']\n";
    let file = folder.write("server.yaml", &format!("{good}metrics: true\n"));
    let mut server = Server::start(&["--config", &file, "--admin", "127.0.0.1:0"]);
    let client = server.client().await;
    let reload = || {
        let output = run(&["reload", &server.admin]);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(reload(), (Some(0), "nothing changed\n".into(), String::new()));
    folder.write("server.yaml", &format!("{good}metrics: false\nmax_message_bytes: 70000\n"));
    let (code, told, _) = reload();
    assert_eq!(code, Some(0));
    // The server may have looked by itself in between.
    if told != "nothing changed\n" {
        let lines = "metrics: true -> false\n\
                     max_message_bytes: 4194304 stays until a restart, then 70000\n";
        let sorted = |text: &str| {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        assert_eq!(sorted(&told), sorted(lines));
    }
    assert!(!has_metrics(&client).await);
    folder.write("server.yaml", &format!("{good}metrics: perhaps\n"));
    let (code, _, told) = reload();
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains(&format!("{file}:2:1: metrics: ")) && told.contains("\"perhaps\""), "{told}");
    assert!(!has_metrics(&client).await);
    folder.write("server.yaml", good);
    assert_eq!(reload().0, Some(0));
    assert!(has_metrics(&client).await);
    server.signal("TERM");
    assert_eq!(server.ended().0, Some(0));
    let output = run(&["reload", &server.admin]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[tokio::test]
async fn a_reload_by_call_reads_the_policy_again() {
    let folder = Folder::new();
    let rules = |method: &str| {
        format!(
            "version = 1\n[roles.all]\nallow = [\"{method}\"]\n[[bindings]]\nprincipals = [\"*\"]\nroles = [\"all\"]\n"
        )
    };
    let policy = folder.write("policy.toml", &rules("/echo"));
    let file = format!("bind: ['127.0.0.1:0']\npolicy: {policy}\n");
    let file = folder.write("server.yaml", &file);
    let server = Server::start(&["--config", &file, "--admin", "127.0.0.1:0"]);
    folder.write("policy.toml", "version = 1\n[roles.all]\nalow = []\n");
    let output = run(&["reload", &server.admin]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("policy.toml:3"), "{output:?}");
    folder.write("policy.toml", &rules("/*"));
    let output = run(&["reload", &server.admin]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
