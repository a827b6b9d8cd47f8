/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Valkyrie for C. Generated from bindings/c; `cargo xtask header` writes it.
 *
 * Errors. A function that can fail returns a valkyrie_code, 0 for success, and stores a valkyrie_error in its last
 * argument when that is not NULL; free it with valkyrie_error_free. Output arguments are untouched on failure.
 * A NULL that is not allowed gives VALKYRIE_CODE_INVALID_ARGUMENT, never a crash.
 *
 * Ownership. A pointer handed out through an output argument belongs to the caller, who frees it with the _free
 * function of its type; every _free takes NULL. valkyrie_bytes borrow: those handed in are copied before the
 * function returns, those handed out live as long as the object they came from.
 *
 * Threads. Every function may be called from any thread. A valkyrie_client may be used by many threads at once. A
 * valkyrie_call takes one sender and one receiver at a time. A queue is dispatched by one thread at a time. An object
 * must not be freed while another thread uses it.
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
#define VALKYRIE_CLIENT_OPTIONS_INIT { sizeof(valkyrie_client_options), 0, 0, 0, NULL }
#define VALKYRIE_CALL_OPTIONS_INIT { sizeof(valkyrie_call_options), 0, 0, NULL, 0 }

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
 A message that was received. Immutable.
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
 The answer of a unary call. Immutable.
 */
typedef struct valkyrie_response valkyrie_response;

/*
 A status code: gRPC's numbers, VALKYRIE_CODE_…. A number without a name here is passed on as it came.
 */
typedef uint32_t valkyrie_code;

/*
 Options of a client: begin with VALKYRIE_CLIENT_OPTIONS_INIT. NULL instead of them means every default.
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
   PEM text, ended by NUL: a server's certificates must lead to one of these. Needed for quic://; NULL means none.
   */
  const char *trusted_certificates;
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
   How many entries.
   */
  uintptr_t metadata_len;
} valkyrie_call_options;

/*
 Called from valkyrie_queue_dispatch, exactly once per accepted call: code 0 with the response, or another code with
 the error. Whichever it is belongs to the callback, which frees it.
 */
typedef void (*valkyrie_callback)(valkyrie_code code,
                                  valkyrie_response *response,
                                  valkyrie_error *error,
                                  void *user_data);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version and a hash of the core, which is the same in every language. Lives for ever.
 */
const char *valkyrie_version(void);

/*
 The version of the interface that the library has; equal to VALKYRIE_ABI_VERSION or the header does not fit.
 */
uint32_t valkyrie_abi_version(void);

/*
 The name of a code, such as "DEADLINE_EXCEEDED"; "UNKNOWN" for a number without one. Lives for ever.
 */
const char *valkyrie_code_name(valkyrie_code code);

/*
 Makes a client and its first connection. Blocks. endpoint: "tcp://host:port", "unix:///path", "ws://host:port".
 */
valkyrie_code valkyrie_client_connect(const char *endpoint,
                                      const valkyrie_client_options *options,
                                      valkyrie_client **out,
                                      valkyrie_error **error);

/*
 Closes gracefully: calls in flight may finish within 5 s. Blocks. Idempotent. Later calls fail with CANCELLED.
 */
valkyrie_code valkyrie_client_close(const valkyrie_client *client,
                                    valkyrie_error **error);

/*
 Frees a client; calls in flight end with CANCELLED. Takes NULL.
 */
void valkyrie_client_free(valkyrie_client *client);

/*
 One message out, one message back. Blocks. options may be NULL.
 */
valkyrie_code valkyrie_client_call(const valkyrie_client *client,
                                   const char *method,
                                   valkyrie_bytes message,
                                   const valkyrie_call_options *options,
                                   valkyrie_response **out,
                                   valkyrie_error **error);

/*
 valkyrie_client_call of the default method, "/echo", with every default. Blocks.
 */
valkyrie_code valkyrie_client_request(const valkyrie_client *client,
                                      valkyrie_bytes message,
                                      valkyrie_response **out,
                                      valkyrie_error **error);

/*
 Begins a call and returns at once. callback runs in valkyrie_queue_dispatch of that queue, exactly once; not at all
 when this function fails. operation may be NULL; else it gets the number for valkyrie_operation_cancel.
 */
valkyrie_code valkyrie_client_call_start(const valkyrie_client *client,
                                         const valkyrie_queue *queue,
                                         const char *method,
                                         valkyrie_bytes message,
                                         const valkyrie_call_options *options,
                                         uint64_t *operation,
                                         valkyrie_error **error,
                                         valkyrie_callback callback,
                                         void *user_data);

/*
 Gives a call up: its callback gets CANCELLED unless it is complete. Idempotent; unknown numbers are ignored.
 */
void valkyrie_operation_cancel(uint64_t operation);

/*
 Makes a completion queue.
 */
valkyrie_code valkyrie_queue_new(valkyrie_queue **out, valkyrie_error **error);

/*
 A descriptor that is readable while a callback waits, for poll, epoll or select; -1 for NULL. Belongs to the queue:
 never read or close it.
 */
int32_t valkyrie_queue_fd(const valkyrie_queue *queue);

