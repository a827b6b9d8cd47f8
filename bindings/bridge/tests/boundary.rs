//! The boundary as an adapter uses it, against a real server on a real socket.

mod common;

use std::{sync::Arc, time::Duration};

use common::{connected, next};
use valkyrie_bridge::{
    Bytes, CallOptions, ClientOptions, Code, Handle, Level, Listener, Queue, Reason, Record, Status, Value,
    call, cancel, client_free, close, connect, half_close, open, recv, send, stream_free,
};
use valkyrie_sdk::{EchoHandler, Reply, ServerBuilder, handler_fn};

/// A server on a runtime of its own, so that the bridge's is not involved.
fn server() -> String {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let running = Arc::new(());
            let server = ServerBuilder::new()
                .bind("127.0.0.1:0")
                .handler("/echo", EchoHandler)
                .handler("/hang", {
                    let running = running.clone();
                    handler_fn(move |_| {
                        let held = running.clone();
                        async move {
                            let _held = held;
                            std::future::pending::<Result<Reply, Status>>().await
                        }
                    })
                })
                .handler(
                    "/running",
                    handler_fn(move |_| {
                        // One is the other handler's own, one is here.
                        let running = Arc::strong_count(&running) - 2;
                        async move { Ok::<_, Status>(Reply::message(running.to_string())) }
                    }),
                )
                .build()
                .await
                .unwrap();
            tell.send(server.endpoints()[0].clone()).unwrap();
            server.start().await.unwrap();
        });
    });
    told.recv().unwrap()
}

/// A server that drains when it is told to.
fn server_to_stop() -> (String, std::sync::mpsc::Sender<()>) {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime
            .block_on(ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).build())
            .unwrap();
        tell.send(server.endpoints()[0].clone()).unwrap();
        let control = server.control();
        runtime.spawn(async move { server.start().await });
        stopped.recv().unwrap();
        runtime.block_on(control.shutdown());
    });
    (told.recv().unwrap(), stop)
}

/// How many handlers of /hang run.
fn handlers(client: Handle, queue: &Arc<Queue>) -> usize {
    call(client, queue, "/running", Bytes::new(), CallOptions::default()).unwrap();
    let Ok(Value::Response(response)) = next(queue).outcome else { panic!("no answer") };
    text(&response.message).parse().unwrap()
}

fn text(message: &Bytes) -> String {
    String::from_utf8(message.to_vec()).unwrap()
}

/// What a stream still has to give.
fn rest(stream: Handle, queue: &Arc<Queue>) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        recv(stream, queue, 64).unwrap();
        let Ok(Value::Messages { messages, end }) = next(queue).outcome else { panic!("no messages") };
        got.extend(messages.iter().map(text));
        if end.is_some() {
            return got;
        }
    }
}

#[test]
fn a_call_completes_once_with_its_answer() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let op = call(client, &queue, "/echo", Bytes::from_static(b"hello"), CallOptions::default()).unwrap();
    let completion = next(&queue);
    assert_eq!(completion.op, op);
    assert!(matches!(completion.outcome, Ok(Value::Response(response)) if response.message == "hello"));
    let op = close(client, &queue).unwrap();
    assert_eq!(next(&queue).op, op);
    let refused = call(client, &queue, "/echo", Bytes::new(), CallOptions::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::CLIENT_CLOSED);
    close(client, &queue).unwrap();
    next(&queue);
    client_free(client);
    client_free(client);
    assert_eq!(close(client, &queue).unwrap_err().reason(), Reason::CLIENT_CLOSED);
}

#[test]
fn a_host_that_drains_when_it_is_woken_gets_every_completion_once() {
    let (tell, told) = std::sync::mpsc::channel();
    let queue = Queue::new(move || tell.send(()).unwrap());
    let (client, _) = connect(&queue, &server(), ClientOptions::default()).unwrap();
    for _ in 0..1_000 {
        call(client, &queue, "/echo", Bytes::from_static(b"x"), CallOptions::default()).unwrap();
    }
    let mut out = Vec::new();
    while out.len() < 1_001 {
        told.recv_timeout(Duration::from_secs(60)).unwrap();
        while queue.drain(&mut out, 64) > 0 {}
    }
    assert!(out.iter().all(|completion| completion.outcome.is_ok()));
    let mut ops: Vec<_> = out.iter().map(|completion| completion.op).collect();
    ops.sort_unstable();
    ops.dedup();
    assert_eq!(ops.len(), 1_001, "an operation completed twice");
    client_free(client);
}

