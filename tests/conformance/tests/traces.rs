//! What a client makes of each script in tests/traces: the trace that every language's package prints, too (`cargo xtask matrix`).
//! `VALKYRIE_BLESS=1` writes what this core says.

use std::{collections::BTreeSet, fs, path::PathBuf};

use valkyrie_conformance::{Settings, run};

#[tokio::test]
async fn each_script_has_its_trace() {
    let traces = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../traces");
    let scripts = fs::read_to_string(traces.join("scripts.json")).unwrap();
    let settings = Settings {
        endpoint: "script://a".into(),
        absent: String::new(),
        certificates: String::new(),
        sealed: false,
    };
    let mut said = Vec::new();
    run(&settings, &scripts, |outcome| said.push(outcome)).await.unwrap();
    assert!(said.len() >= 40, "{} scripts", said.len());
    let mut wrong = Vec::new();
    for outcome in &said {
        assert!(outcome.ok, "{}: {}", outcome.case, outcome.detail);
        let path = traces.join(format!("{}.txt", outcome.case));
        if std::env::var_os("VALKYRIE_BLESS").is_some() {
            fs::write(&path, &outcome.detail).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != outcome.detail {
            wrong.push(outcome.case.as_str());
        }
    }
    assert!(wrong.is_empty(), "other traces than tests/traces has (VALKYRIE_BLESS=1 writes them): {wrong:?}");
    let names: BTreeSet<_> = said.iter().map(|outcome| outcome.case.as_str()).collect();
    for file in fs::read_dir(&traces).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let named = name.strip_suffix(".txt").is_none_or(|name| names.contains(name));
        assert!(named, "no script is named as {name}");
    }
}

/// The same, on several threads at once: nothing of one script is in another's trace.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_know_nothing_of_each_other() {
    let call = |endpoint: &'static str| async move {
        let client = valkyrie_sdk::Client::connect(endpoint).await.unwrap();
        for _ in 0..100 {
            let _ = client.call("/echo", "x").await;
        }
        client.call("/script/trace", "").await.unwrap().message
    };
    let endpoints = ["script://a/2+=lose,script://b", "script://a,script://b/5+=hang@3ms;seed=9"];
    let alone = [call(endpoints[0]).await, call(endpoints[1]).await];
    let beside: Vec<_> = (0..16).map(|number| tokio::spawn(call(endpoints[number % 2]))).collect();
    for (number, trace) in beside.into_iter().enumerate() {
        assert_eq!(trace.await.unwrap(), alone[number % 2]);
    }
}
