//! Tokens that the host makes, as an adapter sees them, against a real server.

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::next;
use valkyrie_bridge::{
    BoxFuture, Bytes, CallOptions, ClientOptions, Handle, Queue, Reason, Status, Token, TokenOption, Value,
    call, client_free, close, connect, in_flight, token_provide, token_wanted,
};
use valkyrie_sdk::{Authenticator, Peer, Principal, Refusal, Reply, ServerBuilder, ServerCall, handler_fn};

/// Accepts tokens that begin with `good`, for 1 s.
struct Good;

impl Authenticator for Good {
    fn authenticate<'a>(
        &'a self,
        token: &'a [u8],
        _: &'a Peer,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Principal, Refusal>> {
        Box::pin(async move {
            let token = String::from_utf8_lossy(token);
            if !token.starts_with("good") {
                return Err(Refusal("not good".into()));
            }
            Ok(Principal::new(&format!("sub:{token}")).with_expiry(now + Duration::from_secs(1)))
        })
    }
}

fn server() -> String {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let server = ServerBuilder::new()
                .bind("127.0.0.1:0")
                .authenticator(Good)
                .open_to_all(true)
                .handler(
                    "/who",
                    handler_fn(|call: ServerCall| async move {
                        Ok::<_, Status>(Reply::message(call.principal().id().to_owned()))
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

fn host_options() -> ClientOptions {
    let mut options = ClientOptions::default();
    options.token = Some(TokenOption::Host);
    options
}

fn who(client: Handle, queue: &Arc<Queue>) -> Result<String, Status> {
    call(client, queue, "/who", Bytes::new(), CallOptions::default())?;
    match next(queue).outcome? {
        Value::Response(response) => Ok(String::from_utf8_lossy(&response.message).into_owned()),
        other => panic!("{other:?}"),
    }
}

/// Waits for the next request, and its number.
fn asked(client: Handle, queue: &Arc<Queue>) -> u64 {
    let op = token_wanted(client, queue).unwrap();
    let completion = next(queue);
    assert_eq!(completion.op, op);
    assert!(matches!(completion.outcome, Ok(Value::Done)), "{completion:?}");
    op
}

#[test]
fn a_host_is_asked_for_each_connection_and_again_before_a_token_ends() {
    let endpoint = server();
    let (calls, requests) = (Queue::blocking(), Queue::blocking());
    let (client, connecting) = connect(&calls, &endpoint, host_options()).unwrap();
    for round in 0..4 {
        let request = asked(client, &requests);
        assert!(token_provide(client, request, Ok(Token::new(format!("good{round}")))).unwrap());
        assert!(!token_provide(client, request, Ok(Token::new("bad"))).unwrap(), "a second answer");
        if round == 0 {
            assert_eq!(next(&calls).op, connecting);
            assert_eq!(who(client, &calls).unwrap(), "sub:good0");
        }
    }
    // What waits for a request is no work that anybody has to wait for; it ends with its client.
    let waiting = token_wanted(client, &requests).unwrap();
    assert_eq!(in_flight(), 0);
    let closing = close(client, &calls).unwrap();
    assert_eq!(next(&calls).op, closing);
    let end = next(&requests);
    assert_eq!((end.op, end.outcome.unwrap_err().reason()), (waiting, Reason::CLIENT_CLOSED));
    assert_eq!(token_wanted(client, &requests).unwrap_err().reason(), Reason::CLIENT_CLOSED);
    client_free(client);
    assert!(token_provide(client, waiting, Ok(Token::new("late"))).is_err());
}

#[test]
fn a_host_that_has_no_token_says_why_and_one_that_is_silent_is_given_up() {
    let endpoint = server();
    let queue = Queue::blocking();
    let (client, connecting) = connect(&queue, &endpoint, host_options()).unwrap();
    let requests = Queue::blocking();
    let request = asked(client, &requests);
    assert!(token_provide(client, request, Err("the vault is sealed".to_owned())).unwrap());
    let status = next(&queue);
    assert_eq!(status.op, connecting);
    let status = status.outcome.unwrap_err();
    assert_eq!(status.reason(), Reason::CREDENTIALS_UNAVAILABLE);
    assert!(status.message().contains("the vault is sealed"), "{status}");
    client_free(client);

    let mut silent = host_options();
    silent.connect_timeout_ms = 200;
    let (client, _) = connect(&queue, &endpoint, silent).unwrap();
    let request = asked(client, &requests);
    assert_eq!(next(&queue).outcome.unwrap_err().reason(), Reason::CREDENTIALS_UNAVAILABLE);
    assert!(!token_provide(client, request, Ok(Token::new("good, but late"))).unwrap());
    // The loop that was to answer is gone.
    let gone = Queue::blocking();
    token_wanted(client, &gone).unwrap();
    gone.close();
    assert_eq!(who(client, &queue).unwrap_err().reason(), Reason::CREDENTIALS_UNAVAILABLE);
    client_free(client);
}

#[test]
fn a_token_that_is_known_needs_no_host_and_is_never_shown() {
    let endpoint = server();
    let queue = Queue::blocking();
    let mut options = ClientOptions::default();
    options.token = Some(TokenOption::Source(Arc::new(Token::new("good canary"))));
    assert!(!format!("{options:?}").contains("canary"));
    let client = common::connected(&queue, &endpoint, options);
    assert_eq!(who(client, &queue).unwrap(), "sub:good canary");
    assert_eq!(token_wanted(client, &queue).unwrap_err().reason(), Reason::INVALID_ARGUMENT);
    client_free(client);

    let refused = "tcp://192.0.2.1:1";
    let status = connect(&queue, refused, host_options()).unwrap_err();
    assert_eq!(status.reason(), Reason::INSECURE_CREDENTIALS);
}
