//! Which of a host's addresses is connected to: "Happy Eyeballs" (RFC 8305). One that is silent, as a family that the network only
//! seems to have, costs 250 ms and not a connection's whole time.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

/// After so long without an answer the next address is tried beside it (RFC 8305, section 5: the Connection Attempt Delay).
const DELAY: Duration = Duration::from_millis(250);

/// Connects to the address that answers first. The others are dropped then. An error that `ends` it is no address's own: none is
/// tried after it.
///
/// # Errors
/// That of the last address to fail.
pub(super) async fn first<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
    ends: impl Fn(&io::Error) -> bool,
) -> io::Result<T> {
    first_after(DELAY, addresses, connect, ends).await
}

async fn first_after<T, F: Future<Output = io::Result<T>>>(
    delay: Duration,
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
    ends: impl Fn(&io::Error) -> bool,
) -> io::Result<T> {
    let mut others = in_turn(addresses).into_iter();
    let mut open: Vec<Pin<Box<F>>> = Vec::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        open.extend(others.next().map(|address| Box::pin(connect(address))));
        if open.is_empty() {
            return Err(failed);
        }
        let more = others.len() > 0;
        let mut patience = pin!(more.then(|| tokio::time::sleep(delay)));
        let answer = std::future::poll_fn(|cx| {
            for at in 0..open.len() {
                if let Poll::Ready(answer) = open[at].as_mut().poll(cx) {
                    drop(open.remove(at));
                    return Poll::Ready(Some(answer));
                }
            }
            match patience.as_mut().as_pin_mut() {
                Some(patience) => patience.poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await;
        match answer {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) if ends(&error) => return Err(error),
            Some(Err(error)) => failed = error,
            None => {}
        }
    }
}

/// The system's order (RFC 6724) within each family, and the families in turn, beginning with the first address's (RFC 8305,
/// section 4).
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (own, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut own, mut other) = (own.into_iter(), other.into_iter());
    let mut turns = Vec::with_capacity(own.len() + other.len());
    while own.len() + other.len() > 0 {
        turns.extend(own.next());
        turns.extend(other.next());
    }
    turns
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Instant,
    };

    use super::*;
    use crate::connection::lock;

    const NEVER: Duration = Duration::from_secs(86_400);

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        for (found, turns) in [
            (&[][..], &[][..]),
            (&["[::1]:1"], &["[::1]:1"]),
            (&["[::1]:1", "[::2]:1", "[::3]:1"], &["[::1]:1", "[::2]:1", "[::3]:1"]),
            (
                &["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"],
            ),
            (&["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"], &["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"]),
        ] {
            assert_eq!(in_turn(addresses(found)), addresses(turns));
        }
    }

    /// What becomes of each attempt, by its address's port: 1 is silent, 2 fails, 3 ends all of them, others connect.
    struct Attempts(Arc<Mutex<Vec<String>>>);

    struct Trying(SocketAddr, Arc<Mutex<Vec<String>>>);

    impl Drop for Trying {
        fn drop(&mut self) {
            lock(&self.1).push(format!("drop {}", self.0));
        }
    }

    impl Future for Trying {
        type Output = io::Result<SocketAddr>;

        fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Self::Output> {
            match self.0.port() {
                1 => Poll::Pending,
                2 => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                3 => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                _ => Poll::Ready(Ok(self.0)),
            }
        }
    }

    impl Attempts {
        async fn first(&self, delay: Duration, all: &[&str]) -> io::Result<SocketAddr> {
            let begin = |address| {
                lock(&self.0).push(format!("try {address}"));
                Trying(address, self.0.clone())
            };
            let ends = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
            let first = first_after(delay, addresses(all), begin, ends);
            tokio::time::timeout(Duration::from_secs(60), first).await.expect("it hangs")
        }

        fn log(&self) -> Vec<String> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    #[tokio::test]
    async fn the_next_address_begins_when_one_fails_or_is_silent() {
        let attempts = Attempts(Arc::default());
        // One that fails is followed at once, however long the delay.
        let won = attempts.first(NEVER, &["[::1]:2", "[::2]:2", "1.1.1.1:4"]).await.unwrap();
        assert_eq!(won, "1.1.1.1:4".parse().unwrap());
        let log = ["try [::1]:2", "drop [::1]:2", "try 1.1.1.1:4", "drop 1.1.1.1:4"];
        assert_eq!(attempts.log(), log, "the families in turn, and none after the one that connects");
        // One that is silent goes on beside the next one, and is dropped when that connects.
        let short = Duration::from_millis(20);
        let won = attempts.first(short, &["[::1]:1", "[::2]:1", "1.1.1.1:2", "2.2.2.2:4"]).await.unwrap();
        assert_eq!(won, "2.2.2.2:4".parse().unwrap());
        let log = [
            "try [::1]:1",
            "try 1.1.1.1:2",
            "drop 1.1.1.1:2",
            "try [::2]:1",
            "try 2.2.2.2:4",
            "drop 2.2.2.2:4",
            "drop [::1]:1",
            "drop [::2]:1",
        ];
        assert_eq!(attempts.log(), log);
        // All fail, there is none, and one that another address makes no better.
        let refused = attempts.first(NEVER, &["[::1]:2", "1.1.1.1:2"]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        attempts.log();
        assert_eq!(attempts.first(NEVER, &[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let ended = attempts.first(NEVER, &["[::1]:3", "1.1.1.1:4"]).await.unwrap_err();
        assert_eq!((ended.kind(), attempts.log().len()), (io::ErrorKind::InvalidData, 2));
    }

    /// A port whose backlog is full, as a host that drops what it gets.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_black_hole_costs_one_delay() {
        use tokio::net::{TcpListener, TcpStream};
        let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        hole.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        hole.listen(0).unwrap();
        let hole_at = hole.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(hole_at)).await
        {
            fill.push(connected.unwrap());
            assert!(fill.len() < 1_000, "its backlog is never full");
        }
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good_at = good.local_addr().unwrap();
        let began = Instant::now();
        let won = first(vec![hole_at, good_at], TcpStream::connect, |_| false).await.unwrap();
        assert_eq!(won.peer_addr().unwrap(), good_at);
        assert!(began.elapsed() >= DELAY, "the first address had its time");
    }
}
