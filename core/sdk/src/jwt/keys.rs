//! Keys that verify tokens: each has one algorithm, which the one who configured it or published it gave it.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use ring::{
    agreement, hmac,
    rand::SystemRandom,
    signature::{self, RsaPublicKeyComponents, UnparsedPublicKey},
};
use rustls_pki_types::pem::{self, SectionKind};

use super::json::{Json, Object};

/// How tokens are signed. With a shared secret, HS256, they are verified only where
/// [`JwtBuilder::hs256_secret`](super::JwtBuilder::hs256_secret) says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtAlgorithm {
    /// EdDSA with Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA with P-256 and SHA-256 (RFC 7518 section 3.4).
    Es256,
    /// RSA PKCS #1 v1.5 with SHA-256 (RFC 7518 section 3.3) and keys of 2,048 to 8,192 bits.
    Rs256,
}

impl JwtAlgorithm {
    /// As `alg` writes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            JwtAlgorithm::EdDsa => "EdDSA",
            JwtAlgorithm::Es256 => "ES256",
            JwtAlgorithm::Rs256 => "RS256",
        }
    }
}

/// The algorithm of shared secrets.
pub(super) const HS256: &str = "HS256";
/// A secret is at least as long as what SHA-256 gives (RFC 7518 section 3.2).
const SECRET_BYTES: usize = 32;

/// A key and all that is known of it.
pub(super) struct Key {
    /// What tokens call it. Only ever compared: it is no path and no URL.
    pub(super) kid: Option<String>,
    /// The one algorithm that it verifies.
    pub(super) alg: &'static str,
    material: Material,
}

enum Material {
    Curve(UnparsedPublicKey<Vec<u8>>),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Secret(hmac::Key),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("alg", &self.alg).finish_non_exhaustive()
    }
}

impl Key {
    /// Whether this key's owner signed the message. ES256 signatures are r and s of 32 bytes each, never DER (RFC 7518
    /// section 3.4). `n - s` verifies where `s` does, which the RFC allows: nothing here takes a signature for a name.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Curve(key) => key.verify(message, signature).is_ok(),
            Material::Rsa(key) => {
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }

    /// A shared secret.
    pub(super) fn secret(kid: &str, secret: &[u8]) -> Result<Self, String> {
        if secret.len() < SECRET_BYTES {
            let len = secret.len();
            return Err(format!(
                "HS256 secret {kid:?} has {len} bytes; give at least {SECRET_BYTES} random ones"
            ));
        }
        let material = Material::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Ok(Self { kid: Some(kid.to_owned()), alg: HS256, material })
    }

    /// A public key as PEM text, `PUBLIC KEY` (RFC 5280 SubjectPublicKeyInfo).
    pub(super) fn pem(kid: &str, algorithm: JwtAlgorithm, text: &[u8]) -> Result<Self, String> {
        let name = algorithm.name();
        let wrong = |why: &str| Err(format!("{name} key {kid:?} {why}"));
        let der = match pem::from_buf(&mut &text[..]) {
            Ok(Some((SectionKind::PublicKey, der))) => der,
            Ok(Some((
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey,
                _,
            ))) => return wrong("is a private key; give the public one, the issuer alone has the other"),
            Ok(Some(_)) => return wrong("is PEM of another kind; give a section PUBLIC KEY"),
            Ok(None) | Err(_) => return wrong("is not PEM; give a section PUBLIC KEY"),
        };
        let material = match spki(&der) {
            Some((ED25519, point)) if algorithm == JwtAlgorithm::EdDsa => ed25519(point),
            Some((P256, point)) if algorithm == JwtAlgorithm::Es256 => p256(point),
            Some((RSA, key)) if algorithm == JwtAlgorithm::Rs256 => match rsa_components(key) {
                Some((n, e)) => rsa(n, e),
                None => Err("is not a well-formed RSA key"),
            },
            Some(_) => Err("is a key of another algorithm"),
            None => Err("is not a well-formed public key"),
        };
        match material {
            Ok(material) => Ok(Self { kid: Some(kid.to_owned()), alg: name, material }),
            Err(why) => wrong(why),
        }
    }

