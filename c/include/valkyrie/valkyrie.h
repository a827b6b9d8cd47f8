/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Valkyrie for C. Generated from bindings/c; `cargo xtask header` writes it.
 *
 * Errors. A function that can fail returns a valkyrie_code, 0 for success, and stores a valkyrie_error in its last
 * argument when that is not NULL; free it with valkyrie_error_free. Output arguments are untouched on failure.
 * A NULL that is not allowed gives VALKYRIE_CODE_INVALID_ARGUMENT, never a crash.
 *
 * Ownership. A pointer handed out through an output argument or to a callback belongs to the caller, who frees it with
 * the _free function of its type; every _free takes NULL. valkyrie_bytes borrow: those handed in are copied before the
 * function returns, those handed out live as long as the object they came from. Owner: below says it of each function.
 *
 * Misuse. Pointers to this library's types are numbers, never addresses. One that was freed, is of another type or was
 * never handed out is an error, VALKYRIE_CODE_INVALID_ARGUMENT or what the function says, and never a crash; so is a
 * second free. What C cannot be spared is memory of its own: strings, bytes and output arguments must be there.
 *
 * Threads. Every function may be called from any thread, and an object may be freed while another thread uses it, which
 * then gets an error. Thread: below says what blocks, and where an order needs one thread at a time.
 *
 * Forks. After fork() the child may use every object: a client connects anew, what was in flight ends with UNAVAILABLE.
 */

#ifndef VALKYRIE_H
#define VALKYRIE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Version of the interface; valkyrie_abi_version() gives the library's. */
#define VALKYRIE_ABI_VERSION 1
/* No time limit. */
#define VALKYRIE_NO_TIMEOUT UINT64_MAX
/* Initial values of the options; every other field is its default when zero. */
#define VALKYRIE_CLIENT_OPTIONS_INIT { sizeof(valkyrie_client_options), 0, 0, 0, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0 }
#define VALKYRIE_CALL_OPTIONS_INIT { sizeof(valkyrie_call_options), 0, 0, NULL, 0, 0, 0, { NULL, 0 } }
#define VALKYRIE_OPERATION_INIT(kind) { sizeof(valkyrie_operation), (kind), NULL, NULL, NULL, { NULL, 0 }, NULL, NULL, 0, 0, 0 }

/*
 Success.
 */
#define VALKYRIE_CODE_OK 0

/*
 The caller gave up, or the client is closed.
 */
#define VALKYRIE_CODE_CANCELLED 1

/*
 An error without a better code.
 */
#define VALKYRIE_CODE_UNKNOWN 2

/*
 Something that can never be right.
 */
#define VALKYRIE_CODE_INVALID_ARGUMENT 3

/*
 The deadline passed before the call ended.
 */
#define VALKYRIE_CODE_DEADLINE_EXCEEDED 4

/*
 The thing asked for does not exist.
 */
#define VALKYRIE_CODE_NOT_FOUND 5

/*
 The thing to create exists.
 */
#define VALKYRIE_CODE_ALREADY_EXISTS 6

/*
 The caller is known and may not do this.
 */
#define VALKYRIE_CODE_PERMISSION_DENIED 7

/*
 A limit or a quota is used up.
 */
#define VALKYRIE_CODE_RESOURCE_EXHAUSTED 8

/*
 The system is not in the state that the call needs.
 */
#define VALKYRIE_CODE_FAILED_PRECONDITION 9

/*
 A conflict; try the whole again.
 */
#define VALKYRIE_CODE_ABORTED 10

/*
 Past the valid range.
 */
#define VALKYRIE_CODE_OUT_OF_RANGE 11

/*
 The server has no such method.
 */
#define VALKYRIE_CODE_UNIMPLEMENTED 12

/*
 Something that must hold does not.
 */
#define VALKYRIE_CODE_INTERNAL 13

/*
 The service cannot be reached now.
 */
#define VALKYRIE_CODE_UNAVAILABLE 14

/*
 Data is lost or corrupt.
 */
#define VALKYRIE_CODE_DATA_LOSS 15

/*
 The caller did not prove who it is.
 */
