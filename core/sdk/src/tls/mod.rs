//! TLS 1.3: whom a side trusts, what it shows, and how each failure is said. The records are `transport::tls`'s.
//!
//! One configuration serves `tls://`, `wss://`, `quic://` and sealed sessions. Nothing is resumed: each connection verifies
//! anew, so that a certificate which was replaced or revoked ends with the connections it made. There is no early data.

mod client;
mod fresh;
#[cfg(feature = "native")]
mod server;

pub(crate) use client::{ClientSecurity, ClientTls};
use fresh::Fresh;
#[cfg(feature = "native")]
pub(crate) use server::{ServerSecurity, ServerTls, proved};

#[cfg(not(target_arch = "wasm32"))]
use std::path::PathBuf;
use std::{fmt, io, sync::Arc};

use bytes::Bytes;
use rustls::{
    AlertDescription, CertificateError, PeerIncompatible, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use valkyrie_protocol::{Reason, Status};
use zeroize::Zeroizing;

/// ALPN of `tls://` and `quic://` (PROTOCOL.md, "Security").
#[cfg(feature = "native")]
pub(crate) const ALPN: &[u8] = b"valkyrie/1";
/// ALPN of a sealed session.
pub(crate) const ALPN_SEALED: &[u8] = b"valkyrie-sealed/1";
/// ALPN of `wss://`, whose subprotocol says the rest.
#[cfg(feature = "websocket")]
pub(crate) const ALPN_HTTP: &[u8] = b"http/1.1";

/// Certificates or a private key in PEM: the text itself, or a file that is read again when it changes.
///
/// A file is looked at once a second at most, when a connection is made: one that is replaced serves the next connection,
/// and those that stand go on. While what it holds cannot be used, what was read before is.
#[derive(Clone)]
pub struct Pem(Source);

#[derive(Clone)]
enum Source {
    Text(Arc<Zeroizing<Vec<u8>>>),
    #[cfg(not(target_arch = "wasm32"))]
    File(PathBuf),
}

impl Pem {
    /// The file at `path`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    fn read(&self) -> Result<Arc<Zeroizing<Vec<u8>>>, String> {
        match &self.0 {
            Source::Text(text) => Ok(text.clone()),
            #[cfg(not(target_arch = "wasm32"))]
            Source::File(path) => match std::fs::read(path) {
                Ok(text) => Ok(Arc::new(Zeroizing::new(text))),
                Err(error) => Err(format!("cannot be read from {}: {error}", path.display())),
            },
        }
    }

    /// Its certificates, at least one.
    fn certificates(&self, whose: &str) -> Result<Vec<CertificateDer<'static>>, Status> {
        let text = self.read().map_err(|why| invalid(format!("{whose} {why}")))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match found {
            Ok(found) if found.is_empty() => Err(invalid(format!("{whose} {self} holds no certificate"))),
            Ok(found) => Ok(found),
            Err(error) => Err(invalid(format!("{whose} {self} is not PEM: {error}"))),
        }
    }

    fn key(&self, whose: &str) -> Result<PrivateKeyDer<'static>, Status> {
        let text = self.read().map_err(|why| invalid(format!("{whose} {why}")))?;
        // The error may quote what it could not read.
        PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            invalid(format!("{whose} {self} holds no private key in PEM (PKCS#8, SEC1 or PKCS#1)"))
        })
    }

    fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, Status> {
        let text = self.read().map_err(|why| invalid(format!("the revocation list {why}")))?;
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(invalid(format!("the revocation list {self} holds none in PEM"))),
        }
    }
}

/// Where it is from. What it holds may be a secret.
impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Text(text) => write!(f, "({} bytes)", text.len()),
            #[cfg(not(target_arch = "wasm32"))]
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem {self}")
    }
}

impl<T: Into<Bytes>> From<T> for Pem {
    fn from(text: T) -> Self {
        Self(Source::Text(Arc::new(Zeroizing::new(text.into().to_vec()))))
    }
}

fn invalid(message: String) -> Status {
    Status::from_reason(Reason::INVALID_CONFIGURATION, message)
}

/// The provider, with the suite first that this machine is quicker with: AES-256-GCM where the processor has
/// instructions for it, ChaCha20-Poly1305 elsewhere.
fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    let chacha = rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
    if !has_aes()
        && let Some(at) = provider.cipher_suites.iter().position(|suite| suite.suite() == chacha)
    {
        provider.cipher_suites[..=at].rotate_right(1);
    }
    Arc::new(provider)
}

fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

/// A certificate chain and its private key.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificates: Pem,
    pub(crate) key: Pem,
}

impl Identity {
    fn certified(&self, whose: &str, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Status> {
        let chain = self.certificates.certificates(&format!("{whose} certificate"))?;
        let key = self.key.key(&format!("{whose} private key"))?;
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            invalid(format!("{whose} certificate {} and its key: {error}", self.certificates))
        })?;
        Ok(Arc::new(certified))
    }
}

fn roots(trusted: Option<&Pem>, system: bool) -> Result<RootCertStore, Status> {
    let mut roots = RootCertStore::empty();
    if let Some(trusted) = trusted {
        for certificate in trusted.certificates("the trusted certificate")? {
            roots.add(certificate).map_err(|error| {
                invalid(format!("the trusted certificate {trusted} is not usable: {error}"))
            })?;
        }
    }
    if system {
        #[cfg(not(target_arch = "wasm32"))]
        {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(invalid(
                    "the system has no certificate authorities: give trusted certificates".into(),
                ));
            }
        }
        #[cfg(target_arch = "wasm32")]
        return Err(invalid("a page cannot ask for the system's authorities; give them as text".into()));
    }
    Ok(roots)
}

