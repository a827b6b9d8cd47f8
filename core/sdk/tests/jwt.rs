//! What servers believe of tokens: the table of F60 in `jwt.json`, keys that come and go, and whatever a single byte changes.
#![cfg(feature = "access")]

mod random;
mod tokens;

use std::{
    collections::VecDeque,
    fs,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use valkyrie_sdk::{
    Authenticator, BoxFuture, JwksFetch, Jwt, JwtAlgorithm, JwtBuilder, Level, Log, Peer, PeerCertificate,
    Principal, Reason, Record, StaticTokens, Status,
};

use self::{random::Random, tokens::Table};

/// When these tests take place, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW + seconds)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn algorithm(name: &Value) -> JwtAlgorithm {
    match text(name) {
        "EdDSA" => JwtAlgorithm::EdDsa,
        "ES256" => JwtAlgorithm::Es256,
        "RS256" => JwtAlgorithm::Rs256,
        other => panic!("{other} is no algorithm of public keys"),
    }
}

/// An issuer with these keys of the table, as a row configures it.
fn issuer(table: &Table, keys: &[&str], config: &Value) -> JwtBuilder {
    let mut builder = JwtBuilder::new(text(&table.0["issuer"]), text(&table.0["audience"]));
    for name in keys {
        let key = &table.0["keys"][name];
        builder = builder.key_pem(name, algorithm(&key["alg"]), text(&key["pem"]));
    }
    for (option, value) in config.as_object().into_iter().flatten() {
        builder = match option.as_str() {
            "secret" => {
                let secret = text(&table.0["keys"]["hs"]["jwk"]["k"]);
                builder.hs256_secret("hs", data_encoding::BASE64URL_NOPAD.decode(secret.as_bytes()).unwrap())
            }
            "stranger" => {
                builder.key_pem("stranger", JwtAlgorithm::EdDsa, text(&table.0["keys"]["stranger"]["pem"]))
            }
            "typ" => builder.typ(text(value)),
            "any_typ" => builder.any_typ(),
            "leeway_s" => builder.leeway(Duration::from_secs(value.as_u64().unwrap())),
            "name" => builder.name(text(value)),
            "roles_claim" => builder.roles_claim(text(value)),
            other => panic!("{other} is no option"),
        };
    }
    builder
}