#define VALKYRIE_CODE_UNAUTHENTICATED 16

/*
 The default priority class.
 */
#define VALKYRIE_PRIORITY_NORMAL 0

/*
 Ahead of everything else.
 */
#define VALKYRIE_PRIORITY_CRITICAL 1

/*
 Behind everything else, with a small share always.
 */
#define VALKYRIE_PRIORITY_BULK 2

/*
 MTLS with an identity, TLS with certificates to trust, else INSECURE.
 */
#define VALKYRIE_SECURITY_DEFAULT 0

/*
 Connections need no protection.
 */
#define VALKYRIE_SECURITY_INSECURE 1

/*
 Connections must be encrypted, and the server proves who it is.
 */
#define VALKYRIE_SECURITY_TLS 2

/*
 So, and the client proves who it is by a certificate.
 */
#define VALKYRIE_SECURITY_MTLS 3

/*
 valkyrie_operation_start: makes a client. Needs target, the endpoint; client_options may be NULL.
 */
#define VALKYRIE_OPERATION_CONNECT 1

/*
 valkyrie_operation_start: closes a client, as valkyrie_client_close. Needs client.
 */
#define VALKYRIE_OPERATION_CLOSE 2

/*
 valkyrie_operation_start: one message out, one back. Needs client and target, the method; call_options may be NULL.
 */
#define VALKYRIE_OPERATION_CALL 3

/*
 valkyrie_operation_start: sends message on a stream. Needs call.
 */
#define VALKYRIE_OPERATION_SEND 4

/*
 valkyrie_operation_start: half-closes a stream. Needs call.
 */
#define VALKYRIE_OPERATION_HALF_CLOSE 5

/*
 valkyrie_operation_start: takes the next message of a stream. Needs call.
 */
#define VALKYRIE_OPERATION_RECV 6

/*
 valkyrie_operation_start: waits for the next record of what happens to connections, to be logged. target is the least
 grave level that is wanted: "error", "warn", "info" or "debug"; NULL means "warn". The completion's message is the
 sentence, with metadata: level, target, and particulars such as endpoint. Its callback begins the next, as one record
 is given at a time: the queue keeps the last 1,024 until then. A second one beside it ends the first with CANCELLED.
 */
#define VALKYRIE_OPERATION_LOG 7

/*
 valkyrie_operation_start: waits until a client no longer stands with its servers as connectivity says, and says how it does.
 Needs client and connectivity. Steps that followed each other at once may be passed over; a client that is closed stands as
 SHUTDOWN for ever, and who has seen that gets CANCELLED. It is not counted by valkyrie_in_flight.
 */
#define VALKYRIE_OPERATION_CONNECTIVITY 8

/*
 valkyrie_operation_start: waits until a client's circuit breakers are others than those that seen stands for, and shows them as
 valkyrie_client_breakers does: the completion's message. Needs client and seen, which is 0 at first, so that it completes at once,
 and then the seen of the completion before. Steps that followed each other at once may be passed over; one that is given up loses
 nothing. It fails with CANCELLED, reason CLIENT_CLOSED, once the client is closed. It is not counted by valkyrie_in_flight.
 */
#define VALKYRIE_OPERATION_BREAKERS 9

/*
 No connection, and none is being made: the next call makes one.
 */
#define VALKYRIE_CONNECTIVITY_IDLE 0

/*
 A connection is being made.
 */
#define VALKYRIE_CONNECTIVITY_CONNECTING 1

/*
 There is a connection that takes calls.
 */
#define VALKYRIE_CONNECTIVITY_READY 2

/*
 The last try failed, and the next one waits.
 */
#define VALKYRIE_CONNECTIVITY_TRANSIENT_FAILURE 3

/*
 The client is closed.
 */
#define VALKYRIE_CONNECTIVITY_SHUTDOWN 4

/*
 One stream of any shape.
 */
typedef struct valkyrie_call valkyrie_call;

/*
 Makes calls to one endpoint.
 */
typedef struct valkyrie_client valkyrie_client;

/*
 Why something failed. Immutable.
 */
typedef struct valkyrie_error valkyrie_error;

