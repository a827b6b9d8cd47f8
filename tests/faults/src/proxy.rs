//! A link that misbehaves as it is told: TCP, Unix sockets and UDP through user space, without root and without netem.
//!
//! Each direction has its own [`Faults`], which may change while bytes flow. What waits in the proxy is bounded: 256 KiB a
//! direction of a stream connection, 1,024 datagrams a direction of a UDP session; beyond that a stream waits in the
//! kernel, as behind a slow link, and a datagram is lost. It deliberately knows nothing of what it carries.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Bytes of one direction of a stream connection that wait in the proxy at most.
const BUFFER: usize = 256 << 10;
/// Datagrams of one direction of a UDP session that wait in the proxy at most.
const DATAGRAMS: usize = 1_024;
/// UDP clients that are remembered at most; the one that was idle longest is forgotten for a new one.
const SESSIONS: usize = 1_024;
/// How long a reordered datagram is held, so that those behind it overtake.
const REORDER: Duration = Duration::from_millis(20);
/// The most that one write takes, so that a bandwidth is met smoothly.
const PIECE: usize = 16 << 10;

/// Which way: from who connected to the proxy, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];
}

/// What happens to one direction. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Everything arrives so much later.
    pub delay: Duration,
    /// And up to so much later still, evenly drawn. Streams keep their order, datagrams may not.
    pub jitter: Duration,
    /// Bytes per second at most.
    pub bandwidth: Option<u64>,
    /// Streams: one write holds at most so many bytes.
    pub slice: Option<usize>,
    /// The chance of each byte to have one of its bits flipped, 0 to 1.
    pub corrupt: f64,
    /// Nothing passes until this is false again: streams wait, datagrams are lost.
    pub stop: bool,
    /// Streams: the connection is reset after so many bytes of this direction.
    pub cut_after: Option<u64>,
    /// Streams: this direction ends after so many bytes, and what follows is dropped; the other goes on.
    pub half_close_after: Option<u64>,
    /// Datagrams: the chance of each to be lost, 0 to 1.
    pub loss: f64,
    /// Datagrams: how often each arrives beyond the first time: 0.5 doubles every second one, 2 trebles all.
    pub duplicate: f64,
    /// Datagrams: the chance of each to be overtaken by those of the next 20 ms, 0 to 1.
    pub reorder: f64,
    /// Datagrams: longer ones are lost, as behind a link with a small MTU.
    pub mtu: Option<usize>,
}

/// What passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes that were handed on.
    pub bytes: u64,
    /// Writes, or datagrams, that were handed on.
    pub pieces: u64,
    /// Datagrams that were lost on purpose or because too many waited.
    pub lost: u64,
    /// Bits that were flipped.
    pub flipped: u64,
    /// Bytes of the longest write, or datagram, that was handed on.
    pub longest: u64,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    pieces: AtomicU64,
    lost: AtomicU64,
    flipped: AtomicU64,
    longest: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Settings {
    faults: [Faults; 2],
    /// Counted up by each cut, close, half-close and rebind: whoever began before it obeys it.
    cuts: u64,
    closes: u64,
    half_closes: [u64; 2],
    rebinds: u64,
}

struct Shared {
    settings: watch::Sender<Settings>,
    counts: [Counts; 2],
    connections: AtomicUsize,
    random: Mutex<Random>,
}

impl Shared {
    fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn corrupt(&self, data: &mut [u8], chance: f64, direction: Direction) {
        if chance > 0.0 {
            let flipped = self.random(|random| {
                let mut flipped = 0;
                for byte in data {
                    if random.chance(chance) {
                        *byte ^= 1 << random.below(8);
                        flipped += 1;
                    }
                }
                flipped
            });
            self.counts[direction as usize].flipped.fetch_add(flipped, Relaxed);
        }
    }

