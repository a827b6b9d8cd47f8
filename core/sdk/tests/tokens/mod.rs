//! Makes the tokens of `jwt.json`, signed with the keys of the RFCs, for whoever wants to send them to a server.

use data_encoding::BASE64URL_NOPAD as BASE64;
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::KeyPairComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use serde_json::Value;

/// The order of P-256's group, big-endian.
const P256_ORDER: &str = "_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE";
/// The order of Ed25519's group, little-endian.
const ED25519_ORDER: &str = "7dP1XBpjEljWnPei3vneFAAAAAAAAAAAAAAAAAAAABA";

/// The table, as it stands in the file.
pub(crate) struct Table(pub(crate) Value);

impl Table {
    /// Reads it.
    pub(crate) fn read() -> Self {
        Self(serde_json::from_str(include_str!("../jwt.json")).expect("jwt.json is JSON"))
    }

    /// The token of a row at a time in seconds since 1970.
    pub(crate) fn token(&self, row: &Value, now: u64) -> Vec<u8> {
        let key = row["key"].as_str().unwrap_or("ed");
        let mut header = Members::of(&self.0["header"], now);
        header.set("alg", self.0["keys"][key]["alg"].to_string());
        header.set("kid", Value::from(key).to_string());
        header.change(row, "header", now);
        let mut claims = Members::of(&self.0["claims"], now);
        claims.change(row, "claims", now);
        if let Some(len) = row["pad"].as_u64() {
            pad(&mut header, &mut claims, len as usize);
        }
        let (h, c) = (header.text(), claims.text());
        let encode = |text: &str| BASE64.encode(text.as_bytes());
        let signed = format!("{}.{}", encode(&h), encode(&c));
        let sign = match &row["sign"] {
            Value::Null => &self.0["keys"][key],
            Value::String(name) => &self.0["keys"][name],
            other => other,
        };
        let signature = sign_with(sign, signed.as_bytes());
        let token = row["token"].as_str().unwrap_or("{h}.{c}.{s}");
        let mut out = String::new();
        let mut rest = token;
        while let Some((before, after)) = rest.split_once('{') {
            let (piece, after) = after.split_once('}').expect("a closing brace");
            out += before;
            out += &match piece {
                "h" => encode(&h),
                "h:x" => encode(&(h.clone() + "x")),
                "h:bom" => encode(&format!("\u{feff}{h}")),
                "c" => encode(&c),
                "c:admin" => encode(&c.replace("alice", "admin")),
                "s" => BASE64.encode(&signature),
                _ => changed(piece.strip_prefix("s:").expect("a change of the signature"), &signature),
            };
            rest = after;
        }
        (out + rest).into_bytes()
    }
}

/// An object as pieces of JSON text, in which anything may be written.
struct Members(Vec<(String, String)>);

impl Members {
    fn of(object: &Value, now: u64) -> Self {
        let mut members = Self(Vec::new());
        members.merge(object, now);
        members
    }

    fn set(&mut self, name: &str, text: String) {
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.to_owned(), text));
    }

    fn merge(&mut self, object: &Value, now: u64) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if value.is_null() {
                self.0.retain(|(other, _)| other != name);
            } else if let Some(seconds) = value["now"].as_i64() {
                self.set(name, now.checked_add_signed(seconds).expect("a time").to_string());
            } else if let Some(times) = value["repeat"].as_u64() {
                self.set(name, Value::from("x".repeat(times as usize)).to_string());
            } else {
                self.set(name, value.to_string());
            }
        }
    }

    fn change(&mut self, row: &Value, which: &str, now: u64) {
        self.merge(&row[which], now);
        for (name, text) in row[format!("{which}_raw")].as_object().into_iter().flatten() {
            self.set(name, text.as_str().expect("JSON text").to_owned());
        }
        for added in row[format!("{which}_add")].as_array().into_iter().flatten() {
            let text = |index: usize| added[index].as_str().expect("JSON text").to_owned();
            self.0.push((text(0), text(1)));
        }
    }

    fn text(&self) -> String {
        let members: Vec<_> = self.0.iter().map(|(name, text)| format!("\"{name}\":{text}")).collect();
        format!("{{{}}}", members.join(","))
    }
}

