//! What a server shows, and whose clients it takes.

#[cfg(feature = "quic")]
use std::sync::Mutex;
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use valkyrie_protocol::Status;

use super::{Fresh, Identity, Pem, chain, has_aes, invalid, provider, roots};
#[cfg(feature = "quic")]
use crate::connection::lock;
use crate::{Peer, PeerCertificate, log::Logger};

/// What a server says of TLS.
#[derive(Default)]
pub(crate) struct ServerTls {
    pub(crate) identity: Option<Identity>,
    pub(crate) authorities: Option<Pem>,
    pub(crate) revoked: Option<Pem>,
    pub(crate) log: Logger,
    /// Made once, for all of a server's ports.
    pub(crate) built: OnceLock<ServerSecurity>,
}

#[derive(Debug)]
struct ServerParts {
    key: Arc<CertifiedKey>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// What a server shows, and whom it takes: for every handshake what the files hold now.
#[derive(Clone)]
pub(crate) struct ServerSecurity {
    served: Arc<Served>,
    provider: Arc<CryptoProvider>,
}

struct Served {
    fresh: Fresh<ServerParts>,
    schemes: Vec<SignatureScheme>,
    mandatory: bool,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads and checks it. None without an identity.
    pub(crate) fn build(&self) -> Result<Option<ServerSecurity>, Status> {
        if let Some(built) = self.built.get() {
            return Ok(Some(built.clone()));
        }
        let Some(identity) = self.identity.clone() else {
            return match self.authorities {
                Some(_) => Err(invalid(
                    "client authorities without a certificate; call .identity(certificates, key)".into(),
                )),
                None => Ok(None),
            };
        };
        let provider = provider();
        let sources = [&identity.certificates, &identity.key].into_iter();
        let sources: Vec<Pem> = sources.chain(&self.authorities).chain(&self.revoked).cloned().collect();
        let parts = {
            let (authorities, revoked) = (self.authorities.clone(), self.revoked.clone());
            let provider = provider.clone();
            move || {
                let key = identity.certified("the server's", &provider)?;
                let Some(authorities) = &authorities else {
                    return Ok(ServerParts { key, verifier: WebPkiClientVerifier::no_client_auth() });
                };
                let roots = roots(Some(authorities), false)?;
                let mut builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
                if let Some(revoked) = &revoked {
                    builder = builder
                        .with_crls(revoked.revocation_lists()?)
                        .only_check_end_entity_revocation()
                        .allow_unknown_revocation_status();
                }
                let verifier =
                    builder.build().map_err(|error| invalid(format!("the client authorities: {error}")))?;
                Ok(ServerParts { key, verifier })
            }
        };
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mandatory = self.authorities.is_some();
        let fresh = Fresh::new(&sources.iter().collect::<Vec<_>>(), self.log.clone(), parts)?;
        let built = ServerSecurity { served: Arc::new(Served { fresh, schemes, mandatory }), provider };
        Ok(Some(self.built.get_or_init(|| built).clone()))
    }
}

impl ServerSecurity {
    /// A configuration whose connections speak one of `alpn`.
    pub(crate) fn config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, Status> {
        self.verified_by(self.served.clone(), alpn)
    }

    fn verified_by(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
        alpn: &[&[u8]],
    ) -> Result<ServerConfig, Status> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| invalid(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.served.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        // Where this machine has no instructions for AES, its own order counts.
        config.ignore_client_order = !has_aes();
        Ok(config)
    }

    /// Whether clients have to show a certificate.
    #[cfg(feature = "quic")]
    pub(crate) fn asks(&self) -> bool {
        self.served.mandatory
    }

    /// The configuration of one connection, and what it will have noted.
    #[cfg(feature = "quic")]
    pub(crate) fn noting(&self, alpn: &[&[u8]]) -> Result<(ServerConfig, Arc<Noting>), Status> {
        let noting = Arc::new(Noting { served: self.served.clone(), refused: Mutex::default() });
        Ok((self.verified_by(noting.clone(), alpn)?, noting))
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.fresh.current().key.clone())
    }
}

impl ClientCertVerifier for Served {
    fn offer_client_auth(&self) -> bool {
        self.mandatory
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: a stranger need not learn whom the server trusts.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        chain(self.fresh.current().verifier.verify_client_cert(end_entity, intermediates, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.fresh.current().verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.fresh.current().verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// Verifies a client's certificate, and notes why it was refused: QUIC tells no more of it than an alert does.
#[cfg(feature = "quic")]
#[derive(Debug)]
pub(crate) struct Noting {
    served: Arc<Served>,
    refused: Mutex<Option<rustls::Error>>,
}

#[cfg(feature = "quic")]
impl Noting {
    /// Why the client's certificate was refused.
    pub(crate) fn refused(&self) -> Option<rustls::Error> {
        lock(&self.refused).take()
    }
}

#[cfg(feature = "quic")]
impl ClientCertVerifier for Noting {
    fn offer_client_auth(&self) -> bool {
        self.served.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.served.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.served.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.served.verify_client_cert(end_entity, intermediates, now);
        verified.inspect_err(|error| *lock(&self.refused) = Some(error.clone()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.served.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = self.served.verify_tls13_signature(message, cert, dss);
        verified.inspect_err(|error| *lock(&self.refused) = Some(error.clone()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.served.supported_verify_schemes()
    }
}

/// Adds to a peer what TLS proved of it.
pub(crate) fn proved(mut peer: Peer, chain: Option<&[CertificateDer<'_>]>) -> Peer {
    peer.encrypted = true;
    peer.certificate = chain.and_then(|chain| chain.first()).map(|leaf| Arc::new(described(leaf)));
    peer
}

fn described(leaf: &CertificateDer<'_>) -> PeerCertificate {
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest.as_ref());
    let mut described = PeerCertificate { sha256, ..PeerCertificate::default() };
    if let Ok(parsed) = webpki::EndEntityCert::try_from(leaf) {
        described.dns_names = parsed.valid_dns_names().map(str::to_owned).collect();
        described.uris = parsed.valid_uri_names().map(str::to_owned).collect();
    }
    described
}