/// Authenticates what needs no waiting.
fn at_once(by: &dyn Authenticator, token: &[u8], peer: &Peer, now: SystemTime) -> Result<Principal, String> {
    match poll(&mut by.authenticate(token, peer, now)) {
        Poll::Ready(result) => result.map_err(|refusal| refusal.to_string()),
        Poll::Pending => panic!("it waits"),
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn every_row_of_the_table_is_accepted_or_refused_as_it_says() {
    let table = Table::read();
    let rows = table.0["rows"].as_array().unwrap();
    let mut wrong = Vec::new();
    for row in rows {
        let jwt = issuer(&table, &["ed", "ec", "rsa"], &row["config"]).build().unwrap();
        let mut peer = Peer::new("tcp://127.0.0.1:1");
        if row["certificate"] == true {
            let mut certificate = PeerCertificate::default();
            certificate.sha256 = [1; 32];
            peer.certificate = Some(Arc::new(certificate));
        }
        let token = table.token(row, NOW);
        let result = at_once(&jwt, &token, &peer, at(0));
        let as_it_says = match (&result, &row["accepted"]) {
            (Ok(principal), Value::String(id)) => {
                let roles: Vec<_> = row["roles"].as_array().into_iter().flatten().map(text).collect();
                principal.id() == id && principal.roles() == roles
            }
            (Err(refusal), Value::Null) => *refusal == format!("jwt: {}", text(&row["refused"])),
            _ => false,
        };
        if !as_it_says {
            wrong.push(format!("{}: {result:?}", row["name"]));
        }
        if let Err(refusal) = &result {
            keeps_to_itself(&token, refusal);
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows: {wrong:#?}", wrong.len(), rows.len());
    assert!(rows.len() >= 150, "{} rows", rows.len());
}

/// No refusal has a piece of the token in it, encoded or not.
#[track_caller]
fn keeps_to_itself(token: &[u8], refusal: &str) {
    let parts = token.split(|byte| *byte == b'.').take(2);
    let decoded = parts.filter_map(|part| data_encoding::BASE64URL_NOPAD.decode(part).ok());
    for text in decoded.chain([token.to_owned()]) {
        for piece in text.windows(10) {
            assert!(!refusal.as_bytes().windows(10).any(|other| other == piece), "{refusal}");
        }
    }
}

#[test]
fn a_principal_expires_with_its_token_and_not_later() {
    let table = Table::read();
    let jwt = issuer(&table, &["ed"], &Value::Null).build().unwrap();
    let peer = Peer::new("tcp://127.0.0.1:1");
    let token = table.token(&json!({"claims": {"exp": {"now": -10}}}), NOW);
    let principal = at_once(&jwt, &token, &peer, at(0)).unwrap();
    assert_eq!(principal.expires(), Some(UNIX_EPOCH + Duration::from_secs(NOW - 10)));
    // A part of a second counts.
    let last = at(20) - Duration::from_nanos(1);
    assert!(at_once(&jwt, &token, &peer, last).is_ok());
    assert!(at_once(&jwt, &token, &peer, at(20)).is_err());
    let before_time = UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(at_once(&jwt, &token, &peer, before_time), Err("jwt: the clock is before 1970".into()));
}

#[test]
fn no_byte_of_a_token_may_change() {
    let table = Table::read();
    let jwt = issuer(&table, &["ed", "ec", "rsa"], &json!({"secret": true})).build().unwrap();
    let peer = Peer::new("tcp://127.0.0.1:1");
    let mut random = Random::new();
    for key in ["ed", "ec", "rsa", "hs"] {
        let token = table.token(&json!({"key": key}), NOW);
        assert!(at_once(&jwt, &token, &peer, at(0)).is_ok());
        for place in 0..token.len() {
            let mut other = token.clone();
            other[place] ^= 1 + random.below(255) as u8;
            assert!(at_once(&jwt, &other, &peer, at(0)).is_err(), "{key}, byte {place}");
            // The same, and the text stays base64url.
            let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.";
            other[place] = letters[random.below(letters.len())];
            assert!(other == token || at_once(&jwt, &other, &peer, at(0)).is_err(), "{key}, byte {place}");
        }
        for _ in 0..200 {
            let (mut other, place) = (token.clone(), random.below(token.len()));
            match random.below(3) {
                0 => drop(other.remove(place)),
                1 => other.insert(place, b"Aa9-_.="[random.below(7)]),
                _ => other.truncate(place),
            }
            // What was put in or taken out may be the neighbour's twin.
            assert!(other == token || at_once(&jwt, &other, &peer, at(0)).is_err(), "{key}, byte {place}");
        }
    }
}

#[track_caller]
fn refused<T>(result: Result<T, Status>, words: &str) {
    let Err(status) = result else { panic!("it is accepted, and not refused with {words:?}") };
    assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION);
    assert!(status.message().contains(words), "{}", status.message());
}

#[test]
fn keys_that_prove_nothing_are_refused() {
    let table = Table::read();
    for key in table.0["bad_keys"].as_array().unwrap() {
        let name = text(&key["name"]);
        if let Some(pem) = key["pem"].as_str() {
            let builder = issuer(&table, &["ec"], &Value::Null).key_pem("bad", algorithm(&key["alg"]), pem);
            refused(builder.build(), &format!("key \"bad\" {}", text(&key["refused"])));
        }
        if key["jwk"].is_null() {
            continue;
        }
        // One of a set is passed over, beside a good one of whatever algorithm.
        let mut jwk = key["jwk"].clone();
        jwk["kid"] = json!("bad");
        let alone = json!({"keys": [jwk]}).to_string();
        refused(issuer(&table, &[], &Value::Null).jwks(alone).build(), "has no key that verifies");
        let set = json!({"keys": [jwk, public(&table, "ed")]}).to_string();
        let jwt = issuer(&table, &[], &Value::Null).jwks(set).build().unwrap();
        let token = table.token(&json!({"header": {"kid": "bad"}}), NOW);
        let result = at_once(&jwt, &token, &Peer::new("tcp://127.0.0.1:1"), at(0));
        assert_eq!(result, Err("jwt: kid is no key of the issuer".into()), "{name}");
    }
}

#[test]
fn a_builder_says_what_is_wrong_and_what_to_give() {
    let table = Table::read();
    let good = || issuer(&table, &["ed"], &Value::Null);
    let set = |keys: Value| JwtBuilder::new("i", "a").jwks(json!({ "keys": keys }).to_string()).build();
    let ed = public(&table, "ed");
    refused(JwtBuilder::new("", "orders").build(), "must not be empty");
    refused(JwtBuilder::new("issuer", "").build(), "must not be empty");
    refused(JwtBuilder::new("issuer", "orders").build(), "\"issuer\" has no keys; give a key");
    refused(good().leeway(Duration::from_secs(301)).build(), "leeway 301s exceeds 5 min");
    refused(good().roles_claim("exp").build(), "claim \"exp\" cannot have the roles");
    refused(good().name("a b").build(), "issuer name \"a b\" is not");
    refused(good().name("").build(), "issuer name \"\" is not");
    refused(
        good().hs256_secret("hs", "0123456789012345678901234567890").build(),
        "has 31 bytes; give at least 32",
    );
    refused(
        good().key_pem("ed", JwtAlgorithm::EdDsa, text(&table.0["keys"]["ed"]["pem"])).build(),
        "two keys are \"ed\"",
    );
    refused(
        good().key_file("x", JwtAlgorithm::EdDsa, "/nonexistent.pem").build(),
        "key /nonexistent.pem cannot be read",
    );
    refused(good().jwks_file("/nonexistent.json").build(), "key set /nonexistent.json cannot be read");
    refused(good().jwks_file("/").build(), "key set / is not a file");
    refused(good().jwks("[]").build(), "key set is not a JSON object");
    refused(good().jwks("{}").build(), "key set has no list \"keys\"");
    refused(good().jwks("{\"keys\":[], \"keys\":[]}").build(), "key set has a member twice");
    refused(good().jwks(" ".repeat((256 << 10) + 1)).build(), "key set has 262145 bytes, more than 262144");
    refused(set(json!([1])), "has a key that is no object");
    refused(set(json!([ed, ed])), "has two keys \"ed\"");
    refused(set(Value::Array(vec![json!({"kty": "oct"}); 65])), "has more than 64 keys");
    refused(good().jwks_from(Script::default()).jwks_from(Script::default()).build(), "come from one place");
    // Sixty-four are fine, whatever they are, and so is one that is too long by none.
    let mut many = vec![json!({"kty": "oct"}); 63];
    many.push(ed);
    assert!(set(Value::Array(many)).is_ok());
    let secret = "canary-canary-canary-canary-canary";
    let jwt = good().hs256_secret("hs", secret).build().unwrap();
    assert!(!format!("{jwt:?}").contains("canary"));
}

#[test]
fn several_issuers_keep_their_keys_and_their_subjects_apart() {
    let table = Table::read();
    let peer = Peer::new("tcp://127.0.0.1:1");
    let other = |name: Option<&str>| {
        let stranger = &table.0["keys"]["stranger"];
        let builder = JwtBuilder::new("https://corp.example", "orders");
        // Its key has the name of the other's.
        let builder = builder.key_pem("ed", JwtAlgorithm::EdDsa, text(&stranger["pem"]));
        name.map_or(builder, |name| {
            JwtBuilder::new("https://corp.example", "orders")
                .key_pem("ed", JwtAlgorithm::EdDsa, text(&stranger["pem"]))
                .name(name)
        })
        .build()
        .unwrap()
    };
    let first = || issuer(&table, &["ed"], &Value::Null).build().unwrap();
    refused(first().and(other(None)), "would have the same principals");
    refused(first().and(first()), "is configured twice");
    let both = first().and(other(Some("corp"))).unwrap();
    let token = |iss: &str, sign: &str| {
        table.token(&json!({"claims": {"iss": iss, "sub": "root"}, "sign": sign}), NOW)
    };
    let ours = "https://issuer.example";
    let theirs = "https://corp.example";
    let id = |token: &[u8]| at_once(&both, token, &peer, at(0)).map(|principal| principal.id().to_owned());
    assert_eq!(id(&token(ours, "ed")), Ok("sub:root".into()));
    assert_eq!(id(&token(theirs, "stranger")), Ok("sub@corp:root".into()));
    for forged in [token(ours, "stranger"), token(theirs, "ed")] {
        assert_eq!(id(&forged), Err("jwt: the signature is wrong".into()));
    }
}

/// The public half of a key of the table as a member of a set.
fn public(table: &Table, name: &str) -> Value {
    let mut jwk = table.0["keys"][name]["jwk"].clone();
    for private in ["d", "p", "q", "dp", "dq", "qi"] {
        jwk.as_object_mut().unwrap().remove(private);
    }
    jwk["kid"] = json!(name);
    jwk["use"] = json!("sig");
    jwk
}

fn published(table: &Table, names: &[&str]) -> Result<Vec<u8>, String> {
    let keys: Vec<_> = names.iter().map(|name| public(table, name)).collect();
    Ok(json!({ "keys": keys }).to_string().into_bytes())
}

/// A place of keys that does what a test says.
#[derive(Clone)]
struct Script(Arc<Scripted>);

struct Scripted {
    answers: Mutex<VecDeque<Result<Vec<u8>, String>>>,
    asked: AtomicUsize,
    /// Each answer takes one.
    permits: Semaphore,
}

impl Default for Script {
    fn default() -> Self {
        let scripted = Scripted {
            answers: Mutex::default(),
            asked: AtomicUsize::new(0),
            permits: Semaphore::new(1_000),
        };
        Self(Arc::new(scripted))
    }
}

impl Script {
    fn answers(answers: impl IntoIterator<Item = Result<Vec<u8>, String>>) -> Self {
        let script = Self::default();
        script.0.answers.lock().unwrap().extend(answers);
        script
    }

    /// The same, which keeps whoever asks waiting.
    fn closed(self) -> Self {
        self.0.permits.forget_permits(1_000);
        self
    }

    fn asked(&self) -> usize {
        self.0.asked.load(SeqCst)
    }
}

impl JwksFetch for Script {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        self.0.asked.fetch_add(1, SeqCst);
        Box::pin(async move {
            self.0.permits.acquire().await.unwrap().forget();
            self.0.answers.lock().unwrap().pop_front().expect("an answer that the test expects")
        })
    }
}

/// A server whose keys come from a script.
struct Fetching {
    table: Table,
    script: Script,
    jwt: Jwt,
    peer: Peer,
}

impl Fetching {
    fn new(script: Script) -> Self {
        let table = Table::read();
        let jwt = issuer(&table, &[], &Value::Null).jwks_from(script.clone()).build().unwrap();
        Self { table, script, jwt, peer: Peer::new("tcp://127.0.0.1:1") }
    }

    /// A token by that key, valid for a day from `at(0)`.
    fn token(&self, key: &str) -> Vec<u8> {
        self.table.token(&json!({"key": key, "claims": {"exp": {"now": 86_400}}}), NOW)
    }

    async fn check(&self, key: &str, seconds: u64) -> Result<(), String> {
        let token = self.token(key);
        let result = self.jwt.authenticate(&token, &self.peer, at(seconds)).await;
        result.map(drop).map_err(|refusal| refusal.to_string())
    }
}

const UNKNOWN: &str = "jwt: kid is no key of the issuer";

#[tokio::test]
async fn keys_are_rotated_with_overlap_and_an_old_one_holds_while_it_is_listed() {
    let table = Table::read();
    let sets = [&["ed"][..], &["ed", "ec"], &["ec"]];
    let server = Fetching::new(Script::answers(sets.map(|names| published(&table, names))));
    assert_eq!(server.check("ed", 0).await, Ok(()));
    // Nothing is asked while what is known will do.
    for second in 1..300 {
        assert_eq!(server.check("ed", second).await, Ok(()));
    }
    assert_eq!(server.script.asked(), 1);
    // The new key is there at once, and the old one still is.
    assert_eq!(server.check("ec", 299).await, Ok(()));
    assert_eq!(server.check("ed", 299).await, Ok(()));
    assert_eq!(server.script.asked(), 2);
    // What is no longer listed no longer holds, 5 min later at most.
    assert_eq!(server.check("ed", 598).await, Ok(()));
    assert_eq!(server.check("ed", 599).await, Err(UNKNOWN.into()));
    assert_eq!(server.check("ec", 599).await, Ok(()));
    assert_eq!(server.script.asked(), 3);
}

#[tokio::test]
async fn a_flood_of_unknown_kids_asks_once_in_30_s() {
    let table = Table::read();
    let server = Fetching::new(Script::answers((0..5).map(|_| published(&table, &["ed"]))));
    for tenth in 0..1_200 {
        let kid = format!("random-{tenth}");
        let token = table.token(&json!({"header": {"kid": kid}, "claims": {"exp": {"now": 86_400}}}), NOW);
        let now = at(0) + Duration::from_millis(100) * tenth;
        let result = server.jwt.authenticate(&token, &server.peer, now).await;
        assert_eq!(result.unwrap_err().0, UNKNOWN);
    }
    // At 0, 30, 60 and 90 s.
    assert_eq!(server.script.asked(), 4);
    // Whoever is known is served meanwhile, and tokens of others ask nothing.
    assert_eq!(server.check("ed", 125).await, Ok(()));
    let foreign =
        table.token(&json!({"header": {"kid": "x"}, "claims": {"iss": "https://evil.example"}}), NOW);
    assert!(server.jwt.authenticate(&foreign, &server.peer, at(200)).await.is_err());
    let unsigned = table.token(&json!({"header": {"kid": "x", "alg": "none"}}), NOW);
    assert!(server.jwt.authenticate(&unsigned, &server.peer, at(200)).await.is_err());
    assert_eq!(server.script.asked(), 4);
}

#[tokio::test]
async fn the_last_keys_hold_for_an_hour_while_their_place_is_down() {
    let table = Table::read();
    let mut answers = vec![published(&table, &["ed"])];
    answers.extend((0..3).map(|_| Err("connection refused".to_owned())));
    // A document that does not read is no better than none.
    answers.extend([Ok(b"<html>".to_vec()), published(&table, &["ec"])]);
    let server = Fetching::new(Script::answers(answers));
    assert_eq!(server.check("ed", 0).await, Ok(()));
    assert_eq!(server.check("ed", 300).await, Ok(()));
    assert_eq!(server.check("ed", 329).await, Ok(()));
    assert_eq!(server.script.asked(), 2);
    assert_eq!(server.check("ed", 330).await, Ok(()));
    assert_eq!(server.script.asked(), 3);
    assert_eq!(server.check("ed", 3_600).await, Ok(()));
    let late = server.check("ed", 3_601).await;
    assert_eq!(late, Err("jwt: the issuer's keys are older than 1 h: connection refused".into()));
    let late = server.check("ed", 3_630).await;
    assert_eq!(late, Err("jwt: the issuer's keys are older than 1 h: the key set is not JSON".into()));
    assert_eq!(server.check("ec", 3_660).await, Ok(()));
    assert_eq!(server.script.asked(), 6);
}

#[tokio::test]
async fn a_place_that_was_never_up_lets_nobody_in_and_is_asked_again() {
    let table = Table::read();
    let server = Fetching::new(Script::answers([Err("no route".into()), published(&table, &["ed"])]));
    for second in [0, 1, 29] {
        let refusal = "jwt: the issuer's keys are not known: no route";
        assert_eq!(server.check("ed", second).await, Err(refusal.into()));
    }
    assert_eq!(server.script.asked(), 1);
    assert_eq!(server.check("ed", 30).await, Ok(()));
}

#[tokio::test]
async fn many_that_come_at_once_wait_for_one_answer() {
    let table = Table::read();
    let server = Fetching::new(Script::answers([published(&table, &["ed"])]).closed());
    let token = server.token("ed");
    let mut waiting: Vec<_> =
        (0..100).map(|_| server.jwt.authenticate(&token, &server.peer, at(0))).collect();
    for future in &mut waiting {
        assert!(poll(future).is_pending());
    }
    server.script.0.permits.add_permits(1);
    for future in waiting {
        assert!(future.await.is_ok());
    }
    assert_eq!(server.script.asked(), 1);
}

#[tokio::test]
async fn who_leaves_at_once_does_not_keep_keys_from_coming() {
    let table = Table::read();
    let server = Fetching::new(Script::answers([published(&table, &["ed"])]).closed());
    {
        let token = server.token("stranger");
        let mut leaving = pin!(server.jwt.authenticate(&token, &server.peer, at(0)));
        assert!(poll(&mut leaving).is_pending());
    }
    server.script.0.permits.add_permits(1);
    assert_eq!(server.check("ed", 1).await, Ok(()));
    assert_eq!(server.script.asked(), 1);
}

#[tokio::test]
async fn a_place_that_never_answers_keeps_nobody_for_ever() {
    let server = Fetching::new(Script::default().closed());
    let refusal = "jwt: the issuer's keys are not known: no answer within 5 s";
    let checked = tokio::time::timeout(Duration::from_secs(100), server.check("ed", 0)).await;
    assert_eq!(checked.expect("an end"), Err(refusal.into()));
}

/// Keeps what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<Record>>);

impl Log for Told {
    fn enabled(&self, level: Level) -> bool {
        level <= Level::Warn
    }

    fn log(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

#[tokio::test]
async fn a_place_that_is_down_is_told_of_once_before_its_keys_are_too_old() {
    let table = Table::read();
    let down = || Err("connection refused".to_owned());
    let up = || published(&table, &["ed"]);
    let script = Script::answers([up(), down(), down(), up(), down(), Err("no route".into())]);
    let told = Arc::new(Told::default());
    let jwt = issuer(&table, &[], &Value::Null).jwks_from(script.clone()).log(told.clone()).build().unwrap();
    let server = Fetching { jwt, ..Fetching::new(script) };
    for (seconds, records) in [(0, 0), (300, 1), (330, 1), (360, 1), (659, 1), (660, 2), (690, 3)] {
        assert_eq!(server.check("ed", seconds).await, Ok(()));
        assert_eq!(told.0.lock().unwrap().len(), records, "at {seconds} s");
    }
    let first = &told.0.lock().unwrap()[0];
    assert_eq!(
        (first.level, first.target, &*first.message),
        (Level::Warn, "valkyrie.jwt", "connection refused")
    );
    assert_eq!(first.fields, [("issuer", "https://issuer.example".to_owned())]);
}

#[tokio::test]
async fn a_fetch_that_panics_has_ended() {
    let table = Table::read();
    // There is no answer yet, which the script panics about.
    let server = Fetching::new(Script::default());
    let refusal = "jwt: the issuer's keys are not known: fetching them has panicked";
    assert_eq!(server.check("ed", 0).await, Err(refusal.into()));
    *server.script.0.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
        [published(&table, &["ed"])].into();
    server.script.0.answers.clear_poison();
    assert_eq!(server.check("ed", 29).await, Err(refusal.into()));
    assert_eq!(server.check("ed", 30).await, Ok(()));
}

#[tokio::test]
async fn a_clock_that_was_set_back_stops_nothing() {
    let table = Table::read();
    let server = Fetching::new(Script::answers((0..3).map(|_| published(&table, &["ed"]))));
    assert_eq!(server.check("ed", 80_000).await, Ok(()));
    assert_eq!(server.check("ed", 0).await, Ok(()));
    assert_eq!(server.check("ec", 29).await, Err(UNKNOWN.into()));
    assert_eq!(server.script.asked(), 1);
    assert_eq!(server.check("ec", 30).await, Err(UNKNOWN.into()));
    assert_eq!(server.script.asked(), 2);
    assert_eq!(server.check("ed", 330).await, Ok(()));
    assert_eq!(server.script.asked(), 3);
}

#[test]
fn fetching_needs_a_runtime_and_says_so() {
    let server = Fetching::new(Script::default());
    let refusal = "jwt: the issuer's keys are not known: there is no tokio runtime to fetch them on";
    assert_eq!(at_once(&server.jwt, &server.token("ed"), &server.peer, at(0)), Err(refusal.into()));
}

#[test]
fn a_file_of_keys_is_read_again_when_it_changes() {
    let table = Table::read();
    let folder = std::env::temp_dir().join(format!("valkyrie-jwt-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("keys.json");
    let write = |document: &[u8], changed: u64| {
        fs::write(&path, document).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(at(changed)).unwrap();
    };
    let peer = Peer::new("tcp://127.0.0.1:1");
    let token = |key: &str| table.token(&json!({"key": key, "claims": {"exp": {"now": 86_400}}}), NOW);
    write(&published(&table, &["ed"]).unwrap(), 0);
    let jwt = issuer(&table, &[], &Value::Null).jwks_file(&path).build().unwrap();
    let check = |key: &str, seconds: u64| at_once(&jwt, &token(key), &peer, at(seconds)).map(drop);
    assert_eq!(check("ed", 0), Ok(()));
    write(&published(&table, &["ec"]).unwrap(), 1);
    // It was looked at in this second.
    assert_eq!(check("ec", 0), Err(UNKNOWN.into()));
    assert_eq!(check("ec", 1), Ok(()));
    assert_eq!(check("ed", 1), Err(UNKNOWN.into()));
    // While it does not read, its last keys hold for an hour.
    write(b"{", 2);
    assert_eq!(check("ec", 2), Ok(()));
    assert_eq!(check("ec", 3_601), Ok(()));
    let refusal = check("ec", 3_602).unwrap_err();
    assert!(refusal.starts_with("jwt: the issuer's keys are older than 1 h: key set "), "{refusal}");
    assert!(refusal.ends_with("keys.json is not JSON"), "{refusal}");
    fs::remove_file(&path).unwrap();
    let refusal = check("ec", 3_603).unwrap_err();
    assert!(refusal.contains("keys.json cannot be read"), "{refusal}");
    write(&published(&table, &["ed"]).unwrap(), 3);
    assert_eq!(check("ed", 3_604), Ok(()));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn static_tokens_stand_for_their_principals_on_this_machine() {
    let writer = Principal::new("sub:dev").with_roles(["writer".to_owned()]);
    let tokens = StaticTokens::new().unwrap().token("let-me-in", writer.clone()).unwrap();
    let tokens = tokens.token("me-too", Principal::new("sub:other")).unwrap();
    let check = |token: &str, from: &str| at_once(&tokens, token.as_bytes(), &Peer::new(from), at(0));
    for here in [
        "unix:",
        "memory:",
        "tcp://127.0.0.1:5",
        "tcp://[::1]:5",
        "ws://127.1.2.3:5",
        "tcp://[::ffff:127.0.0.1]:5",
    ] {
        assert_eq!(check("let-me-in", here), Ok(writer.clone()), "{here}");
    }
    assert_eq!(check("me-too", "unix:").unwrap().id(), "sub:other");
    for token in ["", "let-me-i", "let-me-in ", "Let-me-in", "let-me-inme-too"] {
        assert_eq!(check(token, "unix:"), Err("static tokens: the token is not listed".into()));
    }
    assert_eq!(check(&"x".repeat(8_193), "unix:"), Err("static tokens: the token is too long".into()));
    for there in [
        "tcp://10.0.0.1:5",
        "ws://[2001:db8::1]:5",
        "tcp://localhost:5",
        "tcp://127.0.0.1.evil.example:5",
        "",
        "nonsense",
    ] {
        let refusal = "static tokens: static tokens are taken from this machine only";
        assert_eq!(check("let-me-in", there), Err(refusal.into()), "{there}");
    }
    assert!(!format!("{tokens:?}").contains("let-me-in"));
}

#[test]
fn static_tokens_from_elsewhere_are_long() {
    let new = || StaticTokens::new().unwrap();
    let anyone = || Principal::new("sub:dev");
    let long = "0123456789abcdef0123456789abcdef";
    refused(new().token("", anyone()), "has 0 bytes; give 1 to 8192");
    refused(
        new().token("a", anyone()).unwrap().token("a", Principal::new("b")),
        "is another principal's too",
    );
    refused(new().token("short", anyone()).unwrap().allow_remote(), "has 5 bytes; from elsewhere");
    refused(new().allow_remote().unwrap().token("short", anyone()), "has 5 bytes; from elsewhere");
    let tokens = new().token(long, anyone()).unwrap().allow_remote().unwrap();
    assert!(at_once(&tokens, long.as_bytes(), &Peer::new("tcp://10.0.0.1:5"), at(0)).is_ok());
    let mut many = new();
    for index in 0..1_024 {
        many = many.token(format!("token-{index}"), anyone()).unwrap();
    }
    refused(many.token("one-more", anyone()), "more than 1024 static tokens");
}

#[test]
fn the_first_authenticator_that_accepts_decides() {
    let table = Table::read();
    let peer = Peer::new("unix:");
    let tokens = StaticTokens::new().unwrap().token("let-me-in", Principal::new("sub:dev")).unwrap();
    let both: Vec<Box<dyn Authenticator>> =
        vec![Box::new(issuer(&table, &["ed"], &Value::Null).build().unwrap()), Box::new(tokens)];
    assert_eq!(at_once(&both, b"let-me-in", &peer, at(0)).unwrap().id(), "sub:dev");
    let token = table.token(&json!({}), NOW);
    assert_eq!(at_once(&both, &token, &peer, at(0)).unwrap().id(), "sub:alice");
    let refusal = "jwt: the token does not have three parts; static tokens: the token is not listed";
    assert_eq!(at_once(&both, b"open sesame", &peer, at(0)), Err(refusal.into()));
    assert_eq!(at_once(&Vec::new(), &token, &peer, at(0)), Err(String::new()));
}
