//! TLS 1.3 around any transport: rustls' own records carry the connection's bytes, whatever carries the records.
//!
//! Around a TCP socket this is `tls://`; around any other carrier it is a sealed session, whose two ends may be a page and
//! a server with proxies between them that end the TLS outside.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::{
    client::{ClientConnectionData, UnbufferedClientConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};
#[cfg(feature = "native")]
use rustls::{
    pki_types::CertificateDer,
    server::{ServerConnectionData, UnbufferedServerConnection},
};
use valkyrie_protocol::Reason;

#[cfg(feature = "native")]
use super::socket::{Socket, connect_tcp};
use super::{Pollable, ReadBuffer};
use crate::{
    BoxFuture, Connector, Endpoint, Transport,
    tls::{ALPN_SEALED, ClientSecurity, failed, no_protocol, told},
};

/// The longest plaintext of a record (RFC 8446, section 5.1), and what a record adds to it at most.
const RECORD: usize = 16 << 10;
const RECORD_OVERHEAD: usize = 5 + 1 + 16;
/// Records that are written in one go.
const WRITE_AHEAD: usize = 64 << 10;
/// Who reads and writes no more at once gives its room back at rest.
const LITTLE: usize = 8 << 10;
/// Room for one read.
const READ_LEAST: usize = 4 << 10;
const READ_MOST: usize = 64 << 10;
/// What a stranger may send before it has proven who it is.
const MOST_BEFORE: usize = 16 << 10;
/// Records that bring nothing, such as updates of keys; each such amount of bytes forgives one.
const MOST_EMPTY: usize = 32;
const ONE_MORE_AFTER: usize = 64 << 10;

/// One side of rustls' state machine.
pub(crate) trait Side: Send + 'static {
    type Data;
    /// What the other side is called.
    const PEER: &str;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// Whether TLS itself has something to say.
    fn wants_write(&self) -> bool;
    fn alpn(&self) -> Option<&[u8]>;
    #[cfg(feature = "native")]
    fn chain(&self) -> Option<&[CertificateDer<'static>]>;
}

macro_rules! side {
    ($connection:ty, $data:ty, $peer:literal) => {
        impl Side for $connection {
            type Data = $data;
            const PEER: &str = $peer;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(incoming)
            }

            fn wants_write(&self) -> bool {
                std::ops::Deref::deref(self).wants_write()
            }

            fn alpn(&self) -> Option<&[u8]> {
                self.alpn_protocol()
            }

            #[cfg(feature = "native")]
            fn chain(&self) -> Option<&[CertificateDer<'static>]> {
                self.peer_certificates()
            }
        }
    };
}

side!(UnbufferedClientConnection, ClientConnectionData, "server");
#[cfg(feature = "native")]
side!(UnbufferedServerConnection, ServerConnectionData, "client");

/// A transport inside of TLS.
pub(crate) struct Tls<S> {
    side: S,
    inner: Box<dyn Transport>,
    /// Records that came and are not decrypted: less than one, between polls.
    incoming: ReadBuffer,
    /// Records on their way.
    outgoing: Outgoing,
    /// What is decrypted and not taken.
    plain: BytesMut,
    /// Small parts of a record, gathered.
    gathered: Vec<u8>,
    read_size: usize,
    /// Most bytes that were read or written at once since the connection was last at rest.
    most: usize,
    open: bool,
    /// Nothing can be read or written any more.
    failed: bool,
    /// The peer asked for a certificate: whether it takes what was shown is not known yet.
    asked: bool,
    /// The peer will send nothing more.
    ended: bool,
    /// How much of `incoming` is records that were counted.
    counted: usize,
    /// Records that brought nothing, and what came since the last of them was forgiven.
    empty: usize,
    since: usize,
}

/// Connects over `inner`, proving and verifying as `security` says.
pub(crate) async fn connect(
    inner: Box<dyn Transport>,
    security: &ClientSecurity,
    alpn: &[u8],
) -> io::Result<Tls<UnbufferedClientConnection>> {
    let (config, noted) = security.config(alpn).map_err(io::Error::other)?;
    let side = UnbufferedClientConnection::new(config, security.name.clone())
        .map_err(|error| told(&error, "server"))?;
    let mut tls = Tls::new(side, inner, ReadBuffer::default());
    std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
    tls.asked = noted.was_asked();
    Ok(tls)
}

