//! `cert`: an authority and certificates for development, and what a certificate says. No authority for production: nothing
//! here revokes or renews, and the authority's key lies in a file.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use ring::digest::{SHA256, digest};
use time::{Duration, OffsetDateTime};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    objects::{oid_registry, oid2sn},
    pem::Pem,
    prelude::FromDer,
};

use crate::output::{Failure, escape, hex, print};

/// How far a certificate reaches back, for peers whose clocks are behind.
const BEFORE: Duration = Duration::minutes(5);
/// The most that `show` reads of a file.
const READ_MAX: u64 = 1 << 20;

#[derive(Subcommand)]
pub(crate) enum Cert {
    /// Make an authority for development: DIR/ca.pem, which peers trust, and DIR/ca.key.
    Ca(Ca),
    /// Make a certificate for a server, DIR/server.pem and DIR/server.key, or a client.
    Leaf(Leaf),
    /// Print what certificates say: names, validity, usages, fingerprint.
    Show(Show),
}

impl Cert {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Cert::Ca(ca) => ca.run(),
            Cert::Leaf(leaf) => leaf.run(),
            Cert::Show(show) => show.run(),
        }
    }
}

/// Where a certificate and its key are written.
#[derive(Args)]
struct Output {
    /// The folder to write to; it is made if it is absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a certificate and a key that are there.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct Ca {
    #[command(flatten)]
    output: Output,
    /// The authority's name. [default: Valkyrie development CA, and the start of its key's hash]
    #[arg(long)]
    name: Option<String>,
    /// For how many days it is valid.
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

impl Ca {
    fn run(self) -> Result<(), Failure> {
        let key = KeyPair::generate().map_err(|error| fault(error.to_string()))?;
        // No two have the same name, so that who trusts the wrong one can be told so.
        let unique = hex(&digest(&SHA256, &key.subject_public_key_info()).as_ref()[..4]);
        let name = self.name.unwrap_or_else(|| format!("Valkyrie development CA {unique}"));
        let mut params = params(&name, self.days);
        // It signs certificates of servers and clients, and no other authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|error| fault(error.to_string()))?;
        let (pem, secret) = self.output.write("ca", &certificate, &key)?;
        let folder = shell_word(&self.output.out);
        say(&format!(
            "made an authority for development, valid until {}\n  \
             {}  the certificate, for those who shall trust it\n  \
             {}  its private key: who has it can pretend to be any server or client\n\
             next: valkyrie cert leaf --ca {folder} --out {folder} --host localhost --host 127.0.0.1\n",
            date(params.not_after),
            pem.display(),
            secret.display(),
        ))
    }
}

#[derive(Args)]
pub(crate) struct Leaf {
    /// The folder that `cert ca` wrote to.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    #[command(flatten)]
    output: Output,
    /// A name or an address that the certificate is for, repeatable. A server needs one; *.example.com stands for one label.
    #[arg(long, value_name = "HOST", value_parser = host)]
    host: Vec<SanType>,
    /// For a client, instead of a server.
    #[arg(long)]
    client: bool,
    /// A SPIFFE ID to carry: spiffe://domain/path.
    #[arg(long, value_name = "URI", value_parser = spiffe)]
    spiffe: Option<SanType>,
    /// For how many days it is valid; never longer than the authority.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

impl Leaf {
    fn run(self) -> Result<(), Failure> {
        let (role, usage) = match self.client {
            false => ("server", ExtendedKeyUsagePurpose::ServerAuth),
            true => ("client", ExtendedKeyUsagePurpose::ClientAuth),
        };
        if !self.client && self.host.is_empty() {
            return Err(fault(
                "a server's certificate needs the name or address that clients dial: pass --host".into(),
            ));
        }
        if self.host.is_empty() && self.spiffe.is_none() {
            return Err(fault(
                "a client's certificate needs a name: pass --spiffe spiffe://domain/path, or --host".into(),
            ));
        }
        let (authority, ends) = self.authority()?;
        let key = KeyPair::generate().map_err(|error| fault(error.to_string()))?;
        let names: Vec<SanType> = self.spiffe.iter().chain(&self.host).cloned().collect();
        let mut params = params(&plain(&names[0]), self.days);
        params.not_after = params.not_after.min(ends);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &authority).map_err(|error| fault(error.to_string()))?;
        let (pem, secret) = self.output.write(role, &certificate, &key)?;
        let mut text = format!(
            "made a certificate for a {role}, valid until {}\n  {}\n  {}  its private key\nnext: ",
            date(params.not_after),
            pem.display(),
            secret.display()
        );
        // Writing to a string cannot fail.
        let _ = match self.client {
            true => writeln!(
                text,
                "valkyrie send --endpoint tls://localhost:8443 --trusted-certificates {} --client-certificate {} \
                 --client-key {} --message Hello",
                shell_word(&self.ca.join("ca.pem")),
                shell_word(&pem),
                shell_word(&secret),
            ),
            false => {
                let dialled = self.host.iter().find(|host| matches!(host, SanType::IpAddress(_)));
                let dialled = plain(dialled.unwrap_or(&self.host[0])).replacen('*', "any", 1);
                let dialled = if dialled.contains(':') { format!("[{dialled}]") } else { dialled };
                writeln!(
                    text,
                    "valkyrie-server start --bind tls://0.0.0.0:8443 --certificates {} --private-key {} \
                     --open-to-all true\n      \
                     valkyrie send --endpoint tls://{dialled}:8443 --trusted-certificates {} --message Hello",
                    shell_word(&pem),
                    shell_word(&secret),
                    shell_word(&self.ca.join("ca.pem")),
                )
            }
        };
        say(&text)
    }