    /// A key of a JSON Web Key Set (RFC 7517), `None` when it is not one that verifies tokens here: of another kind, for
    /// another use, weak, malformed, secret, or with its private half published.
    pub(super) fn jwk(jwk: &Object) -> Option<Self> {
        if jwk.get("d").is_some() || jwk.text("use").ok()?.is_some_and(|usage| usage != "sig") {
            return None;
        }
        match jwk.get("key_ops") {
            None => {}
            Some(Json::List(list))
                if list.iter().any(|op| matches!(op, Json::Text(op) if op == "verify")) => {}
            Some(_) => return None,
        }
        let bytes = |name| BASE64URL_NOPAD.decode(jwk.text(name).ok()??.as_bytes()).ok();
        let curve = jwk.text("crv").ok()?;
        let (algorithm, material) = match (jwk.text("kty").ok()??, curve) {
            ("OKP", Some("Ed25519")) => (JwtAlgorithm::EdDsa, ed25519(&bytes("x")?)),
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != 32 || y.len() != 32 {
                    return None;
                }
                (JwtAlgorithm::Es256, p256(&[&[4][..], &x, &y].concat()))
            }
            ("RSA", _) => (JwtAlgorithm::Rs256, rsa(&bytes("n")?, &bytes("e")?)),
            _ => return None,
        };
        // A key without the member has the only algorithm that is supported for its kind.
        if jwk.text("alg").ok()?.is_some_and(|alg| alg != algorithm.name()) {
            return None;
        }
        Some(Self {
            kid: jwk.text("kid").ok()?.map(str::to_owned),
            alg: algorithm.name(),
            material: material.ok()?,
        })
    }
}

/// What is wrong with a key, to follow its name.
type Checked = Result<Material, &'static str>;

/// The y coordinates of the points whose order is at most 8, canonical or not: under such a key anybody signs anything.
/// The sign of x, the last bit, does not matter.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    near_p(1, 0, 0),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    near_p(0xec, 0xff, 0x7f),
    near_p(0xed, 0xff, 0x7f),
    near_p(0xee, 0xff, 0x7f),
];

/// A number of which all bytes but the ends are the same: 1, and p - 1, p and p + 1 for p = 2^255 - 19.
const fn near_p(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

fn ed25519(point: &[u8]) -> Checked {
    let Ok(mut y) = <[u8; 32]>::try_from(point) else { return Err("does not have 32 bytes") };
    y[31] &= 0x7f;
    if SMALL_ORDER.contains(&y) {
        return Err("has a small order: anybody can sign for it");
    }
    Ok(Material::Curve(UnparsedPublicKey::new(&signature::ED25519, point.to_owned())))
}

fn p256(point: &[u8]) -> Checked {
    if point.len() != 65 || point[0] != 4 {
        return Err("is not an uncompressed point of P-256");
    }
    // Agreeing on a secret with the point checks that it is on the curve.
    let random = SystemRandom::new();
    let on_curve = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &random).and_then(|own| {
        agreement::agree_ephemeral(
            own,
            &agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point),
            |_| (),
        )
    });
    if on_curve.is_err() {
        return Err("is not a point of P-256");
    }
    Ok(Material::Curve(UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point.to_owned())))
}

/// Big-endian numbers without leading zeros.
fn rsa(n: &[u8], e: &[u8]) -> Checked {
    let bits = match n.first() {
        None | Some(0) => return Err("has a modulus that is not minimal"),
        Some(first) => n.len() * 8 - first.leading_zeros() as usize,
    };
    if bits < 2048 {
        return Err("is an RSA key of fewer than 2048 bits");
    }
    if bits > 8192 {
        return Err("is an RSA key of more than 8192 bits");
    }
    let odd = |number: &[u8]| number.last().is_some_and(|last| last & 1 == 1);
    if !odd(n) || !odd(e) || e[0] == 0 || e.len() > 4 || e == [1] {
        return Err(
            "is not an RSA key: its modulus or exponent is even, or the exponent is not from 3 to 2^32",
        );
    }
    Ok(Material::Rsa(RsaPublicKeyComponents { n: n.to_owned(), e: e.to_owned() }))
}

// Algorithm identifiers: id-Ed25519 (RFC 8410), id-ecPublicKey with secp256r1 (RFC 5480), rsaEncryption with NULL (RFC 3279).
const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
const P256: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const RSA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];

