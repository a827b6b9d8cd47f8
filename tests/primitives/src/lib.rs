//! The primitives that TLS, sealed sessions and tokens stand on, as *ring* has them, beside the vectors of their
//! specifications (`tests/vectors/primitives.json`) and of Wycheproof, whose vectors are the mistakes that others made. No code
//! of Valkyrie runs here: a new version of *ring* does, before it is trusted.
#![forbid(unsafe_code)]
#![cfg(test)]

use ring::{
    aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hkdf, hmac,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1, ED25519,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};
use serde::Deserialize;
use wycheproof::{
    TestResult, aead, ecdsa, eddsa, hkdf as hkdf_vectors, mac, rsa_pkcs1_verify, rsa_pss_verify,
};

#[derive(Deserialize)]
struct Vectors {
    aead: Vec<AeadVector>,
    hkdf_sha256: Vec<HkdfVector>,
}

/// Bytes are in hexadecimal.
#[derive(Deserialize)]
struct AeadVector {
    source: String,
    algorithm: String,
    key: String,
    nonce: String,
    aad: String,
    plain: String,
    sealed: String,
    tag: String,
}

#[derive(Deserialize)]
struct HkdfVector {
    source: String,
    secret: String,
    salt: String,
    info: String,
    prk: String,
    output: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../vectors/primitives.json")).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "{hex}");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What opening gives; None where it is refused.
fn open(
    algorithm: &'static Algorithm,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut bytes = sealed.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(aad), &mut bytes).ok()?.len();
    bytes.truncate(opened);
    Some(bytes)
}

fn seal(algorithm: &'static Algorithm, key: &[u8], nonce: &[u8], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    let mut bytes = plain.to_vec();
    key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut bytes).unwrap();
    bytes
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// None where so many bytes are refused.
fn derive(secret: &[u8], salt: &[u8], info: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut output = vec![0; length];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    prk.expand(&[info], Length(length)).ok()?.fill(&mut output).ok()?;
    Some(output)
}

#[test]
fn ciphers_do_what_their_specifications_say() {
    for vector in vectors().aead {
        let algorithm = match vector.algorithm.as_str() {
            "CHACHA20_POLY1305" => &CHACHA20_POLY1305,
            "AES_256_GCM" => &AES_256_GCM,
            other => panic!("{other}"),
        };
        let [key, nonce, aad, plain] =
            [&vector.key, &vector.nonce, &vector.aad, &vector.plain].map(|hex| bytes(hex));
        let sealed = bytes(&(vector.sealed + &vector.tag));
        assert_eq!(seal(algorithm, &key, &nonce, &aad, &plain), sealed, "{}", vector.source);
        assert_eq!(open(algorithm, &key, &nonce, &aad, &sealed), Some(plain), "{}", vector.source);
        // Each single bit counts: of what is sealed, of the tag, of what is only authenticated, of the nonce.
        let flipped = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let flip = |bit: usize| {
                let mut bytes = bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            (0..bytes.len() * 8).map(flip).collect()
        };
        let refused =
            |nonce: &[u8], aad: &[u8], sealed: &[u8]| open(algorithm, &key, nonce, aad, sealed).is_none();
        assert!(flipped(&sealed).iter().all(|sealed| refused(&nonce, &aad, sealed)), "{}", vector.source);
        assert!(flipped(&aad).iter().all(|aad| refused(&nonce, aad, &sealed)), "{}", vector.source);
        assert!(flipped(&nonce).iter().all(|nonce| refused(nonce, &aad, &sealed)), "{}", vector.source);
        assert!((0..sealed.len()).all(|cut| refused(&nonce, &aad, &sealed[..cut])), "{}", vector.source);
    }
}

#[test]
fn keys_are_derived_as_rfc_5869_says() {
    for vector in vectors().hkdf_sha256 {
        let [secret, salt, info] = [&vector.secret, &vector.salt, &vector.info].map(|hex| bytes(hex));
        let output = bytes(&vector.output);
        let extracted = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salt), &secret);
        assert_eq!(extracted.as_ref(), bytes(&vector.prk), "{}", vector.source);
        assert_eq!(derive(&secret, &salt, &info, output.len()), Some(output), "{}", vector.source);
    }
}

/// Whether this was accepted is what Wycheproof says; what it calls acceptable may be either.
fn expect(result: TestResult, accepted: bool, set: &str, id: usize) {
    match result {
        TestResult::Valid => assert!(accepted, "{set} {id} is valid and was refused"),
        TestResult::Invalid => assert!(!accepted, "{set} {id} is invalid and was accepted"),
        TestResult::Acceptable => {}
    }
}

