//! Good and bad certificates for the tests of every language, made from `matrix.json`; the README beside it says what a row
//! means. Nothing here verifies anything: the table says what must be said, and tests compare.
#![forbid(unsafe_code)]

use std::{net::IpAddr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// The table, as text.
pub const MATRIX: &str = include_str!("../matrix.json");

const RSA_KEY: &str = include_str!("../fixtures/rsa2048.key");
const FIXTURE_KEY: &str = include_str!("../fixtures/leaf.key");
const FIXTURE_ROOT: &str = include_str!("../fixtures/root.pem");

/// Extensions below this arc mean nothing to anybody.
const MEANINGLESS: &[u64] = &[2, 999, 1];

/// A row of the table.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the README says what each is")]
pub struct Row {
    pub case: String,
    #[serde(default)]
    pub side: Side,
    #[serde(default = "localhost")]
    pub dial: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    #[serde(default)]
    pub raw: bool,
    #[serde(default, skip_serializing)]
    pub chain: Vec<Link>,
    #[serde(default, skip_serializing)]
    pub fixture: Option<String>,
    #[serde(default, skip_serializing)]
    pub trust: Trust,
    #[serde(default, skip_serializing)]
    pub revocation: Option<Revocation>,
    #[serde(default, skip_serializing)]
    pub why: String,
}

/// Who shows a chain.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Side {
    #[default]
    Server,
    Client,
}

/// What is trusted.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the README says what each is")]
pub enum Trust {
    #[default]
    Root,
    Shown,
}

/// One certificate of a chain.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the README says what each is")]
pub struct Link {
    pub key: Key,
    pub signed_by: Signer,
    pub names: Vec<String>,
    pub subject: Option<String>,
    pub hours: [i64; 2],
    pub usages: Option<Vec<Side>>,
    pub authority: bool,
    pub below: Option<u8>,
    pub permitted: Vec<String>,
    pub points: Vec<Vec<String>>,
    pub many_names: usize,
    pub long_name: usize,
    pub padding: usize,
    pub critical: bool,
    pub bytes: Option<String>,
    pub shown: usize,
    pub other_key: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            key: Key::P256,
            signed_by: Signer::Next,
            names: vec![localhost()],
            subject: None,
            hours: [-1, 24],
            usages: None,
            authority: false,
            below: None,
            permitted: Vec::new(),
            points: Vec::new(),
            many_names: 0,
            long_name: 0,
            padding: 0,
            critical: false,
            bytes: None,
            shown: 1,
            other_key: false,
        }
    }
}

/// A kind of key.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Key {
    P256,
    P384,
    Ed25519,
    Rsa2048,
}

/// Who signs a certificate.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the README says what each is")]
pub enum Signer {
    Next,
    Root,
    Stranger,
    Namesake,
    Itself,
    Previous,
}

/// A revocation list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the README says what each is")]
pub struct Revocation {
    pub revokes: bool,
    #[serde(default)]
    pub point: Option<String>,
    #[serde(default = "a_day")]
    pub hours: [i64; 2],
}

fn localhost() -> String {
    "localhost".into()
}

fn a_day() -> [i64; 2] {
    [-1, 24]
}

/// What a row makes, in PEM.
#[derive(Clone, Debug)]
pub struct Made {
    /// The chain that is shown, the side's own certificate first. Empty where none is shown.
    pub chain: String,
    /// The key beside it.
    pub key: String,
    /// What who verifies it trusts.
    pub trusted: String,
    /// The revocation list of who verifies it.
    pub revoked: Option<String>,
}

/// The rows of the table.
pub fn rows() -> Vec<Row> {
    serde_json::from_str(MATRIX).expect("tests/certificates/matrix.json is as its README says")
}

/// An authority's or a side's certificate, and what can be signed with it.
struct Signed {
    params: CertificateParams,
    key: KeyPair,
}

impl Signed {
    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

/// The authorities of all rows.
pub struct Certificates {
    root: Signed,
    stranger: Signed,
    namesake: Signed,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// New authorities: one that is trusted, and two that are not.
    pub fn new() -> Self {
        let authority = |name: &str| {
            let link = Link { authority: true, ..Link::default() };
            link.certificate(Side::Server, name)
        };
        Self { root: authority("Root"), stranger: authority("Stranger"), namesake: authority("Root") }
    }