/// Accepts over `inner`, of which `read` was read already.
#[cfg(feature = "native")]
pub(crate) async fn accept(
    inner: Box<dyn Transport>,
    read: ReadBuffer,
    config: std::sync::Arc<rustls::ServerConfig>,
) -> io::Result<Tls<UnbufferedServerConnection>> {
    let side = UnbufferedServerConnection::new(config).map_err(|error| told(&error, "client"))?;
    let mut tls = Tls::new(side, inner, read);
    std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
    Ok(tls)
}

/// `tls://`.
#[cfg(feature = "native")]
pub(crate) struct TlsConnector {
    pub(crate) security: ClientSecurity,
    pub(crate) patience: Option<std::time::Duration>,
}

#[cfg(feature = "native")]
impl Connector for TlsConnector {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = connect_tcp(endpoint, self.patience).await?;
            let socket = Box::new(Socket::Attached(stream));
            Ok(Box::new(connect(socket, &self.security, crate::tls::ALPN).await?) as Box<dyn Transport>)
        })
    }
}

/// A sealed session over what another connector makes.
pub(crate) struct Sealed {
    pub(crate) carrier: std::sync::Arc<dyn Connector>,
    pub(crate) security: ClientSecurity,
}

impl Connector for Sealed {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let carrier = self.carrier.connect(endpoint).await?;
            Ok(Box::new(connect(carrier, &self.security, ALPN_SEALED).await?) as Box<dyn Transport>)
        })
    }
}

impl<S: Side> Tls<S> {
    fn new(side: S, inner: Box<dyn Transport>, incoming: ReadBuffer) -> Self {
        Self {
            side,
            inner,
            incoming,
            outgoing: Outgoing::default(),
            plain: BytesMut::new(),
            gathered: Vec::new(),
            read_size: READ_LEAST,
            most: 0,
            open: false,
            failed: false,
            asked: false,
            ended: false,
            counted: 0,
            empty: 0,
            since: 0,
        }
    }

    /// What both agreed to speak.
    #[cfg(feature = "websocket")]
    pub(crate) fn alpn(&self) -> &[u8] {
        self.side.alpn().unwrap_or_default()
    }

