//! Every case on every transport that Rust has. The other languages run the same cases from their own runners.

use valkyrie_conformance::{Absent, Settings, absent_udp, identity, methods, run};
use valkyrie_sdk::ServerBuilder;

const CASES: &str = include_str!("../cases.json");

async fn passes_on(scheme: &str, bind: String, absent: String) {
    passes(scheme, bind, absent, false).await;
}

async fn passes(scheme: &str, bind: String, absent: String, sealed: bool) {
    let (certificates, key) = identity();
    let builder =
        ServerBuilder::new().bind(bind).identity(certificates.as_str(), key.as_str()).open_to_all(true);
    let server = methods().register(builder).build().await.unwrap();
    let endpoint = server.endpoints().into_iter().find(|endpoint| endpoint.starts_with(scheme)).unwrap();
    let control = server.control();
    let serving = tokio::spawn(async move { server.start().await });
    let mut failed = Vec::new();
    let mut count = 0;
    run(&Settings { endpoint, absent, certificates: certificates.clone(), sealed }, CASES, |outcome| {
        count += 1;
        if !outcome.ok {
            failed.push(outcome.to_string());
        }
    })
    .await
    .unwrap();
    control.shutdown().await;
    serving.await.unwrap().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {count} cases failed on {scheme}:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert!(count >= 45, "{count} cases");
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_tcp() {
    let absent = Absent::new().unwrap();
    passes_on("tcp", "127.0.0.1:0".into(), format!("tcp://{}", absent.address().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_ws() {
    let absent = Absent::new().unwrap();
    passes_on("ws", "127.0.0.1:0".into(), format!("ws://{}", absent.address().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_tls() {
    let absent = Absent::new().unwrap();
    passes_on("tls", "tls://127.0.0.1:0".into(), format!("tls://{}", absent.address().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_wss() {
    let absent = Absent::new().unwrap();
    passes_on("wss", "tls://127.0.0.1:0".into(), format!("wss://{}", absent.address().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_in_sealed_sessions() {
    let absent = Absent::new().unwrap();
    passes("tcp", "127.0.0.1:0".into(), format!("tcp://{}", absent.address().unwrap()), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_quic() {
    let absent = absent_udp().unwrap();
    passes_on("quic", "quic://127.0.0.1:0".into(), format!("quic://{}", absent.local_addr().unwrap())).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_unix() {
    let path = std::env::temp_dir().join(format!("valkyrie-transports-{}", std::process::id()));
    let endpoint = format!("unix://{}", path.display());
    passes_on("unix", endpoint.clone(), format!("{endpoint}.absent")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_pass_on_memory() {
    passes_on("memory", "memory:transports".into(), "memory:nobody".into()).await;
}