    fn due(&self, faults: &Faults) -> Instant {
        let jitter = u64::try_from(faults.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = if jitter == 0 { 0 } else { self.random(|random| random.below(jitter)) };
        Instant::now() + faults.delay + Duration::from_micros(jitter)
    }

    fn passed(&self, direction: Direction, bytes: usize) {
        let counts = &self.counts[direction as usize];
        counts.bytes.fetch_add(bytes as u64, Relaxed);
        counts.pieces.fetch_add(1, Relaxed);
        counts.longest.fetch_max(bytes as u64, Relaxed);
    }
}

/// A proxy that runs, and the handle to it. Dropping it ends it and everything that goes through it.
pub struct Proxy {
    shared: Arc<Shared>,
    endpoint: String,
    upstream: String,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Listens at `listen` and carries to `upstream`. Both are `tcp://host:port`, `unix:///path` or `udp://host:port`, of
    /// one family: streams to streams, datagrams to datagrams. Port 0 lets the system choose. The same seed draws the
    /// same numbers; who gets which depends on the order of arrival.
    ///
    /// # Errors
    /// When an endpoint is not one of these, or cannot be bound.
    pub async fn start(listen: &str, upstream: &str, seed: u64) -> io::Result<Proxy> {
        let shared = Arc::new(Shared {
            settings: watch::Sender::new(Settings::default()),
            counts: Default::default(),
            connections: AtomicUsize::new(0),
            random: Mutex::new(Random(seed)),
        });
        let behind = upstream.to_owned();
        let upstream = Place::parse(upstream)?;
        let (endpoint, task) = match (Place::parse(listen)?, upstream) {
            (Place::Udp(listen), Place::Udp(upstream)) => {
                let socket = Arc::new(UdpSocket::bind(&listen).await?);
                let endpoint = format!("udp://{}", socket.local_addr()?);
                let upstream =
                    tokio::net::lookup_host(upstream).await?.next().ok_or(io::ErrorKind::NotFound)?;
                (endpoint, tokio::spawn(datagrams(shared.clone(), socket, upstream)))
            }
            (Place::Udp(_), _) | (_, Place::Udp(_)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "udp carries to udp only"));
            }
            (Place::Tcp(listen), upstream) => {
                let listener = TcpListener::bind(&listen).await?;
                let endpoint = format!("tcp://{}", listener.local_addr()?);
                let accept = async move || listener.accept().await.map(|(stream, _)| Link::Tcp(stream));
                (endpoint, tokio::spawn(streams(shared.clone(), accept, upstream)))
            }
            (Place::Unix(path), upstream) => {
                let listener = UnixListener::bind(&path)?;
                let endpoint = format!("unix://{}", path.display());
                let file = RemoveOnDrop(path);
                let accept = async move || {
                    let _file = &file;
                    listener.accept().await.map(|(stream, _)| Link::Unix(stream))
                };
                (endpoint, tokio::spawn(streams(shared.clone(), accept, upstream)))
            }
        };
        Ok(Proxy { shared, endpoint, upstream: behind, task })
    }

    /// Where it listens, with the port that the system chose.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where it carries to.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// What happens to a direction from now on, on every connection.
    pub fn set(&self, direction: Direction, faults: Faults) {
        self.shared.settings.send_modify(|settings| settings.faults[direction as usize] = faults);
    }

    /// The same for both directions.
    pub fn set_both(&self, faults: Faults) {
        self.shared.settings.send_modify(|settings| settings.faults = [faults; 2]);
    }

    /// Resets every connection; what waits in the proxy is lost. New ones are taken.
    pub fn cut(&self) {
        self.shared.settings.send_modify(|settings| settings.cuts += 1);
    }

    /// Ends every connection without an error; what waits in the proxy is lost. New ones are taken.
    pub fn close(&self) {
        self.shared.settings.send_modify(|settings| settings.closes += 1);
    }

    /// Ends one direction of every connection, after what waits in it; what follows is dropped.
    pub fn half_close(&self, direction: Direction) {
        self.shared.settings.send_modify(|settings| settings.half_closes[direction as usize] += 1);
    }

    /// Datagrams: every session goes on from another port of the proxy's, as behind a NAT that forgot it.
    pub fn rebind(&self) {
        self.shared.settings.send_modify(|settings| settings.rebinds += 1);
    }

    /// What passed in a direction.
    pub fn passed(&self, direction: Direction) -> Passed {
        let Counts { bytes, pieces, lost, flipped, longest } = &self.shared.counts[direction as usize];
        Passed {
            bytes: bytes.load(Relaxed),
            pieces: pieces.load(Relaxed),
            lost: lost.load(Relaxed),
            flipped: flipped.load(Relaxed),
            longest: longest.load(Relaxed),
        }
    }

    /// Connections, or UDP sessions, now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