/// The algorithm and the key of a SubjectPublicKeyInfo (RFC 5280 section 4.1).
fn spki(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Der(der);
    let mut info = Der(outer.take(0x30)?);
    let (algorithm, bits) = (info.take(0x30)?, info.take(3)?);
    let (unused, key) = bits.split_first()?;
    (outer.0.is_empty() && info.0.is_empty() && *unused == 0).then_some((algorithm, key))
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017 appendix A.1.1), without the zero that keeps them positive.
fn rsa_components(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut outer = Der(der);
    let mut key = Der(outer.take(0x30)?);
    let mut number = || match key.take(2)? {
        [0, rest @ ..] if rest.first().is_some_and(|first| *first >= 0x80) => Some(rest),
        [0 | 0x80.., ..] | [] => None,
        number => Some(number),
    };
    let components = (number()?, number()?);
    (outer.0.is_empty() && key.0.is_empty()).then_some(components)
}

/// What is left to read of DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next value, which must have the tag and the shortest length that says it.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (len, rest) = match self.0.strip_prefix(&[tag][..])? {
            [len @ ..=0x7f, rest @ ..] => (usize::from(*len), rest),
            [0x81, len @ 0x80..=0xff, rest @ ..] => (usize::from(*len), rest),
            [0x82, high @ 1..=0xff, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn table() -> Value {
        serde_json::from_str(include_str!("../../tests/jwt.json")).unwrap()
    }

    #[test]
    fn the_examples_of_the_rfcs_verify() {
        let table = table();
        for vector in table["vectors"].as_array().unwrap() {
            let given = &table["keys"][vector["key"].as_str().unwrap()];
            let mut jwk = given["jwk"].clone();
            jwk.as_object_mut().unwrap().remove("d");
            let mut keys = Vec::new();
            match jwk["k"].as_str() {
                Some(secret) => {
                    keys.push(Key::secret("k", &BASE64URL_NOPAD.decode(secret.as_bytes()).unwrap()).unwrap())
                }
                None => {
                    keys.push(
                        Key::jwk(
                            &Object::parse(
                                jwk.to_string().as_bytes(),
                                &["kty", "crv", "x", "y", "n", "e"],
                                1,
                            )
                            .unwrap(),
                        )
                        .unwrap(),
                    );
                    let algorithm = [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256, JwtAlgorithm::Rs256]
                        .into_iter()
                        .find(|algorithm| given["alg"] == algorithm.name())
                        .unwrap();
                    keys.push(Key::pem("k", algorithm, given["pem"].as_str().unwrap().as_bytes()).unwrap());
                }
            }
            let (signed, signature) = vector["token"].as_str().unwrap().rsplit_once('.').unwrap();
            let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
            for key in keys {
                assert_eq!(given["alg"], key.alg);
                assert!(key.verify(signed.as_bytes(), &signature), "{}", vector["name"]);
                assert!(!key.verify(&signed.as_bytes()[1..], &signature), "{}", vector["name"]);
            }
        }
    }

    /// Why keys of a small order are looked for: under the identity, a signature of nobody's verifies any message.
    #[test]
    fn anybody_signs_for_a_key_of_small_order() {
        let identity = near_p(1, 0, 0);
        let signature = [identity, [0; 32]].concat();
        assert!(
            UnparsedPublicKey::new(&signature::ED25519, identity).verify(b"anything", &signature).is_ok()
        );
        assert!(ed25519(&identity).is_err());
    }

    #[test]
    fn no_secret_is_printed() {
        let key = Key::secret("hs", b"canary-canary-canary-canary-canary").unwrap();
        assert_eq!(format!("{key:?}"), "Key { kid: Some(\"hs\"), alg: \"HS256\", .. }");
    }

    #[test]
    fn lengths_of_der_have_one_form() {
        for (der, expected) in [
            (&[4, 0][..], Some(0)),
            (&[4, 1, 9], Some(1)),
            (&[4, 1], None),
            (&[4, 0x80], None),
            (&[4, 0x81, 1, 9], None),
            (&[4, 0x82, 0, 1, 9], None),
            (&[4, 0x83, 0, 0, 1, 9], None),
            (&[4, 0x84, 0xff, 0xff, 0xff, 0xff], None),
            (&[5, 0], None),
            (&[], None),
        ] {
            assert_eq!(Der(der).take(4).map(<[u8]>::len), expected, "{der:?}");
        }
        let long = [&[4, 0x81, 0x80][..], &[0; 0x80]].concat();
        assert_eq!(Der(&long).take(4).map(<[u8]>::len), Some(0x80));
    }
}