/*
 A message that was received: the answer of a call, or one message of a stream. Immutable.
 */
typedef struct valkyrie_message valkyrie_message;

/*
 Metadata that was received. Borrowed from the object it came from.
 */
typedef struct valkyrie_metadata valkyrie_metadata;

/*
 Completions on their way to the host's own loop.
 */
typedef struct valkyrie_queue valkyrie_queue;

/*
 A status code: gRPC's numbers, VALKYRIE_CODE_…. A number without a name here is passed on as it came.
 */
typedef uint32_t valkyrie_code;

/*
 Makes a token, and answers request by valkyrie_token_provide, before it returns or later. It is called on a thread of the
 library's own, so it may block, and never twice at once for one client unless it took longer than connect_timeout_ms; it
 must not throw. user_data must live until the client is freed and no call of it runs.
 */
typedef void (*valkyrie_token_source)(uint64_t request, void *user_data);

/*
 Options of a client: begin with VALKYRIE_CLIENT_OPTIONS_INIT. NULL instead of them means every default.

 Certificates, lists and keys are PEM text ended by NUL, or "file:" and the path of a file, as in "file:/etc/ca.pem": it is
 looked at again for each connection, once a second at most, so that it may be replaced. NULL means none.
 */
typedef struct {
  /*
   sizeof of this structure as the program knows it.
   */
  uint32_t struct_size;
  /*
   Zero.
   */
  uint32_t reserved;
  /*
   Time limit of unary calls that give none, in milliseconds; 0 means 5,000.
   */
  uint64_t timeout_ms;
  /*
   Time limit of making a connection, in milliseconds; 0 means 5,000.
   */
  uint64_t connect_timeout_ms;
  /*
   PEM: a server's certificates must lead to one of these. Where connections are encrypted, this or system_roots is
   needed.
   */
  const char *trusted_certificates;
  /*
   PEM: the authorities' revocation lists. A server's certificate that one of them names is refused.
   */
  const char *revocation_lists;
  /*
   PEM: the certificate chain to show to a server that asks, the client's own first; with identity_key or not at all.
   */
  const char *identity_certificates;
  /*
   PEM: its private key.
   */
  const char *identity_key;
  /*
   The name that the server's certificate must be for; NULL means the endpoint's host.
   */
  const char *server_name;
  /*
   1: also trust the authorities that the system trusts.
   */
  uint32_t system_roots;
  /*
   1: speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read or
   change them.
   */
  uint32_t sealed;
  /*
   The least protection of connections: VALKYRIE_SECURITY_…
   */
  uint32_t min_security;
  /*
   Zero.
   */
  uint32_t reserved_too;
  /*
   What says whom the client calls for, such as a JWT; NULL means nothing, or token_source.
   */
  const char *token;
  /*
   Instead of token: makes one for each new connection, and a newer one before the last ends, while streams go on.
   */
  valkyrie_token_source token_source;
  /*
   What token_source gets.
   */
  void *token_user_data;
  /*
   What the client does about failures: JSON with the keys of docs/policies.md, ended by NUL; NULL means their defaults.
   One that is wrong fails the connect with reason INVALID_CONFIGURATION, and says line, key and what to write instead.
   */
  const char *service_config;
  /*
   How long the server may be silent while calls are open until it is asked whether it is there, in milliseconds; 0 means
   30,000, VALKYRIE_NO_TIMEOUT never; at least 10,000. One that says nothing within keepalive_timeout_ms is gone: the
   connection ends with CONNECTION_LOST, and its calls are retried by their policy (gRFC A8). Other times fail the connect
   with reason INVALID_CONFIGURATION.
   */
  uint64_t keepalive_ms;
  /*
   How long its answer may take, in milliseconds; 0 means 10,000; at least 1,000.
   */
  uint64_t keepalive_timeout_ms;
  /*
   As keepalive_ms while no call is open, for networks that forget who is idle; 0 means never; at least 300,000.
   */
  uint64_t keepalive_idle_ms;
} valkyrie_client_options;

/*
 Bytes that belong to somebody else. {NULL, 0} is empty.
 */