    /// The certificate of the authority that is trusted, in PEM.
    pub fn root(&self) -> String {
        self.root.params.self_signed(&self.root.key).expect("a certificate can be made").pem()
    }

    /// Makes a row's files.
    ///
    /// # Panics
    /// If the row asks for what cannot be made.
    pub fn make(&self, row: &Row) -> Made {
        if let Some(name) = &row.fixture {
            let chain = match name.as_str() {
                "sha256" => include_str!("../fixtures/sha256.pem"),
                "sha1" => include_str!("../fixtures/sha1.pem"),
                "md5" => include_str!("../fixtures/md5.pem"),
                "rsa1024" => include_str!("../fixtures/rsa1024.pem"),
                other => panic!("{}: there is no fixture {other}", row.case),
            };
            let [key, trusted] = [FIXTURE_KEY, FIXTURE_ROOT].map(str::to_owned);
            return Made { chain: chain.into(), key, trusted, revoked: None };
        }
        let links: Vec<Signed> = (0..)
            .zip(&row.chain)
            .map(|(place, link)| link.certificate(row.side, &format!("{} {place}", row.case)))
            .collect();
        let signer = |place: usize| match row.chain[place].signed_by {
            Signer::Next => links.get(place + 1).unwrap_or(&self.root),
            Signer::Root => &self.root,
            Signer::Stranger => &self.stranger,
            Signer::Namesake => &self.namesake,
            Signer::Itself => &links[place],
            Signer::Previous => &links[place - 1],
        };
        let mut pems = Vec::new();
        for (place, (link, signed)) in row.chain.iter().zip(&links).enumerate() {
            let pem = match &link.bytes {
                Some(hex) => armoured(hex),
                None => {
                    let made = signed.params.signed_by(&signed.key, &signer(place).issuer());
                    made.expect("a certificate can be made").pem()
                }
            };
            pems.extend(std::iter::repeat_n(pem, link.shown));
        }
        let own = row.chain.first();
        let key = match links.first() {
            Some(first) if own.is_none_or(|link| !link.other_key) => first.key.serialize_pem(),
            _ => Key::P256.make().serialize_pem(),
        };
        Made {
            key,
            trusted: match row.trust {
                Trust::Root => self.root(),
                Trust::Shown => pems.last().expect("something is shown").clone(),
            },
            chain: pems.concat(),
            revoked: row.revocation.as_ref().map(|list| list.make(&links[0].params, signer(0))),
        }
    }

    /// Writes every row's files into `folder`, and the table with its defaults.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let rows = rows();
        for row in &rows {
            let made = self.make(row);
            let folder = folder.join(&row.case);
            std::fs::create_dir_all(&folder)?;
            for (name, text) in [("chain", &made.chain), ("key", &made.key), ("trusted", &made.trusted)] {
                std::fs::write(folder.join(format!("{name}.pem")), text)?;
            }
            if let Some(revoked) = &made.revoked {
                std::fs::write(folder.join("revoked.pem"), revoked)?;
            }
        }
        let table = serde_json::to_string_pretty(&rows).map_err(std::io::Error::other)?;
        std::fs::write(folder.join("matrix.json"), table)
    }
}

impl Key {
    fn make(self) -> KeyPair {
        let made = match self {
            Key::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Key::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Key::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Key::Rsa2048 => KeyPair::from_pem(RSA_KEY),
        };
        made.expect("a key can be made")
    }
}

