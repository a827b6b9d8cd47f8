//! Policies, limits and the audit as servers use them. What a policy allows is data: `access.json`.
#![cfg(feature = "access")]

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use valkyrie_sdk::{
    CallOptions, Client, ClientBuilder, Code, EchoHandler, Principal, Reason, Reply, ServerBuilder,
    ServerControl, StaticTokens, Status, Time,
    access::{Access, Audit, Policy},
    handler_fn,
};

fn table() -> Value {
    serde_json::from_str(include_str!("access.json")).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("access-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn admit(access: &Access, principal: &Principal, method: &str, now: Time) -> Result<(), Status> {
    access.admit(principal, method, "memory:", 1, now, SystemTime::UNIX_EPOCH)
}

fn second(seconds: u64) -> Time {
    Time::default().after(Duration::from_secs(seconds))
}

#[test]
fn the_table_of_decisions() {
    let table = table();
    let mut rows = 0;
    for case in table["decisions"].as_array().unwrap() {
        let policy = &table["policies"][case["policy"].as_str().unwrap()];
        let policy = Policy::from_json(&policy.to_string()).unwrap();
        let roles = texts(&case["roles"]).into_iter().map(str::to_owned);
        let principal = Principal::new(case["principal"].as_str().unwrap()).with_roles(roles);
        for (list, allowed) in [("allowed", true), ("denied", false)] {
            for method in texts(&case[list]) {
                let rules = policy.rules();
                let decision = rules.decide(&principal, method);
                assert_eq!(decision.allowed, allowed, "{case}: {method:?} by {}", decision.rule());
                rows += 1;
            }
        }
    }
    assert!(rows >= 60, "{rows} rows");
}

#[test]
fn a_file_that_is_wrong_says_where_and_what() {
    for case in table()["refused"].as_array().unwrap() {
        let outcome = match (case["toml"].as_str(), case["json"].as_str()) {
            (Some(text), _) => Policy::from_toml(text),
            (_, text) => Policy::from_json(text.unwrap()),
        };
        let status = outcome.expect_err(&case.to_string());
        let message = status.message();
        let place = match case["key"].as_str() {
            Some(key) => format!("policy:{}: {key}: ", case["line"]),
            None => format!("policy:{}: ", case["line"]),
        };
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION, "{case}");
        assert!(message.starts_with(&place), "{case}: {message}");
        assert!(texts(&case["words"]).iter().all(|word| message.contains(word)), "{case}: {message}");
    }
    let many = |count: usize| {
        let roles: String = (0..count).map(|n| format!("[roles.r{n}]\n")).collect();
        let limits = "[[limits]]\nprincipals = ['*']\nper_second = 1\n".repeat(count);
        [format!("version = 1\n{roles}"), format!("version = 1\n{limits}")]
    };
    assert!(many(256).iter().all(|text| Policy::from_toml(text).is_ok()));
    for text in many(257) {
        assert!(Policy::from_toml(&text).unwrap_err().message().contains("more than 256"));
    }
    let deep = format!("version = 1\nroles = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(Policy::from_toml(&deep).is_err());
    let deep = format!("{{\"version\": 1, \"roles\": {}", "{\"a\":".repeat(10_000));
    assert!(Policy::from_json(&deep).is_err());
}

#[test]
fn a_file_is_found_by_its_name_and_has_a_bound() {
    let folder = folder("files");
    let said = |name: &str| Policy::from_file(folder.join(name)).unwrap_err().message().to_owned();
    assert!(said("policy.yaml").contains("name it .toml or .json"));
    assert!(said("absent.toml").contains("not found"));
    fs::create_dir(folder.join("folder.toml")).unwrap();
    assert!(said("folder.toml").ends_with("is not a file"));
    fs::write(folder.join("bytes.toml"), b"version = 1 # \xff").unwrap();
    assert!(said("bytes.toml").contains("UTF-8"));
    fs::write(folder.join("large.toml"), format!("version = 1\n{}", "#".repeat(1 << 20))).unwrap();
    assert!(said("large.toml").contains("longer than 1048576 bytes"));
    fs::write(folder.join("wrong.toml"), "version = 1\nx = 1").unwrap();
    assert!(said("wrong.toml").contains("wrong.toml:2: x: unknown field"));
}

#[test]
fn who_is_denied_is_told_what_and_not_why() {
    let access = Access::new(Policy::from_toml("version = 1\n[roles.secret]\ndeny = ['/a']\n").unwrap());
    let anonymous = admit(&access, &Principal::anonymous(), "/a", second(0)).unwrap_err();
    assert_eq!((anonymous.reason(), anonymous.code()), (Reason::UNAUTHENTICATED, Code::Unauthenticated));
    assert_eq!(anonymous.message(), "anonymous may not call /a: credentials are needed");
    let known = admit(&access, &Principal::new("sub:eve"), "/a", second(0)).unwrap_err();
    assert_eq!((known.reason(), known.code()), (Reason::PERMISSION_DENIED, Code::PermissionDenied));
    assert_eq!(known.message(), "sub:eve may not call /a");
    assert!(!anonymous.is_retryable() && !known.is_retryable());
}

const LIMITED: &str = "
version = 1
[roles.all]
allow = ['/*']
[[bindings]]
principals = ['*']
roles = ['all']
[[limits]]
principals = ['sub:*', 'anonymous']
methods = ['/a/*', '/b']
per_second = 3
burst = 2
[[quotas]]
principals = ['sub:alice']
calls = 4
seconds = 3600
";

#[test]
fn limits_are_each_principals_own_and_say_how_long_to_wait() {
    let access = Access::new(Policy::from_toml(LIMITED).unwrap());
    let (alice, bob) = (Principal::new("sub:alice"), Principal::new("sub:bob"));
    let wait = |who: &Principal, method: &str, now: u64| {
        let status = admit(&access, who, method, Time::from_micros(now)).err()?;
        assert_eq!((status.reason(), status.code()), (Reason::RATE_LIMITED, Code::ResourceExhausted));
        assert!(status.message().contains(who.id()) && status.message().contains(method), "{status}");
        status.pushback().map(|wait| wait.as_millis())
    };
    assert_eq!((wait(&alice, "/a/x", 0), wait(&alice, "/b", 0)), (None, None));
    // A third of a second is 333.3… ms, and after 334 there is a call.
    assert_eq!(wait(&alice, "/a/y", 0), Some(334));
    assert_eq!(wait(&alice, "/a/y", 333_333), Some(1));
    assert_eq!(wait(&alice, "/a/y", 334_000), None);
    assert_eq!((wait(&bob, "/b", 0), wait(&bob, "/b", 0), wait(&bob, "/b", 0)), (None, None, Some(334)));
    // What it does not name has no limit, and the quota counts it.
    assert_eq!((wait(&alice, "/c", 334_000), wait(&alice, "/c", 334_000)), (None, Some(3_599_666)));
    assert_eq!((0..100).map(|_| wait(&bob, "/c", 0)).max(), Some(None));
    assert_eq!(wait(&alice, "/c", 3_600_000_000), None);
    let uid = Principal::new("uid:0");
    assert_eq!((0..100).map(|_| wait(&uid, "/b", 0)).max(), Some(None));
    // What is denied costs nothing.
    let carol = Principal::new("sub:carol");
    assert!((0..9).all(|_| admit(&access, &carol, "/a//x", second(0)).is_err()));
    assert_eq!(
        (wait(&carol, "/b", 0), wait(&carol, "/b", 0), wait(&carol, "/b", 0)),
        (None, None, Some(334))
    );
}

fn allowing(method: &str) -> String {
    format!(
        "version = 1\n[roles.r]\nallow = ['{method}']\n[[bindings]]\nprincipals = ['sub:a']\nroles = ['r']\n"
    )
}

#[test]
fn a_changed_file_is_taken_once_it_stays_as_it_is() {
    let path = folder("settles").join("policy.toml");
    fs::write(&path, allowing("/old")).unwrap();
    let access = Access::new(Policy::from_file(&path).unwrap());
    let who = Principal::new("sub:a");
    let may = |method: &str, now: Time| admit(&access, &who, method, now).is_ok();
    assert!(may("/old", second(1)));
    fs::write(&path, allowing("/new")).unwrap();
    // Seen at the next look and taken at the one after it; in between nobody looks.
    assert!(may("/old", second(1)) && may("/old", second(2)) && may("/old", second(2)));
    assert!(may("/new", second(3)) && !may("/old", second(3)));
    // Half of a file that is well written too, each time another half: never taken.
    let long = allowing("/long");
    for (now, end) in (4..).zip(30..long.len()) {
        fs::write(&path, &long[..end]).unwrap();
        assert!(may("/new", second(now)));
    }
    // One that stays as it is, and is wrong: it changes nothing and is told.
    fs::write(&path, &long[..50]).unwrap();
    assert!(may("/new", second(1_000)) && access.policy_error().is_none());
    assert!(may("/new", second(1_001)));
    let error = access.policy_error().unwrap();
    assert!(error.message().contains("policy.toml:4: "), "{error}");
    assert!(access.reload().is_err());
    fs::remove_file(&path).unwrap();
    assert!(may("/new", second(1_002)) && may("/new", second(1_003)));
    assert!(access.policy_error().unwrap().message().contains("not found"));
    fs::write(&path, &long).unwrap();
    assert!(may("/new", second(1_004)) && may("/long", second(1_005)));
    assert_eq!(access.policy_error(), None);
}

#[cfg(unix)]
#[test]
fn a_symlink_and_a_file_can_be_swapped() {
    let folder = folder("swaps");
    for (name, method) in [("v1", "/one"), ("v2", "/two")] {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("policy.toml"), allowing(method)).unwrap();
    }
    let point = |to: &str| {
        std::os::unix::fs::symlink(to, folder.join("next")).unwrap();
        fs::rename(folder.join("next"), folder.join("current")).unwrap();
    };
    point("v1");
    let access = Access::new(Policy::from_file(folder.join("current/policy.toml")).unwrap());
    let who = Principal::new("sub:a");
    let may = |method: &str, now: u64| admit(&access, &who, method, second(now)).is_ok();
    assert!(may("/one", 1));
    point("v2");
    assert!(may("/one", 2) && may("/two", 3) && !may("/one", 3));
    point("v1");
    assert!(may("/two", 4) && may("/one", 5));
    fs::write(folder.join("v1/new"), allowing("/three")).unwrap();
    fs::rename(folder.join("v1/new"), folder.join("v1/policy.toml")).unwrap();
    assert!(may("/one", 6) && may("/three", 7));
}