typedef struct {
  /*
   The first byte; may be NULL when len is 0.
   */
  const uint8_t *data;
  /*
   How many bytes.
   */
  uintptr_t len;
} valkyrie_bytes;

/*
 One entry of metadata to send.
 */
typedef struct {
  /*
   1 to 128 of a-z 0-9 - _ .
   */
  const char *key;
  /*
   Printable ASCII, or any bytes when the key ends in -bin.
   */
  valkyrie_bytes value;
} valkyrie_metadata_entry;

/*
 Options of a call: begin with VALKYRIE_CALL_OPTIONS_INIT. NULL instead of them means every default.
 */
typedef struct {
  /*
   sizeof of this structure as the program knows it.
   */
  uint32_t struct_size;
  /*
   VALKYRIE_PRIORITY_…; 0 is normal.
   */
  uint32_t priority;
  /*
   Milliseconds; 0 means the client's for unary calls and none for streams; VALKYRIE_NO_TIMEOUT means none.
   */
  uint64_t timeout_ms;
  /*
   metadata_len entries, copied; may be NULL when that is 0.
   */
  const valkyrie_metadata_entry *metadata;
  /*
   How many entries, at most 128.
   */
  uintptr_t metadata_len;
  /*
   1: a unary call that may be executed twice, so that it is tried again though a server may have seen it (gRFC A6). 0
   means what service_config says of the method, which is no by default. Streams are not tried again.
   */
  uint32_t idempotent;
  /*
   1: with an idempotency key that is drawn, 128 random bits, instead of idempotency_key.
   */
  uint32_t draw_idempotency_key;
  /*
   1 to 64 bytes that tell a unary call from every other of its caller's and its method's, as an order's number does; data
   NULL means none. It may be tried again then like an idempotent one: a server that keeps keys runs it once and answers
   each time, with valkyrie-replayed in the metadata of an answer that is not the first (PROTOCOL.md, W5-12).
   INVALID_ARGUMENT for another length, for a key that was used for another message, and for streams. Copied.
   */
  valkyrie_bytes idempotency_key;
} valkyrie_call_options;

/*
 What valkyrie_operation_start begins: make it with VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_…) and fill in what that
 kind needs. Everything in it is copied.
 */
typedef struct {
  /*
   sizeof of this structure as the program knows it.
   */
  uint32_t struct_size;
  /*
   VALKYRIE_OPERATION_…
   */
  uint32_t kind;
  /*
   For CALL, CLOSE, CONNECTIVITY and BREAKERS.
   */
  const valkyrie_client *client;
  /*
   For SEND, HALF_CLOSE and RECV.
   */
  const valkyrie_call *call;
  /*
   The endpoint for CONNECT, the method for CALL, the level for LOG; ended by NUL.
   */
  const char *target;
  /*
   For CALL and SEND.
   */
  valkyrie_bytes message;
  /*
   For CONNECT.
   */
  const valkyrie_client_options *client_options;
  /*
   For CALL.
   */
  const valkyrie_call_options *call_options;
  /*
   For CONNECTIVITY: how the client stood, VALKYRIE_CONNECTIVITY_…
   */
  uint32_t connectivity;
  /*
   Zero.
   */
  uint32_t reserved;
  /*
   For BREAKERS: 0, or the seen of the completion before.
   */
  uint64_t seen;
} valkyrie_operation;

/*
 How an operation ended. Lives until the callback returns. Later versions may have more fields behind these.
 */
typedef struct {
  /*
   The number that valkyrie_operation_start gave.
   */
  uint64_t operation;
  /*
   VALKYRIE_OPERATION_…
   */
  uint32_t kind;
  /*
   0, or why it failed.
   */
  valkyrie_code code;
  /*
   The client after a CONNECT that succeeded, else NULL. The callback's: free it with valkyrie_client_free.
   */
  valkyrie_client *client;
  /*
   The answer of a CALL, the message of a RECV, the record of a LOG or what BREAKERS shows; NULL for others, on failure, and at
   the end of a stream. The callback's: free it with valkyrie_message_free.
   */
  valkyrie_message *message;
  /*
   NULL when code is 0. The callback's: free it with valkyrie_error_free.
   */
  valkyrie_error *error;
  /*
   How the client stands after a CONNECTIVITY that succeeded, VALKYRIE_CONNECTIVITY_…, else 0.
   */
  uint32_t connectivity;
  /*
   After a RECV: how many messages of that stream are here, so that as many valkyrie_call_recv do not block. Else 0.
   */
  uint32_t ready;
  /*
   What stands for the breakers that a BREAKERS shows: the seen of the next one. 0 for others and on failure.
   */
  uint64_t seen;
} valkyrie_completion;