    /// The authority, and until when it is valid.
    fn authority(&self) -> Result<(Issuer<'static, KeyPair>, OffsetDateTime), Failure> {
        let (pem_path, key_path) = (self.ca.join("ca.pem"), self.ca.join("ca.key"));
        let make = format!("make one with `valkyrie cert ca --out {}`", shell_word(&self.ca));
        let read = |path: &Path| {
            let text = fs::read_to_string(path);
            text.map_err(|error| {
                fault(format!("cannot read the authority's {}: {error}; {make}", path.display()))
            })
        };
        let (pem, secret) = (read(&pem_path)?, read(&key_path)?);
        let unusable = |what: &str| fault(format!("{}: {what}; {make}", pem_path.display()));
        let key = KeyPair::from_pem(&secret)
            .map_err(|_| fault(format!("{} is not a private key in PEM; {make}", key_path.display())))?;
        let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|_| unusable("this is not a certificate in PEM"))?;
        let certificate = parsed.parse_x509().map_err(|_| unusable("this is not a certificate"))?;
        if !certificate.is_ca() {
            return Err(unusable("this certificate is no authority's"));
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(unusable("ca.key belongs to another certificate"));
        }
        let ends = certificate.validity().not_after.to_datetime();
        if ends <= OffsetDateTime::now_utc() {
            return Err(unusable(&format!("the authority expired on {}", date(ends))));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|error| unusable(&error.to_string()))?;
        Ok((issuer, ends))
    }
}

/// What a certificate has in any role.
fn params(name: &str, days: u32) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (now - BEFORE, now + Duration::days(days.into()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Output {
    /// Writes the certificate and its key, and gives their paths.
    fn write(
        &self,
        name: &str,
        certificate: &Certificate,
        key: &KeyPair,
    ) -> Result<(PathBuf, PathBuf), Failure> {
        let at = |path: &Path, error: io::Error| fault(format!("cannot write {}: {error}", path.display()));
        let (pem, secret) = (self.out.join(format!("{name}.pem")), self.out.join(format!("{name}.key")));
        fs::create_dir_all(&self.out).map_err(|error| at(&self.out, error))?;
        for path in [&pem, &secret] {
            // What a link points to, if anything, is not asked: the link itself would be replaced.
            if fs::symlink_metadata(path).is_err() {
                continue;
            }
            if !self.force {
                return Err(fault(format!(
                    "{} exists: choose another --out, or replace it with --force",
                    path.display()
                )));
            }
            fs::remove_file(path).map_err(|error| at(path, error))?;
        }
        let mut private = OpenOptions::new();
        private.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut private, 0o600);
        let written =
            private.open(&secret).and_then(|mut file| file.write_all(key.serialize_pem().as_bytes()));
        written.map_err(|error| at(&secret, error))?;
        let written = OpenOptions::new().write(true).create_new(true).open(&pem);
        let written = written.and_then(|mut file| file.write_all(certificate.pem().as_bytes()));
        written.map_err(|error| at(&pem, error))?;
        Ok((pem, secret))
    }
}

/// A name or an address as a certificate carries it.
fn host(text: &str) -> Result<SanType, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.to_ascii_lowercase();
    if name.len() > 253 || !name.strip_prefix("*.").unwrap_or(&name).split('.').all(label) {
        return Err("neither a host name nor an IP address; write it without scheme and port".into());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|error: rcgen::Error| error.to_string())?))
}