/*
 Runs the callbacks that wait, on this thread, and gives how many; waits for the first one at most timeout_ms
 (0: not at all; VALKYRIE_NO_TIMEOUT: for ever). A callback may begin calls, not free the queue.
 */
uintptr_t valkyrie_queue_dispatch(const valkyrie_queue *queue, uint64_t timeout_ms);

/*
 Frees a queue. Calls that wait on it are cancelled, and their callbacks run here with CANCELLED. Takes NULL.
 */
void valkyrie_queue_free(valkyrie_queue *queue);

/*
 Opens a stream of any shape. Does not block: what the server says comes with send and recv.
 */
valkyrie_code valkyrie_client_open(const valkyrie_client *client,
                                   const char *method,
                                   const valkyrie_call_options *options,
                                   valkyrie_call **out,
                                   valkyrie_error **error);

/*
 Sends a message. Blocks while the peer's credit is used up.
 */
valkyrie_code valkyrie_call_send(const valkyrie_call *call, valkyrie_bytes message, valkyrie_error **error);

/*
 No more messages from this side.
 */
valkyrie_code valkyrie_call_half_close(const valkyrie_call *call, valkyrie_error **error);

/*
 The next message; *out is NULL with code 0 once the call has ended well. Blocks.
 */
valkyrie_code valkyrie_call_recv(const valkyrie_call *call, valkyrie_message **out, valkyrie_error **error);

/*
 Initial metadata once the call has ended well; NULL before.
 */
const valkyrie_metadata *valkyrie_call_metadata(const valkyrie_call *call);

/*
 Trailers once the call has ended well; NULL before.
 */
const valkyrie_metadata *valkyrie_call_trailers(const valkyrie_call *call);

/*
 Cancels a call in both directions; what blocks on it ends with CANCELLED. Idempotent. Takes NULL.
 */
void valkyrie_call_cancel(const valkyrie_call *call);

/*
 Frees a call; one that has not ended is cancelled. Takes NULL.
 */
void valkyrie_call_free(valkyrie_call *call);

/*
 The bytes of a message; live until it is freed. Empty for NULL.
 */
valkyrie_bytes valkyrie_message_bytes(const valkyrie_message *message);

/*
 Frees a message. Takes NULL.
 */
void valkyrie_message_free(valkyrie_message *message);

/*
 The message of a response; lives until the response is freed. Empty for NULL.
 */
valkyrie_bytes valkyrie_response_message(const valkyrie_response *response);

/*
 Initial metadata of a response; NULL for NULL.
 */
const valkyrie_metadata *valkyrie_response_metadata(const valkyrie_response *response);

/*
 Trailers of a response; NULL for NULL.
 */
const valkyrie_metadata *valkyrie_response_trailers(const valkyrie_response *response);

/*
 Frees a response. Takes NULL.
 */
void valkyrie_response_free(valkyrie_response *response);

/*
 How many entries there are; 0 for NULL.
 */
uintptr_t valkyrie_metadata_len(const valkyrie_metadata *metadata);

/*
 The entry at index, in the order it was sent: whether there is one. key (not ended by NUL) and value may be NULL.
 */
bool valkyrie_metadata_at(const valkyrie_metadata *metadata,
                          uintptr_t index,
                          valkyrie_bytes *key,
                          valkyrie_bytes *value);

/*
 The status code; OK for NULL.
 */
valkyrie_code valkyrie_error_code(const valkyrie_error *error);

/*
 A sentence for people, ended by NUL; lives until the error is freed. "" for NULL.
 */
const char *valkyrie_error_message(const valkyrie_error *error);

/*
 The stable reason, such as "CONNECTION_LOST"; "NONE" when the server's application made the status. Not ended by
 NUL; lives for ever.
 */
valkyrie_bytes valkyrie_error_reason(const valkyrie_error *error);

/*
 Whose fault it is: "application", "caller", "auth", "transient", "server" or "protocol". Not ended by NUL; lives for
 ever.
 */
valkyrie_bytes valkyrie_error_class(const valkyrie_error *error);

/*
 Milliseconds that the server asks to wait before another attempt: whether it does. UINT64_MAX means never.
 */
bool valkyrie_error_pushback_ms(const valkyrie_error *error, uint64_t *out);

/*
 The detail at index: whether there is one. type_name (not ended by NUL) and value may be NULL.
 */
bool valkyrie_error_detail(const valkyrie_error *error,
                           uintptr_t index,
                           valkyrie_bytes *type_name,
                           valkyrie_bytes *value);

/*
 Initial metadata that came with the error; NULL for NULL.
 */
const valkyrie_metadata *valkyrie_error_metadata(const valkyrie_error *error);

/*
 Trailers that came with the error; NULL for NULL.
 */
const valkyrie_metadata *valkyrie_error_trailers(const valkyrie_error *error);

/*
 Frees an error. Takes NULL.
 */
void valkyrie_error_free(valkyrie_error *error);

/*
 Operations that were accepted and are not complete, in the whole process.
 */
uintptr_t valkyrie_in_flight(void);

/*
 Ends everything in the process: clients close at once, operations complete with CANCELLED, threads stop. Optional
 before exit; what is still held may only be freed afterwards.
 */
void valkyrie_shutdown(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VALKYRIE_H */