#[test]
fn a_cancelled_call_completes_once_with_cancelled() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let op = call(client, &queue, "/hang", Bytes::new(), CallOptions::default()).unwrap();
    cancel(op);
    cancel(op);
    let completion = next(&queue);
    assert_eq!((completion.op, completion.outcome.unwrap_err().code()), (op, Code::Cancelled));
    client_free(client);
    assert!(!queue.wait(Some(Duration::from_millis(50))), "it completed twice");
}

#[test]
fn streams_carry_messages_and_their_end() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    for number in 0..10 {
        send(stream, &queue, Bytes::from(number.to_string())).unwrap();
        assert!(next(&queue).outcome.is_ok());
    }
    half_close(stream, &queue).unwrap();
    assert!(next(&queue).outcome.is_ok());
    let mut got = Vec::new();
    loop {
        recv(stream, &queue, 4).unwrap();
        let Ok(Value::Messages { messages, end }) = next(&queue).outcome else { panic!("no messages") };
        assert!(messages.len() <= 4);
        got.extend(messages);
        if end.is_some() {
            break;
        }
    }
    assert_eq!(got, (0..10).map(|number| Bytes::from(number.to_string())).collect::<Vec<_>>());
    stream_free(stream);
    assert_eq!(recv(stream, &queue, 1).unwrap_err().reason(), Reason::STREAM_MISUSE);
    client_free(client);
}

#[test]
fn sends_that_nobody_waits_for_keep_their_order() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    for _ in 0..20 {
        let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
        for number in 0..300 {
            send(stream, &queue, Bytes::from(number.to_string())).unwrap();
        }
        half_close(stream, &queue).unwrap();
        for _ in 0..301 {
            assert!(matches!(next(&queue).outcome, Ok(Value::Done)));
        }
        assert_eq!(rest(stream, &queue), (0..300).map(|number| number.to_string()).collect::<Vec<_>>());
        stream_free(stream);
    }
    client_free(client);
}

#[test]
fn a_cancelled_recv_leaves_its_messages_to_the_next() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let stream = open(client, &queue, "/echo", CallOptions::default()).unwrap();
    let mut got = Vec::new();
    for number in 0..500 {
        let receiving = recv(stream, &queue, 3).unwrap();
        let sending = send(stream, &queue, Bytes::from(number.to_string())).unwrap();
        // Into the middle of whatever the two are doing.
        for _ in 0..number % 7 * 40 {
            std::hint::spin_loop();
        }
        cancel(receiving);
        let outcomes = [next(&queue), next(&queue)];
        for completion in outcomes {
            match completion.outcome {
                Ok(Value::Messages { messages, .. }) if completion.op == receiving => {
                    got.extend(messages.iter().map(text))
                }
                Ok(Value::Done) => assert_eq!(completion.op, sending),
                Err(status) => assert_eq!((completion.op, status.code()), (receiving, Code::Cancelled)),
                other => panic!("{other:?}"),
            }
        }
    }
    half_close(stream, &queue).unwrap();
    assert!(next(&queue).outcome.is_ok());
    got.extend(rest(stream, &queue));
    assert_eq!(got, (0..500).map(|number| number.to_string()).collect::<Vec<_>>());
    stream_free(stream);
    client_free(client);
}

#[test]
fn closing_a_queue_cancels_what_waits_on_it() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let gone = Queue::blocking();
    let forever = CallOptions { timeout_ms: Some(u64::MAX), ..CallOptions::default() };
    call(client, &gone, "/hang", Bytes::new(), forever).unwrap();
    // Until the handler runs there would be nothing for the server to stop.
    while handlers(client, &queue) == 0 {}
    gone.close();
    gone.close();
    while handlers(client, &queue) == 1 {}
    assert!(!gone.wait(Some(Duration::ZERO)));
    let refused = call(client, &gone, "/echo", Bytes::new(), CallOptions::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::CLIENT_CLOSED);
    client_free(client);
}