#[test]
fn ciphers_refuse_what_wycheproof_refuses() {
    let sets = [
        (aead::TestName::AesGcm, &AES_256_GCM, 256),
        (aead::TestName::ChaCha20Poly1305, &CHACHA20_POLY1305, 256),
    ];
    for (name, algorithm, key_size) in sets {
        let mut looked_at = 0;
        for group in aead::TestSet::load(name).unwrap().test_groups {
            // Neither TLS 1.3 nor anything of ours has another nonce or tag; other keys are other ciphers.
            if group.key_size != key_size || group.tag_size != 128 {
                continue;
            }
            for test in group.tests {
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                let opened = open(algorithm, &test.key, &test.nonce, &test.aad, &sealed);
                if group.nonce_size != 96 {
                    assert_eq!(opened, None, "{name:?} {}: a nonce of another length", test.tc_id);
                    continue;
                }
                expect(test.result, opened.is_some(), &format!("{name:?}"), test.tc_id);
                if test.result == TestResult::Valid {
                    assert_eq!(opened.as_deref(), Some(&test.pt[..]), "{name:?} {}", test.tc_id);
                    assert_eq!(seal(algorithm, &test.key, &test.nonce, &test.aad, &test.pt), sealed);
                }
                looked_at += 1;
            }
        }
        assert!(looked_at > 60, "{name:?}: {looked_at}");
    }
}

#[test]
fn keys_are_derived_as_wycheproof_says() {
    let mut looked_at = 0;
    for group in hkdf_vectors::TestSet::load(hkdf_vectors::TestName::HkdfSha256).unwrap().test_groups {
        for test in group.tests {
            let output = derive(&test.ikm, &test.salt, &test.info, test.size);
            expect(test.result, output.is_some(), "HKDF", test.tc_id);
            if let Some(output) = output {
                assert_eq!(output, test.okm[..], "HKDF {}", test.tc_id);
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 80, "{looked_at}");
}

#[test]
fn codes_are_verified_as_wycheproof_says() {
    let mut looked_at = 0;
    for group in mac::TestSet::load(mac::TestName::HmacSha256).unwrap().test_groups {
        for test in group.tests {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &test.key);
            // A shortened code is none of ours.
            let accepted = hmac::verify(&key, &test.msg, &test.tag).is_ok();
            match group.tag_size {
                256 => expect(test.result, accepted, "HMAC", test.tc_id),
                _ => assert!(!accepted, "HMAC {}: a shortened code", test.tc_id),
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 150, "{looked_at}");
}

fn verifies(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

#[test]
fn signatures_with_ecdsa_are_verified_as_wycheproof_says() {
    use ecdsa::TestName::{EcdsaSecp256r1Sha256, EcdsaSecp256r1Sha256P1363, EcdsaSecp384r1Sha384};
    let sets: [(_, &'static dyn VerificationAlgorithm); 3] = [
        // Tokens with ES256 (RFC 7518, section 3.4); certificates and TLS.
        (EcdsaSecp256r1Sha256P1363, &ECDSA_P256_SHA256_FIXED),
        (EcdsaSecp256r1Sha256, &ECDSA_P256_SHA256_ASN1),
        (EcdsaSecp384r1Sha384, &ECDSA_P384_SHA384_ASN1),
    ];
    for (name, algorithm) in sets {
        let mut looked_at = 0;
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let accepted = verifies(algorithm, &group.key.key, &test.msg, &test.sig);
                expect(test.result, accepted, &format!("{name:?}"), test.tc_id);
                looked_at += 1;
            }
        }
        assert!(looked_at > 200, "{name:?}: {looked_at}");
    }
}

#[test]
fn signatures_with_ed25519_are_verified_as_wycheproof_says() {
    let mut looked_at = 0;
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        for test in group.tests {
            expect(
                test.result,
                verifies(&ED25519, &group.key.pk, &test.msg, &test.sig),
                "Ed25519",
                test.tc_id,
            );
            looked_at += 1;
        }
    }
    assert!(looked_at > 100, "{looked_at}");
}

#[test]
fn signatures_with_rsa_are_verified_as_wycheproof_says() {
    use rsa_pkcs1_verify::TestName::{
        Rsa2048Sha256, Rsa2048Sha384, Rsa3072Sha256, Rsa4096Sha256, Rsa8192Sha256,
    };
    let sets: [(_, &'static dyn VerificationAlgorithm); 5] = [
        (Rsa2048Sha256, &RSA_PKCS1_2048_8192_SHA256),
        (Rsa3072Sha256, &RSA_PKCS1_2048_8192_SHA256),
        (Rsa4096Sha256, &RSA_PKCS1_2048_8192_SHA256),
        (Rsa8192Sha256, &RSA_PKCS1_2048_8192_SHA256),
        (Rsa2048Sha384, &RSA_PKCS1_2048_8192_SHA384),
    ];
    for (name, algorithm) in sets {
        let mut looked_at = 0;
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let accepted = verifies(algorithm, &group.asn_key, &test.msg, &test.sig);
                expect(test.result, accepted, &format!("{name:?}"), test.tc_id);
                looked_at += 1;
            }
        }
        assert!(looked_at > 200, "{name:?}: {looked_at}");
    }
    // TLS 1.3 signs with RSA in this way alone (RFC 8446, section 4.2.3).
    let name = rsa_pss_verify::TestName::RsaPss2048Sha256Mgf1SaltLen32;
    let mut looked_at = 0;
    for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
        for test in group.tests {
            let accepted = verifies(&RSA_PSS_2048_8192_SHA256, &group.asn_key, &test.msg, &test.sig);
            expect(test.result, accepted, "RSA-PSS", test.tc_id);
            looked_at += 1;
        }
    }
    assert!(looked_at > 80, "{looked_at}");
}