/// Fills header and claims so that the token, with a signature of 64 bytes, has that length.
fn pad(header: &mut Members, claims: &mut Members, len: usize) {
    let fill = |count: usize| format!("\"{}\"", "x".repeat(count));
    for few in 0..4 {
        header.set("fill", fill(few));
        claims.set("fill", fill(0));
        let token = |more| {
            let encoded = |bytes: usize| BASE64.encode_len(bytes);
            encoded(header.text().len()) + 1 + encoded(claims.text().len() + more) + 1 + encoded(64)
        };
        if let Some(more) = (0..len).find(|more| token(*more) == len) {
            claims.set("fill", fill(more));
            return;
        }
    }
    panic!("no token has {len} bytes");
}

fn decode(text: &str) -> Vec<u8> {
    BASE64.decode(text.as_bytes()).expect("base64url")
}

/// Signs with a key of the table, or with `{"secret": text}`.
pub(crate) fn sign_with(key: &Value, message: &[u8]) -> Vec<u8> {
    let hs256 =
        |secret: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_owned();
    if let Some(secret) = key["secret"].as_str() {
        return hs256(secret.as_bytes());
    }
    let member = |name: &str| decode(key["jwk"][name].as_str().expect("a member of the key"));
    let random = SystemRandom::new();
    match key["alg"].as_str() {
        Some("HS256") => hs256(&member("k")),
        Some("EdDSA") => {
            let pair = Ed25519KeyPair::from_seed_and_public_key(&member("d"), &member("x"));
            pair.expect("an Ed25519 key").sign(message).as_ref().to_owned()
        }
        Some("ES256") => {
            let public = [&[4][..], &member("x"), &member("y")].concat();
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let pair =
                EcdsaKeyPair::from_private_key_and_public_key(algorithm, &member("d"), &public, &random);
            pair.and_then(|pair| pair.sign(&random, message).map_err(|_| unreachable!()))
                .expect("a P-256 key")
                .as_ref()
                .to_owned()
        }
        _ => {
            let pair = RsaKeyPair::from_components(&KeyPairComponents {
                public_key: ring::rsa::PublicKeyComponents { n: member("n"), e: member("e") },
                d: member("d"),
                p: member("p"),
                q: member("q"),
                dP: member("dp"),
                dQ: member("dq"),
                qInv: member("qi"),
            })
            .expect("an RSA key");
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a signature");
            signature
        }
    }
}

/// A signature after a change, encoded.
fn changed(how: &str, signature: &[u8]) -> String {
    let encoded = BASE64.encode(signature);
    let (r, s) = signature.split_at(signature.len() / 2);
    match how {
        "cut" => encoded[1..].to_owned(),
        "standard" => format!("+{}", &encoded[1..]),
        // The last character has bits that no byte needs: another of them stands for the same bytes.
        "trailing" => {
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let (start, last) = encoded.split_at(encoded.len() - 1);
            let next = alphabet.find(last).expect("a character") + 1;
            format!("{start}{}", &alphabet[next..=next])
        }
        "twice" => BASE64.encode(&[signature, signature].concat()),
        "zero" => BASE64.encode(&vec![0; signature.len()]),
        "r0" => BASE64.encode(&[&[0; 32][..], s].concat()),
        "s0" => BASE64.encode(&[r, &[0; 32]].concat()),
        "der" => {
            let integer = |number: &[u8]| [&[2, 33, 0][..], number].concat();
            let sequence = [integer(r), integer(s)].concat();
            BASE64.encode(&[&[0x30, sequence.len() as u8][..], &sequence].concat())
        }
        "n-s" => {
            let mut borrow = 0;
            let mut other: Vec<u8> = (decode(P256_ORDER).iter().zip(s).rev())
                .map(|(n, s)| {
                    let digit = i16::from(*n) - i16::from(*s) - borrow;
                    borrow = i16::from(digit < 0);
                    digit.rem_euclid(256) as u8
                })
                .collect();
            other.reverse();
            BASE64.encode(&[r, &other].concat())
        }
        "s+l" => {
            let mut carry = 0;
            let order = decode(ED25519_ORDER);
            let sum = order.iter().zip(s).map(|(l, s)| {
                let digit = u16::from(*l) + u16::from(*s) + carry;
                carry = digit >> 8;
                digit as u8
            });
            let sum: Vec<u8> = sum.collect();
            BASE64.encode(&[r, &sum].concat())
        }
        _ => panic!("{how} is no change of a signature"),
    }
}
