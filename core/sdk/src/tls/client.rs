//! What a client trusts and shows.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use valkyrie_protocol::Status;

use super::{Fresh, Identity, Pem, chain, invalid, provider, roots};
use crate::{Endpoint, connection::lock, log::Logger};

/// What a client says of TLS.
#[derive(Clone, Default)]
pub(crate) struct ClientTls {
    pub(crate) trusted: Option<Pem>,
    pub(crate) system_roots: bool,
    pub(crate) revoked: Option<Pem>,
    pub(crate) identity: Option<Identity>,
    pub(crate) name: Option<String>,
    pub(crate) sealed: bool,
    pub(crate) log: Logger,
}

impl ClientTls {
    /// Reads and checks it, for connections to `endpoint`.
    pub(crate) fn build(&self, endpoint: &Endpoint) -> Result<ClientSecurity, Status> {
        let name = self.name.as_deref().unwrap_or(endpoint.host());
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| invalid(format!("{name:?} is neither a DNS name nor an IP address to verify")))?;
        if self.trusted.is_none() && !self.system_roots {
            return Err(invalid(format!(
                "whom to trust at {endpoint} is not said: give trusted certificates, or take the system's roots"
            )));
        }
        let provider = provider();
        let said = self.clone();
        let sources = [&said.trusted, &said.revoked].into_iter().flatten();
        let sources: Vec<&Pem> =
            sources.chain(said.identity.iter().flat_map(|own| [&own.certificates, &own.key])).collect();
        let parts = {
            let (said, provider) = (self.clone(), provider.clone());
            move || {
                let roots = roots(said.trusted.as_ref(), said.system_roots)?;
                let mut builder = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
                if let Some(revoked) = &said.revoked {
                    builder = builder
                        .with_crls(revoked.revocation_lists()?)
                        .only_check_end_entity_revocation()
                        .allow_unknown_revocation_status();
                }
                let verifier =
                    builder.build().map_err(|error| invalid(format!("the trusted certificates: {error}")))?;
                let identity = said.identity.as_ref().map(|own| own.certified("the client's", &provider));
                Ok(ClientParts { verifier, identity: identity.transpose()? })
            }
        };
        Ok(ClientSecurity { fresh: Fresh::new(&sources, self.log.clone(), parts)?, name, provider })
    }
}

struct ClientParts {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
}

/// What a client verifies and shows.
pub(crate) struct ClientSecurity {
    fresh: Fresh<ClientParts>,
    pub(crate) name: ServerName<'static>,
    provider: Arc<CryptoProvider>,
}

impl ClientSecurity {
    /// The configuration of one connection, and what it will have noted.
    pub(crate) fn config(&self, alpn: &[u8]) -> Result<(Arc<ClientConfig>, Arc<Noted>), Status> {
        let parts = self.fresh.current();
        let noted = Arc::new(Noted {
            verifier: parts.verifier.clone(),
            identity: parts.identity.clone(),
            refused: Mutex::default(),
            asked: AtomicBool::new(false),
        });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| invalid(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(noted.clone())
            .with_client_cert_resolver(noted.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok((Arc::new(config), noted))
    }
}

/// Verifies the server's certificate as webpki does, shows the client's, and notes what came of both: a carrier that runs
/// TLS by itself tells less.
#[derive(Debug)]
pub(crate) struct Noted {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
    refused: Mutex<Option<rustls::Error>>,
    asked: AtomicBool,
}

impl Noted {
    /// Whether the server asked for a certificate: whether it takes ours, or none, is known with its first word.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Why the server's certificate was refused.
    #[cfg(feature = "quic")]
    pub(crate) fn refused(&self) -> Option<rustls::Error> {
        lock(&self.refused).take()
    }
}

impl ResolvesClientCert for Noted {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        // Also without one: it is to be noted that it was asked for.
        true
    }
}

impl ServerCertVerifier for Noted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        chain(verified).inspect_err(|error| *lock(&self.refused) = Some(error.clone()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = self.verifier.verify_tls13_signature(message, cert, dss);
        verified.inspect_err(|error| *lock(&self.refused) = Some(error.clone()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
