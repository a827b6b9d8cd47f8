//! `ws://` and `wss://` over the browser's WebSocket: one binary message holds whole frames. A page cannot pause a
//! WebSocket, so what is received and not taken is bounded by the protocol's credit alone.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use js_sys::{ArrayBuffer, Uint8Array};
use valkyrie_sdk::{BoxFuture, Bytes, Carrier, Connector, Endpoint, ReadBuffer, Timer, Transport};
use wasm_bindgen::prelude::*;
use web_sys::{BinaryType, CloseEvent, Event, MessageEvent, WebSocket};

use crate::runtime::{PageTimer, now};

/// The subprotocol of version 1.
const SUBPROTOCOL: &str = "valkyrie.1";
/// Bytes that wait in the browser before the connection waits too.
const MAX_BUFFERED: u32 = 1 << 20;
/// How often a full browser is asked again: it does not tell when it has room.
const BUFFERED_CHECK: Duration = Duration::from_millis(4);
/// A page may close with 1000 or from 3000 only; 1003, "unsupported data", is the browser's own.
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_UNSUPPORTED: u16 = 4003;

thread_local! {
    /// JavaScript's objects stay with the thread; what the sdk moves about is their number.
    static SOCKETS: RefCell<HashMap<u64, Socket>> = RefCell::default();
}

struct Socket {
    socket: WebSocket,
    stage: Stage,
    incoming: VecDeque<Bytes>,
    waker: Option<Waker>,
    _on_change: Closure<dyn FnMut(Event)>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

enum Stage {
    Connecting,
    Open,
    Closed { clean: bool, code: u16 },
    Refused(&'static str),
}

pub(crate) struct PageConnector;

impl Connector for PageConnector {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let mut transport = PageSocket::open(&endpoint.to_string())?;
            std::future::poll_fn(|cx| transport.poll_open(cx)).await?;
            Ok(Box::new(transport) as Box<dyn Transport>)
        })
    }
}

/// A WebSocket by its number. Dropping it closes the socket.
struct PageSocket {
    id: u64,
    check: PageTimer,
    message: Vec<u8>,
}

impl PageSocket {
    fn open(url: &str) -> io::Result<Self> {
        let socket = WebSocket::new_with_str(url, SUBPROTOCOL).map_err(|error| refused(&error))?;
        socket.set_binary_type(BinaryType::Arraybuffer);
        thread_local!(static LAST_ID: RefCell<u64> = const { RefCell::new(0) });
        let id = LAST_ID.with_borrow_mut(|last| {
            *last += 1;
            *last
        });
        // No handler for errors: each is followed by a close, and tells nothing more.
        let on_change = Closure::<dyn FnMut(Event)>::new(move |event: Event| {
            changed(id, |socket| {
                socket.stage = match event.dyn_ref::<CloseEvent>() {
                    Some(event) => Stage::Closed { clean: event.was_clean(), code: event.code() },
                    None => Stage::Open,
                }
            });
        });
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            changed(id, |socket| match event.data().dyn_into::<ArrayBuffer>() {
                Ok(data) => socket.incoming.push_back(Uint8Array::new(&data).to_vec().into()),
                Err(_) => socket.refuse("the peer sent a text message"),
            });
        });
        socket.set_onopen(Some(on_change.as_ref().unchecked_ref()));
        socket.set_onclose(Some(on_change.as_ref().unchecked_ref()));
        socket.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        let socket = Socket {
            socket,
            stage: Stage::Connecting,
            incoming: VecDeque::new(),
            waker: None,
            _on_change: on_change,
            _on_message: on_message,
        };
        SOCKETS.with_borrow_mut(|sockets| sockets.insert(id, socket));
        Ok(Self { id, check: PageTimer::new(), message: Vec::new() })
    }

    fn with<T>(&self, then: impl FnOnce(&mut Socket) -> T) -> T {
        // It is there until `self` is dropped.
        SOCKETS.with_borrow_mut(|sockets| then(sockets.get_mut(&self.id).expect("the socket of a transport")))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| match socket.stage {
            Stage::Connecting => {
                socket.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Stage::Open => Poll::Ready(Ok(())),
            // The browser keeps the cause from the page, so that it cannot scan the network.
            _ => Poll::Ready(Err(io::Error::other("the browser could not open the WebSocket"))),
        })
    }
}

impl Drop for PageSocket {
    fn drop(&mut self) {
        if let Some(Socket { socket, .. }) = SOCKETS.with_borrow_mut(|sockets| sockets.remove(&self.id)) {
            socket.set_onopen(None);
            socket.set_onclose(None);
            socket.set_onmessage(None);
            // Nothing is left to be told if it fails.
            let _ = socket.close();
        }
    }
}

impl Socket {
    fn refuse(&mut self, why: &'static str) {
        self.stage = Stage::Refused(why);
        let _ = self.socket.close_with_code_and_reason(CLOSE_UNSUPPORTED, why);
    }
}

/// Notes what an event brought and wakes the driver.
fn changed(id: u64, note: impl FnOnce(&mut Socket)) {
    let waker = SOCKETS.with_borrow_mut(|sockets| {
        let socket = sockets.get_mut(&id)?;
        note(socket);
        socket.waker.take()
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// What a WebSocket's constructor or `send` threw.
fn refused(error: &JsValue) -> io::Error {
    let message = error.dyn_ref::<js_sys::Error>().map(|error| String::from(error.message()));
    io::Error::other(message.unwrap_or_else(|| "the browser refused".to_owned()))
}

impl Transport for PageSocket {
    fn carrier(&self) -> Carrier {
        Carrier::Messages
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        self.with(|socket| {
            // One message at a time: two that lie together would hide a frame that was split between them.
            while let Some(message) = socket.incoming.pop_front() {
                let len = message.len();
                if len > 0 {
                    into.push(message);
                    return Poll::Ready(Ok(len));
                }
            }
            match socket.stage {
                Stage::Closed { clean: true, .. } => Poll::Ready(Ok(0)),
                Stage::Closed { clean: false, code } => {
                    let message = format!("the WebSocket was closed with code {code}");
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, message)))
                }
                Stage::Refused(why) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why))),
                Stage::Connecting | Stage::Open => {
                    socket.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        while self.with(|socket| socket.socket.buffered_amount()) > MAX_BUFFERED {
            self.check.reset(Some(now().after(BUFFERED_CHECK)));
            ready!(self.check.poll(cx));
        }
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        parts.iter().for_each(|part| message.extend_from_slice(part));
        let sent = self.with(|socket| socket.socket.send_with_u8_array(&message));
        let len = message.len();
        self.message = message;
        Poll::Ready(sent.map(|()| len).map_err(|error| refused(&error)))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The browser sends what it holds first, also when this object is gone.
        Poll::Ready(
            self.with(|socket| socket.socket.close_with_code(CLOSE_NORMAL)).map_err(|error| refused(&error)),
        )
    }
}