/// Two linked things of a policy, the allowed method and its limit: no call may see them from different versions.
#[test]
fn a_thousand_reloads_tear_nothing() {
    let folder = folder("tears");
    let path = folder.join("policy.toml");
    let version = |number: u64| {
        let number = number % 50;
        let mut text = allowing(&format!("/v{number}"));
        text.push_str(&format!("[[quotas]]\nprincipals = ['sub:a']\nmethods = ['/v{number}']\n"));
        text.push_str(&format!("calls = {}\nseconds = 1\n", number + 1));
        fs::write(folder.join("next"), text).unwrap();
        fs::rename(folder.join("next"), &path).unwrap();
    };
    version(0);
    let access = Arc::new(Access::new(Policy::from_file(&path).unwrap()));
    let (done, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (access, done, looks) = (access.clone(), done.clone(), looks.clone());
            std::thread::spawn(move || {
                let who = Principal::new("sub:a");
                while !done.load(Relaxed) {
                    let rules = access.policy().rules();
                    let allowed: Vec<_> =
                        (0..50).filter(|n| rules.decide(&who, &format!("/v{n}")).allowed).collect();
                    assert_eq!(allowed.len(), 1, "{allowed:?}");
                    let text = format!("{rules:?}");
                    assert!(text.contains(&format!("calls: {},", allowed[0] + 1)), "{text}");
                    looks.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    for number in 1..1_000 {
        version(number);
        assert_eq!(access.reload(), Ok(true));
        assert_eq!(access.reload(), Ok(false));
    }
    // Somebody has looked after the last one.
    let before = looks.load(Relaxed);
    while looks.load(Relaxed) < before + 6 && !readers.iter().any(|reader| reader.is_finished()) {
        std::thread::yield_now();
    }
    done.store(true, Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert!(access.policy().rules().decide(&Principal::new("sub:a"), "/v49").allowed);
}

#[test]
fn a_reload_keeps_what_was_taken_of_limits_that_stay() {
    let path = folder("stays").join("policy.toml");
    fs::write(&path, LIMITED).unwrap();
    let access = Access::new(Policy::from_file(&path).unwrap());
    let who = Principal::new("sub:b");
    assert!(admit(&access, &who, "/b", second(0)).is_ok() && admit(&access, &who, "/b", second(0)).is_ok());
    fs::write(&path, LIMITED.replace("seconds = 3600", "seconds = 60")).unwrap();
    assert_eq!(access.reload(), Ok(true));
    assert_eq!(admit(&access, &who, "/b", second(0)).unwrap_err().reason(), Reason::RATE_LIMITED);
    fs::write(&path, LIMITED.replace("burst = 2", "burst = 1")).unwrap();
    assert_eq!(access.reload(), Ok(true));
    assert!(admit(&access, &who, "/b", second(0)).is_ok());
}

/// A server over memory whose callers show tokens: it has `/echo`, `/secret` and health.
async fn serve(name: &str, access: &Arc<Access>) -> (String, ServerControl) {
    let endpoint = format!("memory:access-{name}");
    let server = ServerBuilder::new()
        .bind(&endpoint)
        .authenticator(tokens())
        .gate(access.clone())
        .handler("/echo", EchoHandler)
        .handler("/secret", EchoHandler)
        .handler("/valkyrie.Health/Check", handler_fn(|_| async { Ok(Reply::message("serving")) }))
        .build()
        .await
        .unwrap();
    let control = server.control();
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

fn tokens() -> StaticTokens {
    let token = |tokens: StaticTokens, name: &str| {
        let who = Principal::new(&format!("sub:{name}"));
        tokens.token(format!("the token of {name}"), who).unwrap()
    };
    ["a", "b"].into_iter().fold(StaticTokens::new().unwrap(), token)
}

async fn client(endpoint: &str, name: Option<&str>) -> Client {
    let builder = ClientBuilder::new().endpoint(endpoint);
    match name {
        Some(name) => builder.token(format!("the token of {name}")),
        None => builder,
    }
    .build()
    .await
    .unwrap()
}

async fn outcome(client: &Client, method: &str) -> Reason {
    client.call(method, "hello").await.map_or_else(|status| status.reason(), |_| Reason::NONE)
}

#[tokio::test]
async fn a_server_without_a_policy_refuses_every_method_but_health() {
    let (endpoint, control) = serve("none", &Arc::new(Access::new(Policy::default()))).await;
    for (name, reason) in [(None, Reason::UNAUTHENTICATED), (Some("a"), Reason::PERMISSION_DENIED)] {
        let client = client(&endpoint, name).await;
        for method in ["/echo", "/secret", "/unknown", "/valkyrie.Health", "/valkyrie.Health/./Check"] {
            assert_eq!(outcome(&client, method).await, reason, "{method}");
        }
        assert_eq!(client.call("/valkyrie.Health/Check", "").await.unwrap().message, "serving");
    }
    control.shutdown_now();
}

/// A call that may be executed twice waits as long as the limit says, and is made then; one attempt alone is told so.
#[tokio::test]
async fn a_limits_pushback_is_obeyed() {
    let limits = "[[limits]]\nprincipals = ['sub:a']\nmethods = ['/echo']\nper_second = 10\nburst = 1\n";
    let access = Arc::new(Access::new(Policy::from_toml(&(allowing("/echo") + limits)).unwrap()));
    let (endpoint, control) = serve("pushback", &access).await;
    let client = client(&endpoint, Some("a")).await;
    let began = Instant::now();
    for _ in 0..4 {
        let options = CallOptions::new().with_idempotent(true);
        assert_eq!(client.call_with("/echo", "hello", options).await.unwrap().message, "hello");
    }
    // One at once, and each other a tenth of a second after the one before.
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let status = loop {
        if let Err(status) = client.call("/echo", "hello").await {
            break status;
        }
    };
    assert_eq!(status.reason(), Reason::RATE_LIMITED);
    assert!(status.pushback().is_some_and(|wait| wait <= Duration::from_millis(100)), "{status:?}");
    control.shutdown_now();
}

#[tokio::test]
async fn each_call_of_a_server_is_decided_by_the_policy_of_its_moment_and_recorded() {
    let folder = folder("server");
    let (path, log) = (folder.join("policy.toml"), folder.join("audit.log"));
    let version = |text: String| {
        fs::write(folder.join("next"), text).unwrap();
        fs::rename(folder.join("next"), &path).unwrap();
    };
    let limits = "[[quotas]]\nprincipals = ['sub:a']\nmethods = ['/echo']\ncalls = 2\nseconds = 3600\n";
    version(allowing("/echo") + limits);
    let audit = Audit::builder(&log).open().unwrap();
    let access = Arc::new(Access::new(Policy::from_file(&path).unwrap()).with_audit(audit));
    let (endpoint, control) = serve("server", &access).await;
    let client = client(&endpoint, Some("a")).await;
    // Their connection stands, and their credentials are decided on.
    assert_eq!(outcome(&client, "/echo").await, Reason::NONE);
    assert_eq!(outcome(&client, "/secret").await, Reason::PERMISSION_DENIED);
    version(allowing("/secret") + limits);
    assert_eq!(access.reload(), Ok(true));
    assert_eq!(outcome(&client, "/secret").await, Reason::NONE);
    assert_eq!(outcome(&client, "/echo").await, Reason::PERMISSION_DENIED);
    version("version = 1\nhalf".into());
    assert!(access.reload().is_err());
    assert_eq!(outcome(&client, "/secret").await, Reason::NONE);
    version(allowing("/*") + limits);
    assert_eq!(access.reload(), Ok(true));
    assert_eq!(outcome(&client, "/echo").await, Reason::NONE);
    let limited = client.request("once more").await.unwrap_err();
    assert_eq!(limited.reason(), Reason::RATE_LIMITED);
    assert!(limited.pushback().is_some_and(|wait| wait <= Duration::from_secs(3_600)), "{limited:?}");
    assert!(control.connections().iter().all(|connection| connection.calls == 7));

    assert!(access.audit().unwrap().flush());
    let text = fs::read_to_string(&log).unwrap();
    let mut verifier = valkyrie_sdk::access::AuditVerifier::new();
    verifier.file(text.as_bytes(), |line, what| panic!("{line} {what}")).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |record: &Value| {
        let part = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
        [part("event"), part("outcome"), part("method"), part("rule")].join(" ")
    };
    let expected = [
        "open opened - -",
        "credentials accepted - -",
        "call allowed /echo role r: allow /echo",
        "call denied /secret no rule allows it",
        "policy loaded - -",
        "call allowed /secret role r: allow /secret",
        "call denied /echo no rule allows it",
        "policy refused - -",
        "call allowed /secret role r: allow /secret",
        "policy loaded - -",
        "call allowed /echo role r: allow /*",
        "call limited /echo quota of sub:a on /echo: 2 in 3600 s",
    ];
    assert_eq!(records.iter().map(said).collect::<Vec<_>>(), expected);
    let calls =
        || records.iter().filter(|record| record["event"] == "call" || record["event"] == "credentials");
    assert!(calls().all(|record| record["principal"] == "sub:a" && record["peer"] == "memory:"), "{text}");
    let connections: std::collections::BTreeSet<_> =
        calls().map(|record| record["connection"].as_u64()).collect();
    assert_eq!((connections.len(), connections.contains(&None)), (1, false));
    control.shutdown_now();
}

#[tokio::test]
async fn refused_credentials_are_recorded_without_the_token() {
    let log = folder("refused").join("audit.log");
    let access = Arc::new(Access::new(Policy::default()).with_audit(Audit::builder(&log).open().unwrap()));
    let (endpoint, control) = serve("refused", &access).await;
    let client = ClientBuilder::new().endpoint(&endpoint).token("canary").lazy(true).build().await.unwrap();
    assert_eq!(outcome(&client, "/echo").await, Reason::CREDENTIALS_REFUSED);
    assert!(access.audit().unwrap().flush());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"event\":\"credentials\",\"outcome\":\"refused\""), "{text}");
    assert!(!text.contains("canary"), "{text}");
    control.shutdown_now();
}
