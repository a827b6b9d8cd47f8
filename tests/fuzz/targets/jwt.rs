//! Any bytes as a token, as the header and claims of one that its issuer signed, as a key set and as a public key: refused in a
//! sentence, or accepted by the rules as another reader of JSON sees them, in little memory. The first byte chooses.
#![no_main]

use std::{
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use libfuzzer_sys::fuzz_target;
use ring::hmac;
use serde_json::Value;
use valkyrie_fuzz::measure;
use valkyrie_sdk::{Authenticator, Jwt, JwtAlgorithm, JwtBuilder, Peer, Principal};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;
/// No piece is larger than the token; a name of one letter is an entry of a tree of names, whose nodes have 11.
const TOKEN_LARGEST: usize = 8 << 10;
const TOKEN_PEAK: usize = 256 << 10;
/// The longest key set tried, and the most memory that reading it may take.
const SET_BYTES: usize = 16 << 10;
const SET_PEAK: usize = 640 << 10;

static JWT: LazyLock<Jwt> = LazyLock::new(|| {
    JwtBuilder::new("https://issuer.example", "orders")
        .hs256_secret("hs", SECRET)
        .build()
        .expect("a legal issuer")
});
static PEER: LazyLock<Peer> = LazyLock::new(|| Peer::new("tcp://127.0.0.1:1"));

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => check(bytes),
        1 => signed(bytes),
        2 => key_set(&bytes[..bytes.len().min(SET_BYTES)]),
        _ => public_key(bytes),
    }
});

fn authenticate(token: &[u8]) -> Option<Principal> {
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let mut future = JWT.authenticate(token, &PEER, now);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(principal)) => Some(principal),
        Poll::Ready(Err(refusal)) => {
            assert!(refusal.0.starts_with("jwt: ") && refusal.0.len() < 200, "{refusal}");
            None
        }
        Poll::Pending => panic!("nothing is waited for"),
    }
}

fn check(token: &[u8]) {
    let _ = &*JWT;
    let _ = &*PEER;
    let usage = measure(|| drop(authenticate(token)));
    assert!(
        usage.largest <= TOKEN_LARGEST && usage.peak <= TOKEN_PEAK,
        "{usage:?} for {} bytes",
        token.len()
    );
}

/// Header and claims, a zero byte between them.
fn signed(bytes: &[u8]) {
    let Some(middle) = bytes.iter().position(|byte| *byte == 0) else { return };
    let (header, claims) = (&bytes[..middle], &bytes[middle + 1..]);
    let text = format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), text.as_bytes());
    let token = format!("{text}.{}", BASE64URL_NOPAD.encode(signature.as_ref()));
    check(token.as_bytes());
    let Some(principal) = authenticate(token.as_bytes()) else { return };
    let header: Value = serde_json::from_slice(header).expect("an accepted header is JSON");
    let claims: Value = serde_json::from_slice(claims).expect("accepted claims are JSON");
    assert!(token.len() <= 8 << 10);
    assert!(header["alg"] == "HS256" && header.get("crit").is_none());
    assert!(header.get("kid").is_none_or(|kid| kid == "hs"));
    let typ = header["typ"].as_str().expect("a type").to_ascii_lowercase();
    assert!(typ == "at+jwt" || typ == "application/at+jwt");
    assert!(claims["iss"] == "https://issuer.example");
    let audience = &claims["aud"];
    assert!(
        audience == "orders"
            || audience.as_array().is_some_and(|list| list.iter().any(|one| one == "orders"))
    );
    let expires = claims["exp"].as_u64().expect("a whole number");
    assert!(NOW < expires + 30);
    assert_eq!(
        principal.expires().and_then(|at: SystemTime| at.duration_since(UNIX_EPOCH).ok()),
        Some(Duration::from_secs(expires))
    );
    for start in ["nbf", "iat"] {
        assert!(claims.get(start).is_none_or(|at| at.as_u64().expect("a whole number") <= NOW + 30));
    }
    assert!(claims.get("cnf").is_none());
    assert_eq!(principal.id().strip_prefix("sub:"), claims["sub"].as_str());
    assert!(!principal.id().contains(char::is_control) && principal.id().len() <= 260);
    assert!(
        principal.roles().len() <= 64 && principal.roles().iter().all(|role| (1..=256).contains(&role.len()))
    );
}

fn key_set(document: &[u8]) {
    let usage = measure(|| match JwtBuilder::new("i", "a").jwks(document).build() {
        Ok(jwt) => drop(jwt),
        Err(status) => assert!(!status.message().is_empty()),
    });
    assert!(
        usage.largest <= 2 * SET_BYTES && usage.peak <= SET_PEAK,
        "{usage:?} for {} bytes",
        document.len()
    );
}

fn public_key(der: &[u8]) {
    let text = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(der));
    for algorithm in [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256, JwtAlgorithm::Rs256] {
        let usage = measure(|| drop(JwtBuilder::new("i", "a").key_pem("k", algorithm, &text).build()));
        assert!(usage.peak <= SET_PEAK, "{usage:?} for {} bytes", der.len());
    }
}