enum Place {
    Tcp(String),
    Unix(PathBuf),
    Udp(String),
}

impl Place {
    fn parse(text: &str) -> io::Result<Self> {
        match text.split_once("://") {
            Some(("tcp", address)) => Ok(Place::Tcp(address.to_owned())),
            Some(("unix", path)) => Ok(Place::Unix(path.into())),
            Some(("udp", address)) => Ok(Place::Udp(address.to_owned())),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("endpoint {text:?} is not tcp://host:port, unix:///path or udp://host:port"),
            )),
        }
    }

    async fn connect(&self) -> io::Result<Link> {
        match self {
            Place::Tcp(address) => TcpStream::connect(address).await.map(Link::Tcp),
            Place::Unix(path) => UnixStream::connect(path).await.map(Link::Unix),
            Place::Udp(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// Small writes leave at once; the next drop resets, unless it is taken back.
    fn prepare(&self) {
        if let Link::Tcp(stream) = self {
            // A link that broke already says so when it is read.
            let _ = stream.set_nodelay(true);
        }
    }
}

async fn streams<A>(shared: Arc<Shared>, accept: A, upstream: Place)
where
    A: AsyncFn() -> io::Result<Link>,
{
    let upstream = Arc::new(upstream);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok(client) => {
                    connections.spawn(connection(shared.clone(), client, upstream.clone()));
                }
                // Out of descriptors: those that stand go on. When one is free again, the system does not tell.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(shared: Arc<Shared>, client: Link, upstream: Arc<Place>) {
    let mut settings = shared.settings.subscribe();
    let before = *settings.borrow_and_update();
    let Ok(server) = upstream.connect().await else { return };
    client.prepare();
    server.prepare();
    shared.connections.fetch_add(1, Relaxed);
    let mut ends = [client, server];
    let ended = {
        let [client, server] = ends.each_mut().map(split);
        let up = pump(&shared, Direction::Up, client.0, server.1);
        let down = pump(&shared, Direction::Down, server.0, client.1);
        let both = async { tokio::try_join!(up, down) };
        let told = async {
            let changed = settings.wait_for(|now| now.cuts > before.cuts || now.closes > before.closes).await;
            match changed {
                Ok(now) if now.closes > before.closes => Ended::Closed,
                _ => Ended::Cut,
            }
        };
        tokio::select! {
            ended = both => match ended {
                Ok(_) => Ended::Closed,
                Err(ended) => ended,
            },
            ended = told => ended,
        }
    };
    if let Ended::Cut = ended {
        for end in &mut ends {
            if let Link::Tcp(stream) = end {
                let _ = stream.set_zero_linger();
            }
        }
    }
    shared.connections.fetch_sub(1, Relaxed);
}

enum Ended {
    /// Without an error.
    Closed,
    /// By a reset.
    Cut,
}

fn split(
    link: &mut Link,
) -> (Box<dyn AsyncRead + Send + Unpin + '_>, Box<dyn AsyncWrite + Send + Unpin + '_>) {
    match link {
        Link::Tcp(stream) => {
            let (read, write) = stream.split();
            (Box::new(read), Box::new(write))
        }
        Link::Unix(stream) => {
            let (read, write) = stream.split();
            (Box::new(read), Box::new(write))
        }
    }
}

/// Carries one direction until its end is handed on.
async fn pump(
    shared: &Shared,
    direction: Direction,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), Ended> {
    let mut settings = shared.settings.subscribe();
    let half_closes = settings.borrow().half_closes[direction as usize];
    let mut queue: VecDeque<(Instant, Bytes)> = VecDeque::new();
    let (mut queued, mut carried, mut ended) = (0, 0_u64, false);
    let mut free_at = Instant::now();
    let mut buffer = BytesMut::new();
    loop {
        let now = *settings.borrow_and_update();
        let faults = now.faults[direction as usize];
        let closing = now.half_closes[direction as usize] > half_closes
            || faults.half_close_after.is_some_and(|most| carried >= most);
        if faults.cut_after.is_some_and(|most| carried >= most) {
            return Err(Ended::Cut);
        }
        if closing || (ended && queue.is_empty()) {
            to.shutdown().await.map_err(|_| Ended::Cut)?;
            // What the sender goes on to say reaches nobody.
            while !ended {
                buffer.clear();
                ended = from.read_buf(&mut buffer).await.map_err(|_| Ended::Cut)? == 0;
            }
            return Ok(());
        }
        let due = queue.front().map(|(due, _)| (*due).max(free_at));
        tokio::select! {
            biased;
            changed = settings.changed() => changed.map_err(|_| Ended::Cut)?,
            () = async { sleep_until(due.unwrap_or(free_at)).await }, if due.is_some() && !faults.stop => {
                let Some((_, chunk)) = queue.front_mut() else { continue };
                let ahead = |most: Option<u64>| most.map_or(usize::MAX, |most| (most - carried) as usize);
                // A hundredth of a second at a time, where there is a bandwidth.
                let pace = faults.bandwidth.map_or(PIECE, |bandwidth| (bandwidth / 100).max(1) as usize);
                let most = chunk.len().min(PIECE).min(pace).min(faults.slice.unwrap_or(PIECE).max(1));
                let most = most.min(ahead(faults.cut_after)).min(ahead(faults.half_close_after));
                let written = to.write(&chunk[..most]).await.map_err(|_| Ended::Cut)?;
                to.flush().await.map_err(|_| Ended::Cut)?;
                if let Some(bandwidth) = faults.bandwidth {
                    let spent = Duration::from_secs_f64(written as f64 / bandwidth.max(1) as f64);
                    free_at = free_at.max(Instant::now()) + spent;
                }
                chunk.advance(written);
                if chunk.is_empty() {
                    queue.pop_front();
                }
                queued -= written;
                carried += written as u64;
                shared.passed(direction, written);
            }
            read = from.read_buf(&mut buffer), if !ended && queued < BUFFER => {
                if read.map_err(|_| Ended::Cut)? == 0 {
                    ended = true;
                    continue;
                }
                shared.corrupt(&mut buffer, faults.corrupt, direction);
                let last = queue.back().map(|(due, _)| *due);
                let due = shared.due(&faults);
                queued += buffer.len();
                queue.push_back((last.map_or(due, |last| last.max(due)), buffer.split().freeze()));
            }
        }
    }
}

/// A UDP client and the socket that stands for it at the upstream.
struct Session {
    up: Arc<Lane>,
    last: Instant,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Datagrams of one direction on their way.
struct Lane {
    direction: Direction,
    queue: Mutex<VecDeque<(Instant, Bytes)>>,
    /// When the link is free again, where there is a bandwidth.
    free_at: Mutex<Instant>,
    changed: tokio::sync::Notify,
}

impl Lane {
    fn new(direction: Direction) -> Arc<Self> {
        Arc::new(Self {
            direction,
            queue: Mutex::default(),
            free_at: Mutex::new(Instant::now()),
            changed: tokio::sync::Notify::new(),
        })
    }

    /// Takes a datagram from its sender: how often and when it will arrive.
    fn put(&self, shared: &Shared, datagram: &[u8]) {
        let faults = shared.settings.borrow().faults[self.direction as usize];
        let mut copies = 1;
        if faults.stop
            || faults.mtu.is_some_and(|mtu| datagram.len() > mtu)
            || shared.random(|random| random.chance(faults.loss))
        {
            copies = 0;
        } else {
            let more = faults.duplicate.max(0.0);
            copies += more as usize + usize::from(shared.random(|random| random.chance(more.fract())));
        }
        if copies == 0 {
            shared.counts[self.direction as usize].lost.fetch_add(1, Relaxed);
        }
        for _ in 0..copies {
            let mut data = BytesMut::from(datagram);
            shared.corrupt(&mut data, faults.corrupt, self.direction);
            let mut due = shared.due(&faults);
            if shared.random(|random| random.chance(faults.reorder)) {
                due += REORDER;
            }
            if let Some(bandwidth) = faults.bandwidth {
                let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
                let spent = Duration::from_secs_f64(data.len() as f64 / bandwidth.max(1) as f64);
                *free_at = (*free_at).max(Instant::now()) + spent;
                due = due.max(*free_at);
            }
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.len() >= DATAGRAMS {
                shared.counts[self.direction as usize].lost.fetch_add(1, Relaxed);
                continue;
            }
            let at = queue.partition_point(|(other, _)| *other <= due);
            queue.insert(at, (due, data.freeze()));
        }
        self.changed.notify_one();
    }

    /// The next datagram, when it is due.
    async fn take(&self) -> Bytes {
        loop {
            let first =
                self.queue.lock().unwrap_or_else(PoisonError::into_inner).front().map(|(due, _)| *due);
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {
                    let taken = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    if let Some((_, data)) = taken {
                        return data;
                    }
                }
            }
        }
    }
}

async fn datagrams(shared: Arc<Shared>, socket: Arc<UdpSocket>, upstream: SocketAddr) {
    let mut sessions: HashMap<SocketAddr, Session> = HashMap::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        // An error is that of a datagram sent before.
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        if !sessions.contains_key(&client) && sessions.len() >= SESSIONS {
            let idle = sessions.iter().min_by_key(|(_, session)| session.last).map(|(client, _)| *client);
            idle.map(|idle| sessions.remove(&idle));
        }
        let session = sessions.entry(client).or_insert_with(|| {
            let up = Lane::new(Direction::Up);
            let task = tokio::spawn(session(shared.clone(), socket.clone(), client, upstream, up.clone()));
            Session { up, last: Instant::now(), task }
        });
        session.last = Instant::now();
        session.up.put(&shared, &buffer[..len]);
        shared.connections.store(sessions.len(), Relaxed);
    }
}

async fn session(
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    upstream: SocketAddr,
    up: Arc<Lane>,
) {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let mut settings = shared.settings.subscribe();
    let down = Lane::new(Direction::Down);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let rebinds = settings.borrow_and_update().rebinds;
        let Ok(out) = UdpSocket::bind(any).await else { return };
        if out.connect(upstream).await.is_err() {
            return;
        }
        loop {
            // A datagram that cannot be sent is one that is lost.
            tokio::select! {
                true = async { settings.wait_for(|now| now.rebinds > rebinds).await.is_ok() } => break,
                data = up.take() => if out.send(&data).await.is_ok() {
                    shared.passed(Direction::Up, data.len());
                },
                data = down.take() => if socket.send_to(&data, client).await.is_ok() {
                    shared.passed(Direction::Down, data.len());
                },
                received = out.recv(&mut buffer) => if let Ok(len) = received {
                    down.put(&shared, &buffer[..len]);
                },
            }
        }
    }
}

/// SplitMix64: small, and the same numbers from the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `end` − 1, evenly but for a trace.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && ((self.next() >> 11) as f64) < chance * (1_u64 << 53) as f64
    }
}