#[test]
fn freeing_a_stream_completes_what_waits_on_it() {
    let queue = Queue::blocking();
    let client = connected(&queue, &server(), ClientOptions::default());
    let stream = open(client, &queue, "/hang", CallOptions::default()).unwrap();
    let op = recv(stream, &queue, 1).unwrap();
    stream_free(stream);
    let completion = next(&queue);
    assert_eq!((completion.op, completion.outcome.unwrap_err().code()), (op, Code::Cancelled));
    client_free(client);
}

#[test]
fn an_absent_server_is_unavailable_and_a_bad_endpoint_is_refused() {
    let queue = Queue::blocking();
    let (client, _) = connect(&queue, "tcp://127.0.0.1:1", ClientOptions::default()).unwrap();
    assert_eq!(next(&queue).outcome.unwrap_err().reason(), Reason::CONNECT_FAILED);
    client_free(client);
    let refused = connect(&queue, "nonsense", ClientOptions::default()).unwrap_err();
    assert_eq!(refused.reason(), Reason::INVALID_ENDPOINT);
}

#[cfg(target_os = "linux")]
#[test]
fn the_descriptor_is_readable_while_something_waits() {
    let readable = |fd: i32, timeout_ms: i32| {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd is passed, and its count is 1.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
    };
    let queue = Queue::with_fd().unwrap();
    let fd = queue.fd().unwrap();
    assert!(!readable(fd, 0));
    let (client, _) = connect(&queue, &server(), ClientOptions::default()).unwrap();
    assert!(readable(fd, 60_000));
    let mut out = Vec::new();
    queue.drain(&mut out, usize::MAX);
    assert!(!readable(fd, 0));
    client_free(client);
}

/// The records of one endpoint, as many as are said.
fn records(listener: &Listener, endpoint: &str, count: usize) -> Vec<Record> {
    let queue = Queue::blocking();
    let mut all = Vec::new();
    while all.len() < count {
        listener.next(&queue, 64).unwrap();
        let Ok(Value::Logs(records)) = next(&queue).outcome else { panic!("no records") };
        let of_it = |record: &Record| {
            record.fields.iter().any(|(key, value)| *key == "endpoint" && value == endpoint)
        };
        all.extend(records.into_iter().filter(of_it));
    }
    all
}

#[test]
fn what_happens_to_connections_is_logged_to_whoever_listens() {
    let (unheard, all) = (Listener::new(), Listener::new());
    unheard.set_level(Some(Level::Error));
    all.set_level(Some(Level::Debug));
    let queue = Queue::blocking();

    // Nobody is there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("tcp://{closed}");
    let (client, _) = connect(&queue, &endpoint, ClientOptions::default()).unwrap();
    assert!(next(&queue).outcome.is_err());
    client_free(client);
    let record = &records(&all, &endpoint, 1)[0];
    assert_eq!((record.level, record.target), (Level::Warn, "valkyrie.connection"));
    assert!(record.message.starts_with(&format!("cannot connect to {endpoint}")), "{record:?}");
    assert_eq!(record.fields[1], ("reason", "CONNECT_FAILED".to_owned()));

    // A server that goes away before its connection does.
    let (endpoint, stop) = server_to_stop();
    let client = connected(&queue, &endpoint, ClientOptions::default());
    // It has the connection, not only its system.
    call(client, &queue, "/echo", Bytes::new(), CallOptions::default()).unwrap();
    assert!(next(&queue).outcome.is_ok());
    stop.send(()).unwrap();
    let said: Vec<_> = records(&all, &endpoint, 3);
    assert_eq!(said.iter().map(|record| record.level).collect::<Vec<_>>(), [Level::Info; 3], "{said:?}");
    assert!(said[0].message.starts_with("connected to "));
    assert!(said[1].message.contains("takes no new calls"));
    assert!(said[2].message.contains("is over"));
    client_free(client);

    // One that this side closes.
    let endpoint = server();
    let client = connected(&queue, &endpoint, ClientOptions::default());
    close(client, &queue).unwrap();
    assert!(next(&queue).outcome.is_ok());
    let said = records(&all, &endpoint, 3);
    assert_eq!(
        said.iter().map(|record| record.level).collect::<Vec<_>>(),
        [Level::Info, Level::Debug, Level::Debug]
    );
    assert!(said[1].message.ends_with(" drains") && said[2].message.contains(" is over"), "{said:?}");
    client_free(client);
    assert!(unheard.take().is_empty());
    all.set_level(None);
    unheard.set_level(None);
}