/*
 Called from valkyrie_queue_dispatch or valkyrie_queue_free, exactly once per operation that was begun. It may call
 any function, free the queue, and leave by a C++ exception or longjmp: the callbacks behind it run in the next dispatch.
 */
typedef void (*valkyrie_callback)(const valkyrie_completion *completion, void *user_data);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version and a hash of the core, which is the same in every language.

 Thread: any. Owner: the library; the string lives for ever.
 */
const char *valkyrie_version(void);

/*
 The version of the interface that the library has; equal to VALKYRIE_ABI_VERSION or the header does not fit.

 Thread: any.
 */
uint32_t valkyrie_abi_version(void);

/*
 The name of a code, such as "DEADLINE_EXCEEDED"; "UNKNOWN" for a number without one.

 Thread: any. Owner: the library; the string lives for ever.
 */
const char *valkyrie_code_name(valkyrie_code code);

/*
 Makes a client and its first connection. endpoint: "tcp://host:port", "unix:///path", "ws://host:port/path", the
 encrypted "tls://host:port", "wss://host:port/path" and "quic://host:port", whose options say whom to trust, or
 "echo://core", a server inside the library for tests without one. options may be NULL.

 Thread: any; blocks until the connection stands or connect_timeout_ms has passed.
 Owner: *out is the caller's, freed with valkyrie_client_free; *error with valkyrie_error_free; the rest is copied.
 */
valkyrie_code valkyrie_client_connect(const char *endpoint,
                                      const valkyrie_client_options *options,
                                      valkyrie_client **out,
                                      valkyrie_error **error);

/*
 Closes gracefully: calls in flight may finish within 5 s. Later calls fail with CANCELLED. A second close succeeds.

 Thread: any; blocks until the calls in flight have ended.
 Owner: client stays the caller's; *error is the caller's, freed with valkyrie_error_free.
 */
valkyrie_code valkyrie_client_close(const valkyrie_client *client,
                                    valkyrie_error **error);

/*
 Puts another service config in the place of the client's, without a lost call: JSON with the keys of docs/policies.md, ended by
 NUL. Calls that began keep their time limit and how they are tried again; all the rest heeds the new one. What is known of the
 servers stays, such as an open breaker. One that is wrong fails with reason INVALID_CONFIGURATION, and changes nothing.

 Thread: any; does not block.
 Owner: config is copied; *error is the caller's, freed with valkyrie_error_free.
 */
valkyrie_code valkyrie_client_set_service_config(const valkyrie_client *client,
                                                 const char *config,
                                                 valkyrie_error **error);

/*
 The client's circuit breakers, one for each server and method that was called or isolated, and one for each server that is
 isolated as a whole: a message of JSON, a list of objects with server, method (null: all), state ("closed", "open", "half_open",
 "isolated"), age_ms and opens_for_ms (or null), calls, failures and changes. VALKYRIE_OPERATION_BREAKERS waits for a change.

 Thread: any; does not block.
 Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
 */
valkyrie_code valkyrie_client_breakers(const valkyrie_client *client,
                                       valkyrie_message **out,
                                       valkyrie_error **error);

/*
 What became of the client's calls since it was made, in Prometheus' text format: a message. Names begin with valkyrie_client_;
 times are in seconds. A child of a fork counts anew.

 Thread: any; does not block.
 Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
 */
valkyrie_code valkyrie_client_metrics(const valkyrie_client *client,
                                      valkyrie_message **out,
                                      valkyrie_error **error);

