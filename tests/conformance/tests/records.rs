//! Every row of records.json between a real client and a real server, for TLS and for a sealed session.

use std::{future::Future, time::Duration};

use valkyrie_conformance::{identity, records};
use valkyrie_sdk::{Client, EchoHandler, ServerBuilder, Status};

/// A hang is bounded far above anything that should take that long.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

// spec: W11-19
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_a_record_is_found() {
    let (certificates, key) = identity();
    let builder = ServerBuilder::new().bind("127.0.0.1:0").bind("tls://127.0.0.1:0");
    let builder =
        builder.identity(certificates.as_str(), key.as_str()).open_to_all(true).handler("/echo", EchoHandler);
    let server = builder.build().await.unwrap();
    let (endpoints, control) = (server.endpoints(), server.control());
    tokio::spawn(async move { server.start().await });
    let mut wrong = Vec::new();
    for row in records::rows() {
        for (scheme, sealed) in [("tls", false), ("tcp", true)] {
            let what = format!("{} ({})", row.case, if sealed { "sealed" } else { "tls" });
            let of = |endpoint: &&String| endpoint.starts_with(&format!("{scheme}:"));
            let target = endpoints.iter().find(of).unwrap().split_once("://").unwrap().1;
            let endpoint = format!("{scheme}://{}", records::wire(&row, target).unwrap());
            let called = async || {
                let builder = Client::builder().endpoint(&endpoint).sealed(sealed);
                let client = builder.trusted_certificates(certificates.as_str()).build().await?;
                let answer = client.request("hello").await?;
                client.close().await;
                Ok::<_, Status>(answer)
            };
            let first = bounded(&what, called()).await.map(|answer| answer == "hello");
            assert!(matches!(first, Ok(true)), "{what}: unchanged, {first:?}");
            let told = bounded(&what, called()).await;
            let reason = told.as_ref().map_or_else(|status| status.reason().name(), |_| "OK");
            if reason != row.reason {
                wrong.push(format!("{what}: {told:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    control.shutdown().await;
}
