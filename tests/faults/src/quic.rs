//! An evil QUIC client: quinn's, whose packets may say something else than it meant; and the frames that they say.
//!
//! It still counts packets, seals them and believes their acknowledgements, so that what it says is read.

use std::{any::Any, net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use quinn::{
    crypto::{
        ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
        rustls::QuicClientConfig,
    },
    rustls::{
        self,
        pki_types::{CertificateDer, pem::PemObject},
    },
};
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError, transport_parameters::TransportParameters,
};

/// Sees the frames of each packet behind the handshake, and may change them before they are sealed.
pub type Rewrite = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// What a client that trusts these certificates, in PEM, says in its handshake.
///
/// # Panics
/// When they are no certificates.
pub fn config(trusted: &str, rewrite: Rewrite) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(trusted.as_bytes()).expect("a certificate in PEM");
    roots.add(certificate).expect("a certificate that may be trusted");
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
    tls.alpn_protocols = vec![b"valkyrie/1".to_vec()];
    let tls = Arc::new(QuicClientConfig::try_from(tls).expect("the provider has QUIC's suites"));
    quinn::ClientConfig::new(Arc::new(Tampered { tls, rewrite }))
}

/// Connects, from a port of its own.
///
/// # Panics
/// When it is not let in.
pub async fn connect(server: SocketAddr, config: quinn::ClientConfig) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let connecting = endpoint.connect_with(config, server, "127.0.0.1").expect("a configuration that holds");
    connecting.await.expect("the server lets everybody in")
}

/// One STREAM frame, at an offset below 2^30.
pub fn stream_frame(out: &mut Vec<u8>, stream: u64, offset: u32, data: &[u8]) {
    out.push(0x0e);
    out.extend((stream as u32 | 0x8000_0000).to_be_bytes());
    out.extend((offset | 0x8000_0000).to_be_bytes());
    out.extend((data.len() as u16 | 0x4000).to_be_bytes());
    out.extend(data);
}

/// Turns the STREAM frames of a stream in a packet into padding; how many bytes of the stream those held.
///
/// # Panics
/// When the packet holds a frame that quinn's client does not send.
pub fn hide_stream(packet: &mut [u8], hidden: u64) -> usize {
    let (mut at, mut bytes) = (0, 0);
    while at < packet.len() {
        let start = at;
        let kind = varint(packet, &mut at);
        let numbers = match kind {
            0x00 | 0x01 | 0x1f => 0,
            0x02 | 0x03 => {
                varint(packet, &mut at);
                varint(packet, &mut at);
                let ranges = varint(packet, &mut at);
                1 + 2 * ranges + if kind == 0x03 { 3 } else { 0 }
            }
            0x04 => 3,
            0xaf => 4,
            0x05 | 0x11 | 0x15 => 2,
            0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => 1,
            0x08..=0x0f => {
                let id = varint(packet, &mut at);
                if kind & 4 != 0 {
                    varint(packet, &mut at);
                }
                let len = match kind & 2 {
                    0 => packet.len() - at,
                    _ => varint(packet, &mut at) as usize,
                };
                at += len;
                if id == hidden {
                    packet[start..at].fill(0);
                    bytes += len;
                }
                0
            }
            0x18 => {
                varint(packet, &mut at);
                varint(packet, &mut at);
                at += 1 + usize::from(packet[at]) + 16;
                0
            }
            0x1a | 0x1b => {
                at += 8;
                0
            }
            0x1c | 0x1d => return bytes,
            other => panic!("a frame of type {other:#x}"),
        };
        for _ in 0..numbers {
            varint(packet, &mut at);
        }
    }
    bytes
}

/// QUIC's numbers: the first two bits say how long they are.
fn varint(packet: &[u8], at: &mut usize) -> u64 {
    let len = 1 << (packet[*at] >> 6);
    let number = packet[*at..*at + len].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    *at += len;
    number & ((1 << (8 * len - 2)) - 1)
}

struct Tampered {
    tls: Arc<QuicClientConfig>,
    rewrite: Rewrite,
}

impl ClientConfig for Tampered {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        name: &str,
        parameters: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let tls = self.tls.clone().start_session(version, name, parameters)?;
        Ok(Box::new(TamperedSession { tls, rewrite: self.rewrite.clone(), in_handshake: true }))
    }
}

struct TamperedSession {
    tls: Box<dyn Session>,
    rewrite: Rewrite,
    /// The next keys are those of the handshake, which is left alone.
    in_handshake: bool,
}

impl TamperedSession {
    fn tampered(&self, keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        let local = Box::new(TamperedKey { key: keys.local, rewrite: self.rewrite.clone() });
        KeyPair { local, remote: keys.remote }
    }
}

impl Session for TamperedSession {
    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        self.tls.initial_keys(id, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.tls.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.tls.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.tls.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    fn read_handshake(&mut self, data: &[u8]) -> Result<bool, TransportError> {
        self.tls.read_handshake(data)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.tls.transport_parameters()
    }

    fn write_handshake(&mut self, out: &mut Vec<u8>) -> Option<Keys> {
        let keys = self.tls.write_handshake(out)?;
        if std::mem::take(&mut self.in_handshake) {
            return Some(keys);
        }
        Some(Keys { header: keys.header, packet: self.tampered(keys.packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.tls.next_1rtt_keys()?;
        Some(self.tampered(keys))
    }

    fn is_valid_retry(&self, id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.tls.is_valid_retry(id, header, payload)
    }

    fn export_keying_material(
        &self,
        out: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.tls.export_keying_material(out, label, context)
    }
}

struct TamperedKey {
    key: Box<dyn PacketKey>,
    rewrite: Rewrite,
}

impl PacketKey for TamperedKey {
    fn encrypt(&self, number: u64, packet: &mut [u8], header_len: usize) {
        let end = packet.len() - self.key.tag_len();
        (self.rewrite)(&mut packet[header_len..end]);
        self.key.encrypt(number, packet, header_len);
    }

    fn decrypt(&self, number: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.key.decrypt(number, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}