/*
 Holds the calls of a method, or all calls when method is NULL, back from a server: isolated true; or ends that: false. Those that
 go on end; further ones go to the other servers, and fail with reason BREAKER_OPEN where there is none. INVALID_ARGUMENT for
 what is none of the client's servers. The same again is nothing.

 Thread: any; does not block.
 Owner: server and method, ended by NUL, are copied; *error is the caller's, freed with valkyrie_error_free.
 */
valkyrie_code valkyrie_client_isolate(const valkyrie_client *client,
                                      const char *server,
                                      const char *method,
                                      bool isolated,
                                      valkyrie_error **error);

/*
 How a client stands with its servers now, VALKYRIE_CONNECTIVITY_…; SHUTDOWN when it is closed or not alive.
 VALKYRIE_OPERATION_CONNECTIVITY waits for a change.

 Thread: any; does not block.
 Owner: client stays the caller's.
 */
uint32_t valkyrie_client_connectivity(const valkyrie_client *client);

/*
 Frees a client; calls in flight end with CANCELLED. INVALID_ARGUMENT when it was freed before.

 Thread: any, also while others use the client: their calls end with an error.
 Owner: the library has client back; NULL is nothing.
 */
valkyrie_code valkyrie_client_free(valkyrie_client *client);

/*
 One message out, one message back. options may be NULL.

 Thread: any; blocks until the call ends or its time limit has passed.
 Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free; the rest is copied.
 */
valkyrie_code valkyrie_client_call(const valkyrie_client *client,
                                   const char *method,
                                   valkyrie_bytes message,
                                   const valkyrie_call_options *options,
                                   valkyrie_message **out,
                                   valkyrie_error **error);

/*
 valkyrie_client_call of the default method, "/echo", with every default.

 Thread: any; blocks as that does.
 Owner: as of that.
 */
valkyrie_code valkyrie_client_request(const valkyrie_client *client,
                                      valkyrie_bytes message,
                                      valkyrie_message **out,
                                      valkyrie_error **error);

/*
 Begins what the operation describes and returns at once. callback runs in valkyrie_queue_dispatch of that queue,
 exactly once; not at all when this function fails. number may be NULL; else it gets what valkyrie_operation_cancel
 takes.

 Thread: any; does not block.
 Owner: the operation and all in it are copied; user_data is handed to callback; *error is the caller's, freed with
 valkyrie_error_free.
 */
valkyrie_code valkyrie_operation_start(const valkyrie_queue *queue,
                                       const valkyrie_operation *operation,
                                       uint64_t *number,
                                       valkyrie_error **error,
                                       valkyrie_callback callback,
                                       void *user_data);

/*
 Gives an operation up: its callback gets CANCELLED unless it is complete. Unknown numbers are ignored, and so is a
 second time.

 Thread: any; does not block.
 */
void valkyrie_operation_cancel(uint64_t number);

/*
 Makes a completion queue.

 Thread: any.
 Owner: *out is the caller's, freed with valkyrie_queue_free; *error with valkyrie_error_free.
 */
valkyrie_code valkyrie_queue_new(valkyrie_queue **out, valkyrie_error **error);

/*
 A descriptor that is readable while a callback waits, for poll, epoll or select, from the first time on that it was
 asked for; -1 when queue is not alive or the system has none.

 Thread: any.
 Owner: the descriptor is the queue's: never read or close it.
 */
int32_t valkyrie_queue_fd(const valkyrie_queue *queue);

/*
 Runs the callbacks that wait, at most 1,024, and gives how many; waits for the first one at most timeout_ms
 (0: not at all; VALKYRIE_NO_TIMEOUT: for ever). 0 at once when queue is not alive.

 Thread: any, and the callbacks run on it; several may dispatch one queue, each callback runs once. Blocks for
 timeout_ms at most.
 Owner: queue stays the caller's; what a callback gets is the callback's.
 */
uintptr_t valkyrie_queue_dispatch(const valkyrie_queue *queue, uint64_t timeout_ms);

/*
 Frees a queue. Operations that wait on it are cancelled, and their callbacks run here with CANCELLED.
 INVALID_ARGUMENT when it was freed before.

 Thread: any, also while others dispatch the queue, and in its own callbacks.
 Owner: the library has queue back; NULL is nothing.
 */