impl Link {
    fn certificate(&self, side: Side, name: &str) -> Signed {
        let key = self.key.make();
        let mut params = CertificateParams::default();
        [params.not_before, params.not_after] = instants(self.hours);
        // rcgen would choose it when it signs; a revocation list has to name it.
        params.serial_number = Some(serial(&key));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.subject.as_deref().unwrap_or(name));
        let text = |text: String| text.try_into().expect("a name in ASCII");
        if self.long_name > 0 {
            params.subject_alt_names.push(SanType::DnsName(text("a".repeat(self.long_name))));
        }
        let many = (0..self.many_names).map(|number| SanType::DnsName(text(format!("{number}.example.com"))));
        params.subject_alt_names.extend(many);
        // An authority is no host.
        let names = self.names.iter().filter(|_| !self.authority);
        params.subject_alt_names.extend(names.map(|name| match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains("://") => SanType::URI(text(name.clone())),
            Err(_) => SanType::DnsName(text(name.clone())),
        }));
        params.is_ca = match (self.authority, self.below) {
            (false, _) => IsCa::ExplicitNoCa,
            (true, None) => IsCa::Ca(BasicConstraints::Unconstrained),
            (true, Some(below)) => IsCa::Ca(BasicConstraints::Constrained(below)),
        };
        params.key_usages = match self.authority {
            true => vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
            false => vec![KeyUsagePurpose::DigitalSignature],
        };
        let usages = self.usages.clone().unwrap_or(if self.authority { vec![] } else { vec![side] });
        params.extended_key_usages.extend(usages.iter().map(|side| match side {
            Side::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Side::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }));
        if !self.permitted.is_empty() {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: self.permitted.iter().cloned().map(GeneralSubtree::DnsName).collect(),
                excluded_subtrees: Vec::new(),
            });
        }
        params.crl_distribution_points =
            self.points.iter().map(|uris| CrlDistributionPoint { uris: uris.clone() }).collect();
        if self.padding > 0 {
            params.custom_extensions.push(extension(1, vec![0; self.padding]));
        }
        if self.critical {
            let mut unknown = extension(2, vec![5, 0]);
            unknown.set_criticality(true);
            params.custom_extensions.push(unknown);
        }
        Signed { params, key }
    }
}

impl Revocation {
    fn make(&self, of: &CertificateParams, by: &Signed) -> String {
        let [this_update, next_update] = instants(self.hours);
        let serial_number = of.serial_number.clone().expect("every certificate here has one");
        let entry = RevokedCertParams {
            serial_number,
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: self.point.as_ref().map(|point| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec![point.clone()] },
                scope: None,
            }),
            revoked_certs: if self.revokes { vec![entry] } else { Vec::new() },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&by.issuer()).expect("a list can be made");
        signed.pem().expect("a list can be written")
    }
}

fn serial(key: &KeyPair) -> SerialNumber {
    let mut bytes = [0; 16];
    // The first bytes of an RSA key are its length's.
    let public = key.public_key_raw();
    bytes.copy_from_slice(&public[public.len() - 24..][..16]);
    // Neither negative nor with a zero in front.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn instants(hours: [i64; 2]) -> [OffsetDateTime; 2] {
    hours.map(|hours| OffsetDateTime::now_utc() + Duration::hours(hours))
}

fn extension(number: u64, content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(&[MEANINGLESS, &[number]].concat(), content)
}

/// Any bytes in the armour of a certificate.
fn armoured(hex: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert!(hex.len().is_multiple_of(6), "write bytes in threes");
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for three in hex.as_bytes().chunks(6) {
        let three = std::str::from_utf8(three).ok().and_then(|three| usize::from_str_radix(three, 16).ok());
        let three = three.expect("hexadecimal digits");
        text.extend([18, 12, 6, 0].map(|shift| char::from(DIGITS[three >> shift & 63])));
    }
    text + "\n-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_own_name_and_files() {
        let (rows, certificates) = (rows(), Certificates::new());
        let mut names: Vec<&str> = rows.iter().map(|row| row.case.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
        for row in &rows {
            let made = certificates.make(row);
            let shown: usize = row.chain.iter().map(|link| link.shown).sum();
            if row.fixture.is_none() {
                assert_eq!(made.chain.matches("BEGIN CERTIFICATE").count(), shown, "{}", row.case);
            }
            assert!(made.key.contains("BEGIN PRIVATE KEY"), "{}", row.case);
            assert!(made.trusted.contains("BEGIN CERTIFICATE"), "{}", row.case);
            assert_eq!(made.revoked.is_some(), row.revocation.is_some(), "{}", row.case);
            assert_eq!(row.told.is_some(), row.side == Side::Client && row.reason != "OK", "{}", row.case);
        }
    }

    #[test]
    fn bytes_are_armoured_as_they_are() {
        assert!(armoured("deadbeef00ff").contains("\n3q2+7wD/\n"));
    }
}