    /// The certificates that the peer showed and proved.
    #[cfg(feature = "native")]
    pub(crate) fn chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.side.chain()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut before = self.incoming.bytes.len();
        loop {
            if let Err(error) = self.process() {
                // The peer is told by an alert, if it listens.
                let _ = self.poll_drain(cx);
                return Poll::Ready(Err(error));
            }
            ready!(self.poll_drain(cx))?;
            ready!(self.inner.poll_flush(cx))?;
            if self.open {
                // Without a word of it a peer may speak anything (RFC 7301).
                return Poll::Ready(if self.side.alpn().is_some() { Ok(()) } else { Err(no_protocol()) });
            }
            before += ready!(self.poll_records(cx))?;
            if let Some(first) = self.incoming.bytes.first()
                && !matches!(first, 0x14..=0x17)
            {
                return Poll::Ready(Err(failed(
                    Reason::TLS_NOT_SPOKEN,
                    format!("the {} does not speak TLS there", S::PEER),
                )));
            }
            if S::PEER == "client" && before > MOST_BEFORE {
                return Poll::Ready(Err(failed(
                    Reason::TLS_FAILED,
                    format!("the client's handshake is longer than {MOST_BEFORE} bytes"),
                )));
            }
        }
    }

    /// Reads records; the number of bytes, never 0.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = {
            let bytes = &mut self.incoming.bytes;
            bytes.reserve(self.read_size);
            ready!(self.inner.poll_read(cx, &mut self.incoming))?
        };
        self.has_read(read)?;
        Poll::Ready(Ok(read))
    }

    fn has_read(&mut self, read: usize) -> io::Result<()> {
        if read == 0 {
            self.ended = true;
            let message = "the connection ended before TLS stood: the peer closed it";
            return if self.open {
                Ok(())
            } else {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
            };
        }
        self.most = self.most.max(read);
        if read >= self.read_size / 2 {
            self.read_size = (self.read_size * 2).min(READ_MOST);
        }
        Ok(())
    }

    /// Decrypts every whole record that came, and queues what TLS itself has to say.
    fn process(&mut self) -> io::Result<()> {
        self.run(None)
    }

    /// Runs rustls until it wants more, or has encrypted `text`.
    fn run(&mut self, text: Option<&[u8]>) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let result = self.try_run(text);
        if result.is_err() {
            // What is left to say is an alert; nothing may follow it.
            self.failed = true;
            while self.side.wants_write() {
                let UnbufferedStatus { discard, state } = self.side.process(&mut self.incoming.bytes);
                let Ok(ConnectionState::EncodeTlsData(data)) = state else { break };
                let encoded = encode(data, &mut self.outgoing);
                self.discard(discard);
                if encoded.is_err() {
                    break;
                }
            }
        }
        result
    }

    fn try_run(&mut self, text: Option<&[u8]>) -> io::Result<()> {
        let (was_open, before) = (self.open, self.plain.len());
        let (records, mut useful) = (self.count_records(), 0);
        loop {
            let UnbufferedStatus { discard, state } = self.side.process(&mut self.incoming.bytes);
            let mut more = true;
            let result = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut result = Ok(());
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                useful += usize::from(!record.payload.is_empty());
                                self.plain.extend_from_slice(record.payload);
                            }
                            Err(error) => result = Err(told(&error, S::PEER)),
                        }
                    }
                    result
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(())
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    more = false;
                    self.open = true;
                    match text {
                        Some(text) => {
                            let least = text.len() + text.len().div_ceil(RECORD) * RECORD_OVERHEAD;
                            self.outgoing.put(least, |room| match traffic.encrypt(text, room) {
                                Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
                                Err(EncryptError::EncryptExhausted) => Err(None),
                                Ok(len) => Ok(len),
                            })
                        }
                        None => Ok(()),
                    }
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.ended = true;
                    Ok(())
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => {
                    more = false;
                    match text {
                        Some(_) => Err(io::ErrorKind::BrokenPipe.into()),
                        None => Ok(()),
                    }
                }
                // Nobody offers early data.
                Ok(_) => Err(failed(Reason::TLS_FAILED, "TLS is in a state that this version does not know")),
                Err(error) => Err(told(&error, S::PEER)),
            };
            self.discard(discard);
            result?;
            if !more {
                // A handshake has a length of its own.
                return if was_open {
                    self.account(records.saturating_sub(useful), self.plain.len() - before)
                } else {
                    Ok(())
                };
            }
        }
    }

    /// How many records have come whole since the last time (RFC 8446, section 5.1: a type, a version, a length).
    fn count_records(&mut self) -> usize {
        let mut records = 0;
        while let Some([_, _, _, high, low]) = self.incoming.bytes.get(self.counted..self.counted + 5) {
            let end = self.counted + 5 + usize::from(u16::from_be_bytes([*high, *low]));
            if end > self.incoming.bytes.len() {
                break;
            }
            (self.counted, records) = (end, records + 1);
        }
        records
    }

    fn discard(&mut self, len: usize) {
        self.incoming.bytes.advance(len);
        self.counted = self.counted.saturating_sub(len);
    }

    /// Whoever sends records that bring nothing has work done for nothing.
    fn account(&mut self, empty: usize, brought: usize) -> io::Result<()> {
        self.since += brought;
        self.empty = self.empty.saturating_sub(self.since / ONE_MORE_AFTER) + empty;
        self.since %= ONE_MORE_AFTER;
        if self.empty > MOST_EMPTY {
            return Err(failed(
                Reason::ENHANCE_CALM,
                format!("the {} sent {MOST_EMPTY} records without a byte in them", S::PEER),
            ));
        }
        Ok(())
    }

    /// Hands the records to the carrier.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            self.most = self.most.max(self.outgoing.len());
            let written = ready!(self.inner.poll_write(cx, &[IoSlice::new(self.outgoing.bytes())]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.consume(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until something is decrypted, or the peer has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.plain.is_empty() && !self.ended {
            ready!(self.poll_records(cx))?;
            self.decrypt(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Decrypts what was read; an answer of TLS itself goes out at once.
    fn decrypt(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let before = self.outgoing.len();
        let result = self.process();
        if self.outgoing.len() > before {
            let _ = self.poll_drain(cx)?;
        }
        result
    }

    /// Hands out what is decrypted: how much.
    fn take(&mut self, into: &mut ReadBuffer) -> usize {
        let len = self.plain.len();
        if into.bytes.is_empty() {
            // Both keep their room.
            std::mem::swap(&mut into.bytes, &mut self.plain);
        } else {
            into.put(&self.plain);
        }
        self.plain.clear();
        len
    }
}

/// Appends what TLS itself has to say.
fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut Outgoing) -> io::Result<()> {
    out.put(0, |room| match data.encode(room) {
        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
        Err(EncodeError::AlreadyEncoded) => Err(None),
        Ok(len) => Ok(len),
    })
}

/// Bytes that are written into, and taken from the front. Room that was made is not made, nor zeroed, again.
#[derive(Default)]
struct Outgoing {
    room: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.end]
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Lets `write` fill the room behind, of which there are `least` bytes and more when it asks for them.
    fn put(
        &mut self,
        least: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
    ) -> io::Result<()> {
        let mut room = least;
        loop {
            if self.room.len() < self.end + room {
                self.room.resize(self.end + room, 0);
            }
            match write(&mut self.room[self.end..self.end + room]) {
                Ok(len) => {
                    self.end += len;
                    return Ok(());
                }
                Err(Some(required)) if required > room => room = required,
                Err(_) => {
                    return Err(failed(Reason::TLS_FAILED, "the keys of the TLS connection are used up"));
                }
            }
        }
    }
}

impl<S: Side> Transport for Tls<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        ready!(self.poll_fill(cx))?;
        Poll::Ready(Ok(self.take(into)))
    }

    fn read_now(&mut self, into: &mut ReadBuffer) -> io::Result<usize> {
        while self.plain.is_empty() && !self.ended {
            let read = self.inner.read_now(&mut self.incoming)?;
            self.has_read(read)?;
            self.process()?;
        }
        Ok(self.take(into))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.outgoing.len() >= WRITE_AHEAD {
            ready!(self.poll_drain(cx))?;
        }
        let first = parts.iter().find(|part| !part.is_empty());
        let Some(first) = first else { return Poll::Ready(Ok(0)) };
        if first.len() >= RECORD / 2 {
            let len = first.len().min(WRITE_AHEAD);
            self.run(Some(&first[..len]))?;
            return Poll::Ready(Ok(len));
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.clear();
        for part in parts {
            let len = part.len().min(RECORD - gathered.len());
            gathered.extend_from_slice(&part[..len]);
            if gathered.len() == RECORD {
                break;
            }
        }
        let result = self.run(Some(&gathered));
        let len = gathered.len();
        self.gathered = gathered;
        if !self.plain.is_empty() {
            // Nothing else would ask for it.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(result.map(|()| len))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        self.inner.poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.open && !self.failed {
            self.failed = true;
            let UnbufferedStatus { discard, state } = self.side.process(&mut self.incoming.bytes);
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
                let _ = self.outgoing.put(64, |room| match traffic.queue_close_notify(room) {
                    Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
                    Err(EncryptError::EncryptExhausted) => Err(None),
                    Ok(len) => Ok(len),
                });
            }
            self.discard(discard);
        }
        // Best effort: a peer that does not read is not waited for.
        let _ = self.poll_drain(cx)?;
        self.inner.poll_close(cx)
    }

    fn is_provisional(&self) -> bool {
        self.asked
    }

    fn rest(&mut self) {
        if std::mem::take(&mut self.most) > LITTLE {
            // Whoever sends much will do so again, and room that comes from the system anew costs more than its encryption.
            return;
        }
        if self.incoming.bytes.is_empty() {
            self.incoming = ReadBuffer::default();
        }
        if self.outgoing.is_empty() {
            self.outgoing = Outgoing::default();
        }
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
        self.gathered = Vec::new();
        self.inner.rest();
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        self.inner.pollable()
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::{
        collections::HashSet,
        sync::{Arc, Mutex},
    };

    use rustls::{
        ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, Tls13CipherSuite,
        crypto::{
            CryptoProvider,
            cipher::{
                AeadKey, Iv, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage, OutboundPlainMessage,
                Tls13AeadAlgorithm, UnsupportedOperationError,
            },
            ring::default_provider,
        },
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    };

    use super::*;
    use crate::{
        Listener,
        transport::memory::{Memory, MemoryListener},
    };

    /// After so many records a key is used up.
    const KEY_LASTS: u64 = 50;

    /// Every key that encrypted anything, with its nonces: a key has one base for all of its nonces, so the number of the
    /// record tells them apart.
    type Used = Arc<Mutex<HashSet<(Vec<u8>, u64)>>>;

    /// An algorithm that notes what it encrypts with.
    struct Noting(&'static dyn Tls13AeadAlgorithm, Used);

    impl Tls13AeadAlgorithm for Noting {
        fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
            let named = [key.as_ref(), iv.as_ref()].concat();
            Box::new(NotingEncrypter(self.0.encrypter(key, iv), named, self.1.clone()))
        }

        fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
            self.0.decrypter(key, iv)
        }

        fn key_len(&self) -> usize {
            self.0.key_len()
        }

        fn extract_keys(
            &self,
            key: AeadKey,
            iv: Iv,
        ) -> Result<rustls::ConnectionTrafficSecrets, UnsupportedOperationError> {
            self.0.extract_keys(key, iv)
        }
    }

    struct NotingEncrypter(Box<dyn MessageEncrypter>, Vec<u8>, Used);

    impl MessageEncrypter for NotingEncrypter {
        fn encrypt(
            &mut self,
            message: OutboundPlainMessage<'_>,
            sequence: u64,
        ) -> Result<OutboundOpaqueMessage, rustls::Error> {
            let is_new = self.2.lock().unwrap().insert((self.1.clone(), sequence));
            assert!(is_new, "a nonce is used twice");
            self.0.encrypt(message, sequence)
        }

        fn encrypted_payload_len(&self, len: usize) -> usize {
            self.0.encrypted_payload_len(len)
        }
    }

    /// A provider with one suite, whose keys last for few records.
    fn provider(suite: &'static Tls13CipherSuite, used: &Used) -> Arc<CryptoProvider> {
        let aead: &'static Noting = Box::leak(Box::new(Noting(suite.aead_alg, used.clone())));
        let common = rustls::crypto::CipherSuiteCommon { confidentiality_limit: KEY_LASTS, ..suite.common };
        let suite = Box::leak(Box::new(Tls13CipherSuite { common, aead_alg: aead, ..*suite }));
        let mut provider = default_provider();
        provider.cipher_suites = vec![SupportedCipherSuite::Tls13(suite)];
        Arc::new(provider)
    }

    async fn send(from: &mut dyn Transport, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            let parts = [IoSlice::new(&bytes[sent..])];
            sent += std::future::poll_fn(|cx| from.poll_write(cx, &parts)).await.unwrap();
        }
        std::future::poll_fn(|cx| from.poll_flush(cx)).await.unwrap();
    }

    async fn receive(from: &mut dyn Transport, len: usize) -> Vec<u8> {
        let mut read = ReadBuffer::default();
        while read.bytes.len() < len {
            assert!(std::future::poll_fn(|cx| from.poll_read(cx, &mut read)).await.unwrap() > 0);
        }
        read.bytes.to_vec()
    }

    #[tokio::test]
    async fn no_nonce_is_used_twice_however_often_keys_change() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![made.cert.der().clone()];
        for suite in default_provider().cipher_suites.iter().filter_map(|suite| suite.tls13()) {
            let used = Used::default();
            let provider = provider(suite, &used);
            let mut roots = RootCertStore::empty();
            roots.add(chain[0].clone()).unwrap();
            let client = ClientConfig::builder_with_provider(provider.clone());
            let client = client.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
            let mut client = client.with_root_certificates(roots).with_no_client_auth();
            client.alpn_protocols = vec![ALPN_SEALED.to_vec()];
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let server = ServerConfig::builder_with_provider(provider);
            let server = server.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
            let mut server = server.with_no_client_auth().with_single_cert(chain.clone(), key).unwrap();
            server.alpn_protocols = vec![ALPN_SEALED.to_vec()];
            server.send_tls13_tickets = 0;

            let name = format!("tls-keys-{:?}", suite.common.suite);
            let mut listener = MemoryListener::bind(&name).unwrap();
            let endpoint = Endpoint::parse(&format!("memory:{name}")).unwrap();
            let (near, far) =
                tokio::join!(Memory.connect(&endpoint), std::future::poll_fn(|cx| listener.poll_accept(cx)),);
            let side =
                UnbufferedClientConnection::new(client.into(), ServerName::try_from("localhost").unwrap());
            let mut near = Tls::new(side.unwrap(), near.unwrap(), ReadBuffer::default());
            let (greeted, far) = tokio::join!(
                std::future::poll_fn(|cx| near.poll_handshake(cx)),
                accept(far.unwrap().0, ReadBuffer::default(), server.into()),
            );
            greeted.unwrap();
            let mut far = far.unwrap();
            for number in 0..1_000u32 {
                let message = number.to_le_bytes().repeat(1 << 10);
                send(&mut near, &message).await;
                assert!(receive(&mut far, message.len()).await == message);
                send(&mut far, &message).await;
                assert!(receive(&mut near, message.len()).await == message);
            }
            let used = used.lock().unwrap();
            let keys: HashSet<&[u8]> = used.iter().map(|(key, _)| &key[..]).collect();
            assert!(used.len() >= 2_000 && keys.len() >= 2_000 / KEY_LASTS as usize, "{} keys", keys.len());
            assert!(used.iter().all(|(_, sequence)| *sequence <= KEY_LASTS + 1));
        }
    }
}