valkyrie_code valkyrie_queue_free(valkyrie_queue *queue);

/*
 Opens a stream of any shape. What the server says comes with send and recv. options may be NULL.

 Thread: any; does not block.
 Owner: *out is the caller's, freed with valkyrie_call_free; *error with valkyrie_error_free; the rest is copied.
 */
valkyrie_code valkyrie_client_open(const valkyrie_client *client,
                                   const char *method,
                                   const valkyrie_call_options *options,
                                   valkyrie_call **out,
                                   valkyrie_error **error);

/*
 Sends a message on a stream.

 Thread: any, one sender at a time for an order; blocks while the peer's credit is used up.
 Owner: message is copied; *error is the caller's, freed with valkyrie_error_free.
 */
valkyrie_code valkyrie_call_send(const valkyrie_call *call, valkyrie_bytes message, valkyrie_error **error);

/*
 No more messages from this side.

 Thread: any, after the last send; blocks as that does.
 Owner: call stays the caller's; *error is the caller's, freed with valkyrie_error_free.
 */
valkyrie_code valkyrie_call_half_close(const valkyrie_call *call, valkyrie_error **error);

/*
 The next message; *out is NULL with code 0 once the call has ended well.

 Thread: any, one receiver at a time; blocks until a message or the end is there.
 Owner: *out is the caller's, freed with valkyrie_message_free; *error with valkyrie_error_free.
 */
valkyrie_code valkyrie_call_recv(const valkyrie_call *call, valkyrie_message **out, valkyrie_error **error);

/*
 Initial metadata once the call has ended well; NULL before.

 Thread: any.
 Owner: the call's; it lives until the call is freed.
 */
const valkyrie_metadata *valkyrie_call_metadata(const valkyrie_call *call);

/*
 Trailers once the call has ended well; NULL before.

 Thread: any.
 Owner: the call's; they live until the call is freed.
 */
const valkyrie_metadata *valkyrie_call_trailers(const valkyrie_call *call);

/*
 Cancels a call in both directions; what waits on it ends with CANCELLED. Nothing when it has ended or is not alive.

 Thread: any; does not block.
 Owner: call stays the caller's.
 */
void valkyrie_call_cancel(const valkyrie_call *call);

/*
 Frees a call; one that has not ended is cancelled. INVALID_ARGUMENT when it was freed before.

 Thread: any, also while others use the call: what they do ends with an error.
 Owner: the library has call back; NULL is nothing.
 */
valkyrie_code valkyrie_call_free(valkyrie_call *call);

/*
 The bytes of a message. Empty when message is not alive.

 Thread: any.
 Owner: the message's; they live until it is freed.
 */
valkyrie_bytes valkyrie_message_bytes(const valkyrie_message *message);

/*
 Initial metadata that came with the answer of a call; none with a message of a stream. NULL when message is not
 alive.

 Thread: any.
 Owner: the message's; it lives until that is freed.
 */
const valkyrie_metadata *valkyrie_message_metadata(const valkyrie_message *message);

/*
 Trailers that came with the answer of a call; none with a message of a stream. NULL when message is not alive.

 Thread: any.
 Owner: the message's; they live until that is freed.
 */
const valkyrie_metadata *valkyrie_message_trailers(const valkyrie_message *message);

/*
 Frees a message. INVALID_ARGUMENT when it was freed before.

 Thread: any, while no other reads its bytes or metadata.
 Owner: the library has message back; NULL is nothing.
 */
valkyrie_code valkyrie_message_free(valkyrie_message *message);

/*
 How many entries there are; 0 when metadata is not alive.

 Thread: any.
 Owner: metadata stays with the object it came from.
 */
uintptr_t valkyrie_metadata_len(const valkyrie_metadata *metadata);

/*
 The entry at index, in the order it was sent: whether there is one. key (not ended by NUL) and value may be NULL.

 Thread: any.
 Owner: the bytes are those of the object that metadata came from, and live as long.
 */