/// A SPIFFE ID (the SPIFFE-ID standard, section 2).
fn spiffe(text: &str) -> Result<SanType, String> {
    let rest = text.strip_prefix("spiffe://").ok_or("write spiffe://domain/path")?;
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let common = |byte: u8| byte.is_ascii_digit() || b".-_".contains(&byte);
    if !(1..=255).contains(&domain.len())
        || !domain.bytes().all(|byte| byte.is_ascii_lowercase() || common(byte))
    {
        return Err(
            "the trust domain has only lower-case letters, digits, dots, dashes and underscores".into()
        );
    }
    let segment = |segment: &str| {
        !["", ".", ".."].contains(&segment)
            && segment.bytes().all(|byte| byte.is_ascii_alphabetic() || common(byte))
    };
    if text.len() > 2048 || path.is_some_and(|path| !path.split('/').all(segment)) {
        return Err("each part of the path has only letters, digits, dots, dashes and underscores, and the \
                    whole at most 2048 bytes"
            .into());
    }
    Ok(SanType::URI(text.try_into().map_err(|error: rcgen::Error| error.to_string())?))
}

/// A name as it was given.
fn plain(name: &SanType) -> String {
    match name {
        SanType::DnsName(text) | SanType::URI(text) | SanType::Rfc822Name(text) => text.as_str().to_owned(),
        SanType::IpAddress(address) => address.to_string(),
        // `host` and `spiffe` make no others.
        _ => String::new(),
    }
}

#[derive(Args)]
pub(crate) struct Show {
    /// A file of certificates in PEM, or of one in DER.
    file: PathBuf,
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let name = self.file.display();
        let mut bytes = Vec::new();
        let read = fs::File::open(&self.file).and_then(|file| file.take(READ_MAX).read_to_end(&mut bytes));
        read.map_err(|error| fault(format!("cannot read {name}: {error}")))?;
        // DER begins with a SEQUENCE.
        let mut shown = if bytes.first() == Some(&0x30) { vec![describe(&bytes)] } else { Vec::new() };
        let mut others = Vec::new();
        if shown.is_empty() {
            for block in Pem::iter_from_buffer(&bytes) {
                let Ok(block) = block else {
                    shown.push(Err("this block of PEM is damaged".into()));
                    break;
                };
                match block.label.as_str() {
                    "CERTIFICATE" => shown.push(describe(&block.contents)),
                    _ => others.push(line(&block.label)),
                }
            }
        }
        if shown.is_empty() {
            let found = if others.is_empty() { "no PEM".into() } else { others.join(", ") };
            return Err(fault(format!("{name} has no certificate: it has {found}")));
        }
        let count = shown.len();
        for (number, text) in (1..).zip(shown) {
            let text = text.map_err(|error: String| {
                fault(format!("{name}, certificate {number} of {count}: {error}"))
            })?;
            let heading =
                if count == 1 { String::new() } else { format!("certificate {number} of {count}\n") };
            say(&format!("{heading}{text}"))?;
        }
        Ok(())
    }
}

/// What one certificate says. Every text in it is its maker's: it may hold control characters and be long.
fn describe(der: &[u8]) -> Result<String, String> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| "this is not a certificate".to_owned())?;
    if !rest.is_empty() {
        return Err(format!("{} bytes stand behind the certificate", rest.len()));
    }
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12}{}", line(value));
    };
    row("subject", &certificate.subject().to_string());
    row("issuer", &certificate.issuer().to_string());
    row("serial", &hex(certificate.raw_serial()));
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => {
            names.value.general_names.iter().for_each(|entry| row("name", &alternative(entry)))
        }
        Ok(None) => row("name", "none: clients do not look at the subject"),
        Err(_) => row("name", "not readable"),
    }
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    let now = OffsetDateTime::now_utc();
    let state = match () {
        () if now < from => " (not yet valid)",
        () if now > until => " (expired)",
        () => "",
    };
    row("valid", &format!("from {} until {}{state}", moment(from), moment(until)));
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => row(
            "authority",
            &match constraints.value.path_len_constraint {
                Some(length) => format!("yes, with at most {length} authorities below it"),
                None => "yes".into(),
            },
        ),
        Ok(_) => row("authority", "no"),
        Err(_) => row("authority", "not readable"),
    }
    if let Ok(Some(usage)) = certificate.key_usage() {
        row("key usage", &usage.value.to_string());
    }
    row("purpose", &purposes(&certificate));
    let signed_with = &certificate.signature_algorithm.algorithm;
    row(
        "signed with",
        &oid2sn(signed_with, oid_registry()).map_or_else(|_| signed_with.to_id_string(), str::to_owned),
    );
    row("sha-256", &hex(digest(&SHA256, der).as_ref()));
    Ok(text)
}

