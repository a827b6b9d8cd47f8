//! Writes the cases of credentials to the file that its argument names: those of `credentials.json`, and each token of
//! core/sdk/tests/jwt.json of which a server says the same for as long as they run.
#![forbid(unsafe_code)]

#[path = "../../../../core/sdk/tests/tokens/mod.rs"]
mod tokens;

use std::{
    error::Error,
    pin::pin,
    process::ExitCode,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokens::Table;
use valkyrie_conformance::issuer;
use valkyrie_sdk::{Authenticator, Peer};

/// The longest token, in bytes (PROTOCOL.md, W6-15).
const MOST: usize = 8 << 10;
/// How long what is written holds.
const HOLDS: Duration = Duration::from_secs(200);

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-conformance-tokens: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: valkyrie-conformance-tokens FILE")?;
    let mut cases: Vec<Value> = serde_json::from_str(include_str!("../../credentials.json"))?;
    let (table, jwt, peer) = (Table::read(), issuer()?, Peer::new("tcp://127.0.0.1:1"));
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH)?.as_secs();
    for row in table.0["rows"].as_array().ok_or("jwt.json has no rows")? {
        // What hangs on how its server is set up, or on a certificate, is for the sdk's own tests; text is what every language
        // has.
        let own = ["config", "certificate"].iter().any(|key| !row[key].is_null());
        let Some(token) = String::from_utf8(table.token(row, seconds)).ok().filter(|_| !own) else {
            continue;
        };
        // Text of C ends at a NUL.
        if token.is_empty() || token.contains('\0') {
            continue;
        }
        let verdict = |at| match pin!(jwt.authenticate(token.as_bytes(), &peer, at))
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(Ok(principal)) => Some(principal.id().to_owned()),
            _ => None,
        };
        let says = verdict(now);
        if says != verdict(now + HOLDS) {
            continue;
        }
        let mut case = json!({
            "case": format!("jwt: {}", row["name"].as_str().unwrap_or_default()),
            "action": "credentials", "token": token, "method": "/test/principal",
        });
        let more = match says {
            Some(id) => json!({ "code": "OK", "reply_text": id }),
            // No client sends so much.
            None if token.len() > MOST => {
                json!({ "code": "UNAUTHENTICATED", "reason": "CREDENTIALS_UNAVAILABLE" })
            }
            // One sentence for all: it tells nobody what was wrong.
            None => json!({ "code": "UNAUTHENTICATED", "reason": "CREDENTIALS_REFUSED",
                            "status_message": "the credentials were refused" }),
        };
        if let (Some(case), Some(more)) = (case.as_object_mut(), more.as_object()) {
            case.extend(more.clone());
        }
        cases.push(case);
    }
    // One line for each, as a person reads it.
    let lines: Vec<_> = cases.iter().map(Value::to_string).collect();
    Ok(std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))?)
}