bool valkyrie_metadata_at(const valkyrie_metadata *metadata,
                          uintptr_t index,
                          valkyrie_bytes *key,
                          valkyrie_bytes *value);

/*
 The status code; 0 for NULL, INVALID_ARGUMENT when error is not alive.

 Thread: any.
 Owner: error stays the caller's.
 */
valkyrie_code valkyrie_error_code(const valkyrie_error *error);

/*
 A sentence for people, ended by NUL. "" when error is not alive.

 Thread: any.
 Owner: the error's; it lives until that is freed.
 */
const char *valkyrie_error_message(const valkyrie_error *error);

/*
 The stable reason, such as "CONNECTION_LOST"; "NONE" when the server's application made the status, and when error
 is not alive. Not ended by NUL.

 Thread: any.
 Owner: the library; the bytes live for ever.
 */
valkyrie_bytes valkyrie_error_reason(const valkyrie_error *error);

/*
 Whose fault it is: "application", "caller", "auth", "transient", "server" or "protocol"; "application" when error is
 not alive. Not ended by NUL.

 Thread: any.
 Owner: the library; the bytes live for ever.
 */
valkyrie_bytes valkyrie_error_class(const valkyrie_error *error);

/*
 What became of the call's attempts, a line for each: the server, how long it waited and took, its outcome, the breaker's state, and
 whether there was another one or why not. Empty when none was made, or error is not alive. Not ended by NUL.

 Thread: any.
 Owner: the bytes are the error's, and live until it is freed.
 */
valkyrie_bytes valkyrie_error_timeline(const valkyrie_error *error);

/*
 Milliseconds that the server asks to wait before another attempt: whether it does. UINT64_MAX means never. out may
 be NULL.

 Thread: any.
 Owner: error stays the caller's.
 */
bool valkyrie_error_pushback_ms(const valkyrie_error *error,
                                uint64_t *out);

/*
 The detail at index: whether there is one. type_name (not ended by NUL) and value may be NULL.

 Thread: any.
 Owner: the bytes are the error's, and live until it is freed.
 */
bool valkyrie_error_detail(const valkyrie_error *error,
                           uintptr_t index,
                           valkyrie_bytes *type_name,
                           valkyrie_bytes *value);

/*
 Initial metadata that came with the error; NULL when error is not alive.

 Thread: any.
 Owner: the error's; it lives until that is freed.
 */
const valkyrie_metadata *valkyrie_error_metadata(const valkyrie_error *error);

/*
 Trailers that came with the error; NULL when error is not alive.

 Thread: any.
 Owner: the error's; they live until that is freed.
 */
const valkyrie_metadata *valkyrie_error_trailers(const valkyrie_error *error);

/*
 Frees an error. INVALID_ARGUMENT when it was freed before.

 Thread: any, while no other reads what it lent.
 Owner: the library has error back; NULL is nothing.
 */
valkyrie_code valkyrie_error_free(valkyrie_error *error);

/*
 Answers a request that a valkyrie_token_source got, with token, not ended by NUL, or with why there is none: error, ended
 by NUL, becomes part of the message of the calls that wait, and must hold no secret; NULL with a token. INVALID_ARGUMENT
 when nobody waits: the answer took longer than connect_timeout_ms, or is the second.

 Thread: any, also in the valkyrie_token_source; does not block.
 Owner: both are copied.
 */
valkyrie_code valkyrie_token_provide(uint64_t request,
                                     valkyrie_bytes token,
                                     const char *error);

/*
 Operations that were accepted and are not complete, in the whole process.

 Thread: any.
 */
uintptr_t valkyrie_in_flight(void);

/*
 Objects that the program has and did not free, in the whole process: for tests, since a leak checker cannot see what
 the library keeps for a pointer.

 Thread: any; takes time with the most objects there ever were.
 */
uintptr_t valkyrie_alive(void);

/*
 Ends everything in the process: clients close at once, operations complete with CANCELLED, threads stop. Optional
 before exit; what is still held may only be freed afterwards.

 Thread: any, once nothing else of the library runs; does not block.
 */
void valkyrie_shutdown(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VALKYRIE_H */