fn purposes(certificate: &X509Certificate<'_>) -> String {
    let usage = match certificate.extended_key_usage() {
        Ok(Some(usage)) => usage.value,
        Ok(None) => return "any: it names none".into(),
        Err(_) => return "not readable".into(),
    };
    let named = [
        (usage.any, "any"),
        (usage.server_auth, "server"),
        (usage.client_auth, "client"),
        (usage.code_signing, "code signing"),
        (usage.email_protection, "email"),
        (usage.time_stamping, "time stamping"),
        (usage.ocsp_signing, "OCSP signing"),
    ];
    let named = named.iter().filter(|(has, _)| *has).map(|(_, name)| (*name).to_owned());
    named.chain(usage.other.iter().map(|oid| oid.to_id_string())).collect::<Vec<_>>().join(", ")
}

fn alternative(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            (*name).to_owned()
        }
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => IpAddr::from(v4).to_string(),
            (_, Ok(v6)) => IpAddr::from(v6).to_string(),
            _ => format!("an address of {} bytes", bytes.len()),
        },
        other => other.to_string(),
    }
}

/// Text from a file on one line of a terminal.
fn line(text: &str) -> String {
    escape(text).replace('\n', "\\n").replace('\t', "\\t")
}

fn date(instant: OffsetDateTime) -> String {
    format!("{:04}-{:02}-{:02}", instant.year(), u8::from(instant.month()), instant.day())
}

fn moment(instant: OffsetDateTime) -> String {
    let (hour, minute, second) = instant.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", date(instant))
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let harmless = |c: char| c.is_alphanumeric() || "/._-+@%:=,".contains(c);
    if !text.is_empty() && text.chars().all(harmless) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn fault(text: String) -> Failure {
    Failure::Io(io::Error::other(text))
}

fn say(text: &str) -> Result<(), Failure> {
    print(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses() {
        for good in
            ["localhost", "127.0.0.1", "::1", "*.example.com", "a-b.Example.com", "xn--e1afmkfd.example"]
        {
            assert_eq!(plain(&host(good).unwrap()), good.to_ascii_lowercase());
        }
        let long = format!("{}.{}", "a".repeat(63), "b".repeat(64));
        for bad in [
            "", ".", "a..b", "-a", "a-", "*", "*.*.a", "a.*", "tls://a", "a:1", "[::1]", "a b", "ä", "a\n",
            &long,
        ] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn spiffe_ids_follow_the_standard() {
        for good in ["spiffe://example.org", "spiffe://example.org/a/b-1_2.3", "spiffe://1/A"] {
            assert_eq!(plain(&spiffe(good).unwrap()), good);
        }
        let long = format!("spiffe://a/{}", "b".repeat(2048));
        for bad in [
            "",
            "https://a/b",
            "SPIFFE://a/b",
            "spiffe://",
            "spiffe:///a",
            "spiffe://A/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a/.",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://u@a/b",
            "spiffe://a:1/b",
            "spiffe://a/%62",
            "spiffe://a/b c",
            &long,
        ] {
            assert!(spiffe(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_shell_takes_every_path_as_one_word() {
        assert_eq!(shell_word(Path::new("a/b.pem")), "a/b.pem");
        assert_eq!(shell_word(Path::new("a b'; rm")), r"'a b'\''; rm'");
    }

    /// Nothing that a file holds makes `show` panic.
    #[test]
    fn damaged_certificates_are_described_or_refused() {
        let key = KeyPair::generate().unwrap();
        let mut params = params("a\u{1b}[2J\nb", 1);
        params.subject_alt_names = vec![host("localhost").unwrap(), host("::1").unwrap()];
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let text = describe(&der).unwrap();
        assert!(text.contains("subject     CN=a\\u{1b}[2J\\nb\n"), "{text}");
        assert!(text.contains("name        ::1\n"), "{text}");
        for at in 0..der.len() {
            assert!(describe(&der[..at]).is_err());
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut damaged = der.clone();
                damaged[at] = value;
                let _ = describe(&damaged);
            }
        }
        assert!(describe(&[&der[..], &[0]].concat()).unwrap_err().contains("1 bytes stand behind"));
    }
}