/// An error of a connection, with the status that its callers get.
pub(crate) fn failed(reason: Reason, message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Status::from_reason(reason, message.into()))
}

/// What went wrong, as the side sees it that found it.
pub(crate) fn told(error: &rustls::Error, peer: &str) -> io::Error {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(why) => {
            let (reason, why) = certificate(why);
            failed(reason, format!("the {peer}'s certificate {why}"))
        }
        // A server that shows none breaks a rule of TLS: that is no certificate's fault.
        E::NoCertificatesPresented if peer == "client" => {
            failed(Reason::CLIENT_CERTIFICATE_REQUIRED, "the client showed no certificate")
        }
        E::AlertReceived(alert) => told_by_alert(*alert, peer),
        E::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => failed(Reason::TLS_VERSION, format!("the peer does not speak TLS 1.3: {error}")),
        E::NoApplicationProtocol => no_protocol(),
        E::DecryptError => failed(
            Reason::RECORD_AUTHENTICATION,
            "a record is not what the peer sent: somebody changed, repeated, reordered or dropped what is encrypted",
        ),
        E::InvalidCertRevocationList(why) => {
            failed(Reason::CERTIFICATE_INVALID, format!("the revocation list cannot be used: {why:?}"))
        }
        other => failed(Reason::TLS_FAILED, format!("the TLS handshake or a record failed: {other}")),
    }
}

/// A chain whose signature does not match is signed by another authority, which may have a trusted one's name: it is told
/// apart from the peer's own signature, for which rustls has the same word.
fn chain<T>(verified: Result<T, rustls::Error>) -> Result<T, rustls::Error> {
    verified.map_err(|error| match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    })
}

pub(crate) fn no_protocol() -> io::Error {
    failed(Reason::ALPN_MISMATCH, "the peer speaks TLS, but not Valkyrie over it (ALPN)")
}

/// What an alert of the peer's says.
pub(crate) fn told_by_alert(alert: AlertDescription, peer: &str) -> io::Error {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => failed(
            Reason::CLIENT_CERTIFICATE_REQUIRED,
            "the peer asks for a client certificate, and none was shown",
        ),
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::DecryptError
        | A::AccessDenied => {
            // The reason is a client's word. A server learns that its own certificate is not taken, and of what kind it seems.
            let reason = match peer {
                "client" => Reason::TLS_FAILED,
                _ => Reason::CLIENT_CERTIFICATE_REFUSED,
            };
            failed(reason, format!("the {peer} refused this side's certificate: {alert:?}"))
        }
        A::ProtocolVersion => failed(Reason::TLS_VERSION, "the peer does not speak TLS 1.3"),
        A::NoApplicationProtocol => no_protocol(),
        A::BadRecordMac => failed(
            Reason::RECORD_AUTHENTICATION,
            "a record did not arrive as it was sent: somebody changed it on its way",
        ),
        alert => failed(Reason::TLS_FAILED, format!("the peer ended TLS: {alert:?}")),
    }
}

fn certificate(why: &CertificateError) -> (Reason, String) {
    use CertificateError as C;
    match why {
        C::Expired => (Reason::CERTIFICATE_EXPIRED, "has expired".into()),
        C::ExpiredContext { not_after, .. } => {
            (Reason::CERTIFICATE_EXPIRED, format!("expired on {}", date(not_after)))
        }
        C::NotValidYet => (Reason::CERTIFICATE_NOT_YET_VALID, "is not valid yet".into()),
        C::NotValidYetContext { not_before, .. } => {
            (Reason::CERTIFICATE_NOT_YET_VALID, format!("is not valid before {}", date(not_before)))
        }
        C::NotValidForName => (Reason::CERTIFICATE_NAME, "is for another name".into()),
        C::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            let mut names: Vec<_> =
                presented.iter().take(5).map(|name| name.escape_debug().to_string()).collect();
            if presented.len() > names.len() {
                names.push(format!("{} more", presented.len() - names.len()));
            }
            (Reason::CERTIFICATE_NAME, format!("is not for {expected}, only for [{}]", names.join(", ")))
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            (Reason::CERTIFICATE_USAGE, "is not for this usage (extended key usage)".into())
        }
        C::UnknownIssuer => (
            Reason::CERTIFICATE_UNTRUSTED,
            "ends in no authority that is trusted, though maybe in one of the same name".into(),
        ),
        // The chain's signatures are looked at in `chain`: this one proves that the peer has the key.
        C::BadSignature => (Reason::CERTIFICATE_INVALID, "is shown by somebody who has not its key".into()),
        C::Revoked => (Reason::CERTIFICATE_REVOKED, "was revoked".into()),
        other => (Reason::CERTIFICATE_INVALID, format!("cannot be used: {other}")),
    }
}

/// The day of the proleptic Gregorian calendar, in UTC: `2026-11-21`.
fn date(time: &UnixTime) -> String {
    // Years begin in March here, so that a leap day is a year's last.
    let days = time.as_secs() / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (secs, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_798_675_199, "2026-12-30"),
            (4_102_444_800, "2100-01-01"),
        ] {
            assert_eq!(date(&UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs))), text);
        }
    }

    #[test]
    fn what_may_be_a_key_is_not_printed() {
        let pem = Pem::from("-----BEGIN PRIVATE KEY-----");
        assert_eq!(format!("{pem} {pem:?}"), "(27 bytes) Pem (27 bytes)");
    }
}
