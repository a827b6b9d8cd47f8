//! Writes the cases of credentials to the file that its argument names: those of `credentials.json`, each token of
//! core/sdk/tests/jwt.json of which a server says the same for as long as they run, and each call of core/sdk/tests/access.json.
#![forbid(unsafe_code)]

#[path = "../../../../core/sdk/tests/tokens/mod.rs"]
mod tokens;

use std::{
    collections::HashSet,
    error::Error,
    pin::pin,
    process::ExitCode,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokens::Table;
use valkyrie_conformance::{access_table, issuer};
use valkyrie_sdk::{Authenticator, Peer};

/// The longest token, in bytes (PROTOCOL.md, W6-15).
const MOST: usize = 8 << 10;
/// The longest method, in bytes (PROTOCOL.md, W5-10).
const LONGEST: usize = 512;
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
    cases.extend(of_policies()?);
    let mut seen = HashSet::new();
    if let Some(twice) = cases.iter().find(|case| !seen.insert(case["case"].to_string())) {
        return Err(format!("two cases are named {}", twice["case"]).into());
    }
    // One line for each, as a person reads it.
    let lines: Vec<_> = cases.iter().map(Value::to_string).collect();
    Ok(std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))?)
}

/// A call for each method of the table, by its principal. Whoever gets through is answered with the method as it came.
fn of_policies() -> Result<Vec<Value>, Box<dyn Error>> {
    let table = access_table()?;
    let mut cases = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for row in list(&table["decisions"]) {
        for (key, is_allowed) in [("allowed", true), ("denied", false)] {
            for method in list(&row[key]) {
                let method = method.as_str().ok_or("a method is a text")?;
                cases.push(of_policy(&row, method.as_bytes(), is_allowed));
            }
        }
    }
    // Who may call everything is stopped by their own client.
    let everything = json!({ "policy": "store", "principal": "sub:root" });
    for method in list(&table["no_methods"]) {
        let method = data_encoding::HEXLOWER.decode(method.as_str().ok_or("a text")?.as_bytes())?;
        if is_method(&method) {
            return Err("a method is one of those that are none".into());
        }
        cases.push(of_policy(&everything, &method, false));
    }
    Ok(cases)
}

/// A case of one call.
fn of_policy(row: &Value, method: &[u8], is_allowed: bool) -> Value {
    let (policy, principal) =
        (row["policy"].as_str().unwrap_or_default(), row["principal"].as_str().unwrap_or_default());
    let roles: Vec<_> = row["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let who = roles.iter().fold(principal.to_owned(), |who, role| format!("{who} as {role}"));
    let mut case = json!({
        "case": format!("access {policy}: {who}: {}", shown(method)),
        "action": "credentials", "server": format!("access {policy}"),
    });
    // In C a text ends at a NUL, and not all that a host takes for text is UTF-8.
    match str::from_utf8(method) {
        Ok(method) if !method.contains('\0') => case["method"] = method.into(),
        _ => case["method_hex"] = data_encoding::HEXLOWER.encode(method).into(),
    }
    if principal != "anonymous" {
        case["token"] = json!({ "principal": principal, "roles": roles }).to_string().into();
    }
    let (code, number, reason) = match (is_method(method), is_allowed, principal) {
        (false, ..) => ("INVALID_ARGUMENT", 3, "INVALID_METHOD"),
        (true, true, _) => ("OK", 0, ""),
        (true, false, "anonymous") => ("UNAUTHENTICATED", 16, "UNAUTHENTICATED"),
        (true, false, _) => ("PERMISSION_DENIED", 7, "PERMISSION_DENIED"),
    };
    case["code"] = code.into();
    case["code_number"] = number.into();
    match code {
        "OK" => case["reply_text"] = case["method"].clone(),
        _ => case["reason"] = reason.into(),
    }
    case
}

/// Whether a client sends it (PROTOCOL.md, W5-10).
fn is_method(method: &[u8]) -> bool {
    method.len() <= LONGEST && method.starts_with(b"/") && method.iter().all(u8::is_ascii_graphic)
}

/// A method as a case's name has it: short, and without a character that a runner would have to escape.
fn shown(method: &[u8]) -> String {
    const MOST: usize = 48;
    let byte = |byte: &u8| match byte {
        b'"' | b'\\' | b'<' => format!("<{byte:02x}>"),
        byte if byte.is_ascii_graphic() => char::from(*byte).to_string(),
        byte => format!("<{byte:02x}>"),
    };
    let start: String = method.iter().take(MOST).map(byte).collect();
    if method.len() > MOST { format!("{start}<{} bytes>", method.len()) } else { start }
}
