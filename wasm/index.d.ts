/// <reference lib="esnext.disposable" />

// The face of Valkyrie in JavaScript. `valkyrie-sdk` (Node) and `valkyrie-sdk-web` (browsers) have the same one.

/** Version of the package and a hash of the core it is built from: `0.1.0 (core 1a2b3c4d)`. Empty until the module is
 * loaded, by the first {@link connect} or by {@link load}. */
export const version: string;

/** Connects to an endpoint: `tcp://host:port`, `unix:///path`, `ws://host:port`, or encrypted `tls://host:port`,
 * `wss://host:port`, `quic://host:port` (in a browser `ws://` and `wss://`).
 *
 * Rejects with {@link StatusError}: `UNAVAILABLE` when nothing answers within `connectTimeoutMs`, `INVALID_ARGUMENT`
 * when the endpoint cannot be parsed or its scheme is not supported, `UNAUTHENTICATED` when a certificate is refused. */
export function connect(endpoint: string, options?: ConnectOptions): Promise<Client>;

/** Gives what happens to connections to `logger`: those that cannot be made or are lost (`warn`), those that are made and
 * those whose server goes away (`info`), and those that end here (`debug`). `null`, as at first, is nobody: an error
 * reaches whoever awaits the call, and a library that prints unasked is in the way; `console.warn` is a logger. What is
 * logged before a listener is there is lost. */
export function setLogger(logger: ((record: LogRecord) => void) | null, level?: LogLevel): void;

/** The least grave level that is wanted, `warn` when none is given. */
export type LogLevel = 'error' | 'warn' | 'info' | 'debug';

/** What happened. */
export interface LogRecord {
  readonly level: LogLevel;
  /** What it is about: `valkyrie.connection`. */
  readonly target: string;
  readonly message: string;
  /** Particulars: `endpoint`, `reason`. */
  readonly fields: { readonly [key: string]: string };
}

export interface ConnectOptions {
  /** Time limit of unary calls that give none, in milliseconds. Default 5000; `Infinity`: none. */
  timeoutMs?: number | undefined;
  /** Time limit of making a connection, in milliseconds. Default 5000. */
  connectTimeoutMs?: number | undefined;
  /** Whom to trust: the server's certificates must lead to one of these. `tls://`, `wss://` and `quic://` need it, or
   * {@link systemRoots}. In a browser, which decides by itself whom it trusts, it is for {@link sealed} sessions, and text. */
  trustedCertificates?: Pem | undefined;
  /** Whether to trust those that the system trusts, beside {@link trustedCertificates}. Default `false`. Not in a browser. */
  systemRoots?: boolean | undefined;
  /** The authorities' revocation lists (CRL): a certificate that one of them names is refused. Not in a
   * browser. */
  revocationLists?: Pem | undefined;
  /** The certificate chain that is shown to a server which asks, the client's own first, and its private key. In
   * a browser for {@link sealed} sessions, and text. */
  identity?: { certificates: Pem; key: Pem } | undefined;
  /** The name that the server's certificate must be for. Default: the endpoint's host. In a browser for {@link sealed}
   * sessions. */
  serverName?: string | undefined;
  /** Whether to speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read
   * or change them. Default `false`. In a browser the module `valkyrie-sdk-web/sealed` has it. */
  sealed?: boolean | undefined;
  /** The least protection of connections. Default: `mtls` with an identity, `tls` with certificates to trust, else
   * `insecure`. Not in a browser. */
  minSecurity?: 'insecure' | 'tls' | 'mtls' | undefined;
  /** Whom the client calls for: a JWT for one, or a function that gives it, called for each new connection, and for a newer
   * token before the last one ends, while streams go on; never twice at once. What it throws ends the calls that wait with
   * reason `CREDENTIALS_UNAVAILABLE` and its message, which must hold no secret; so does silence for
   * {@link connectTimeoutMs}. A token travels encrypted or within the machine only. */
  token?: string | (() => string | Promise<string>) | undefined;
  /** What the client does about failures: retries and their budget, circuit breakers, throttling, balancing, and which
   * methods are idempotent. JSON with the keys of docs/policies.md, or an object with them, such as
   * `{ methods: [{ names: ['/store.Items/*'], idempotent: true }] }`. Without one, or a key of it, the defaults there hold.
   * One that is wrong rejects with reason `INVALID_CONFIGURATION`, and says line, key and what to write instead. */
  serviceConfig?: string | object | undefined;
  /** How long the server may be silent while calls are open until it is asked whether it is there, in milliseconds. Default
   * 30000, at least 10000; 0 or `Infinity`: never. One that says nothing within {@link keepaliveTimeoutMs} is gone: the connection
   * ends with `CONNECTION_LOST`, and its calls are retried by their policy (gRFC A8). Other times reject with reason
   * `INVALID_CONFIGURATION`. */
  keepaliveMs?: number | undefined;
  /** How long its answer may take, in milliseconds. Default 10000, at least 1000. */
  keepaliveTimeoutMs?: number | undefined;
  /** {@link keepaliveMs} while no call is open, for networks that forget who is idle. Default 0, never; at least 300000. */
  keepaliveIdleMs?: number | undefined;
  /** Gives up connecting; the promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** Certificates, revocation lists or a private key in PEM: the text itself, or a file, which is looked at again for each
 * connection, once a second at most, so that it may be replaced. */
export type Pem = string | { file: string | URL };

export interface CallOptions {
  /** Time limit in milliseconds. Default: the client's for unary calls, none for streams; `Infinity`: none. */
  timeoutMs?: number | undefined;
  /** Metadata sent with the call. Keys are lower-case ASCII; only values of keys that end in `-bin` may be bytes. */
  metadata?: MetadataInit | undefined;
  /** Priority class. Default `normal`. */
  priority?: Priority | undefined;
  /** Whether a unary call may be executed twice, so that it is tried again though a server may have seen it (gRFC A6).
   * Default `false`, or what {@link ConnectOptions.serviceConfig} says of the method. Streams are not tried again. */
  idempotent?: boolean | undefined;
  /** 1 to 64 bytes, text as UTF-8, that tell a unary call from every other of its caller's and its method's, as an order's
   * number does; `true` draws 128 random bits. It may be tried again then like an {@link idempotent} one: a server that keeps
   * keys runs it once and answers each time, with `valkyrie-replayed` in the metadata of an answer that is not the first
   * (PROTOCOL.md, W5-12). A key of another length, one that was used for another message and one for a stream reject with
   * `INVALID_ARGUMENT`. Default: none. */
  idempotencyKey?: string | Uint8Array | true | undefined;
  /** Cancels the call, at the server too; what is pending rejects with the signal's reason, an `AbortError` unless
   * another was given. */
  signal?: AbortSignal | undefined;
}

/** As gRPC names it. `idle`: no connection, and none is being made, but by the next call; `transient_failure`: the last try
 * failed, and the next one waits; `shutdown`: the client is closed. */
export type Connectivity = 'idle' | 'connecting' | 'ready' | 'transient_failure' | 'shutdown';

export type Priority = 'critical' | 'normal' | 'bulk';

/** Text is sent as UTF-8. Bytes are copied before the call returns, so that they may be changed at once. */
export type Message = string | Uint8Array;

export type MetadataInit =
  Iterable<readonly [key: string, value: string | Uint8Array]> | { readonly [key: string]: string | Uint8Array };

/** Calls methods of one endpoint. It connects again by itself, may be used by any number of callers at once, until it is
 * closed or collected. */
export class Client {
  private constructor();

  /** The endpoint given to {@link connect}. */
  readonly endpoint: string;

  /** Where the client stands with its servers now. It waits for nothing and makes no connection. */
  readonly connectivity: Connectivity;

  /** Where the client stands now, and then each change, until it is `shutdown`. Steps that followed each other at once may be
   * passed over. Leaving a `for await` early loses nothing. */
  connectivityChanges(): AsyncIterableIterator<Connectivity>;

  /** Puts another service config in the place of the client's, without a lost call. Calls that began keep their time limit and how
   * they are tried again; all the rest heeds the new one. What is known of the servers stays, such as an open breaker. One that is
   * wrong rejects with reason `INVALID_CONFIGURATION`, says line, key and what to write instead, and changes nothing. */
  setServiceConfig(serviceConfig: string | object): Promise<void>;

  /** The circuit breakers: one for each server and method that was called or isolated, and one for each server that is isolated as
   * a whole. */
  breakers(): Promise<Breaker[]>;

  /** The circuit breakers now, and then whenever one has changed its state, until the client is closed. Steps that followed each
   * other at once may be passed over. Leaving a `for await` early loses nothing. */
  breakerChanges(): AsyncIterableIterator<Breaker[]>;

  /** What became of the client's calls since it was made, in Prometheus' text format. Names begin with `valkyrie_client_`; times are
   * in seconds. In a browser it rejects with a
   * `TypeError`. */
  metrics(): Promise<string>;

  /** Holds the calls of a method, or all calls, back from a server until {@link Client.restore}. Those that go on end; further ones
   * go to the other servers, and reject with reason `BREAKER_OPEN` where there is none. `INVALID_ARGUMENT` for what is none of
   * the client's servers. Idempotent. */
  isolate(server: string, method?: string): Promise<void>;

  /** Ends {@link Client.isolate}; without a method for the server and each of its methods. Idempotent. */
  restore(server: string, method?: string): Promise<void>;

  /** Calls `/echo`. */
  request(message: Message, options?: CallOptions): Promise<Uint8Array>;

  /** A unary call: one message each way. Rejects with {@link StatusError}, with the signal's reason on abort, and with
   * `TypeError` or `RangeError` when an argument is not what it must be. */
  call(method: string, message: Message, options?: CallOptions): Promise<Uint8Array>;

  /** {@link Client.call} with the server's metadata and trailers. */
  callWithResponse(method: string, message: Message, options?: CallOptions): Promise<Response>;

  /** Server streaming: sends one message, half-closes, and receives any number. Errors come out of the iteration. */
  stream(method: string, message: Message, options?: CallOptions): Stream;

  /** Opens a stream with any number of messages each way. Errors come out of `send` and `recv`. */
  open(method: string, options?: CallOptions): Stream;

  /** Closes gracefully: calls in flight finish, for 5 seconds at most. Idempotent. Later calls reject with code
   * `CANCELLED` and reason `CLIENT_CLOSED`. */
  close(): Promise<void>;

  /** {@link Client.close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** What a client's circuit breaker of one server and one method does. */
export interface Breaker {
  /** The server's endpoint. */
  readonly server: string;
  /** Calls of which method; `undefined` for all, while the whole server is isolated. */
  readonly method: string | undefined;
  readonly state: 'closed' | 'open' | 'half_open' | 'isolated';
  /** How long it has done so, in milliseconds; `undefined` while it has never done anything else. */
  readonly ageMs: number | undefined;
  /** An open one's: after how long it lets trial calls pass. */
  readonly opensForMs: number | undefined;
  /** Calls that it remembers, 10 s of them unless the service config says otherwise. */
  readonly calls: number;
  /** Those of them that failed. */
  readonly failures: number;
  /** How often its state has changed. */
  readonly changes: number;
}

/** The answer of a unary call. */
export interface Response {
  readonly message: Uint8Array;
  readonly metadata: Metadata;
  readonly trailers: Metadata;
}

/** A call with any number of messages each way. Messages are taken from the network only as fast as they are received
 * here. Leaving a `for await` early cancels the call. */
export class Stream implements AsyncIterable<Uint8Array> {
  private constructor();

  /** Metadata from the server; empty until the stream has ended. */
  readonly metadata: Metadata;

  /** Trailers from the server; empty until the stream has ended. */
  readonly trailers: Metadata;

  /** Sends a message; resolves when flow control has taken it. Await it to be held to the server's pace. */
  send(message: Message): Promise<void>;

  /** Says that no more messages come from here. */
  halfClose(): Promise<void>;

  /** The next message, `null` when the stream has ended with OK. */
  recv(): Promise<Uint8Array | null>;

  /** Cancels the call. Idempotent; does nothing when the call is over. */
  cancel(): void;

  /** Receives until the stream ends with OK. Throws what {@link Stream.recv} rejects with. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Uint8Array>;

  /** {@link Stream.cancel}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Key and value pairs in the order the peer gave them. Values of keys that end in `-bin` are bytes, all others text. */
export class Metadata extends Array<[key: string, value: string | Uint8Array]> {
  /** The first value of that key. */
  get(key: string): string | Uint8Array | undefined;

  /** Every value of that key. */
  getAll(key: string): Array<string | Uint8Array>;
}

/** A call's status when it is not OK. */
export class StatusError extends Error {
  readonly name: 'StatusError';
  /** Name of the status code; `UNKNOWN` for a number without a name. */
  readonly code: CodeName;
  /** Number of the status code. */
  readonly number: number;
  /** Stable reason, finer than the code: `CONNECTION_LOST`. `NONE` when the application made the status. */
  readonly reason: string;
  /** Whose fault it is. */
  readonly class: ErrorClass;
  /** Typed details from the server. */
  readonly details: ReadonlyArray<{ readonly type: string; readonly value: Uint8Array }>;
  /** How long the server asks to wait before another attempt; `Infinity`: never. */
  readonly pushbackMs: number | undefined;
  /** What became of the call's attempts, a line for each; empty when none was made. */
  readonly timeline: string;
  /** Metadata that came before the status. */
  readonly metadata: Metadata;
  /** Trailers that came with the status. */
  readonly trailers: Metadata;
  /** Whether another attempt may help. */
  readonly retryable: boolean;
}

export type ErrorClass = 'application' | 'caller' | 'auth' | 'transient' | 'server' | 'protocol';

export type CodeName =
  | 'OK'
  | 'CANCELLED'
  | 'UNKNOWN'
  | 'INVALID_ARGUMENT'
  | 'DEADLINE_EXCEEDED'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'PERMISSION_DENIED'
  | 'RESOURCE_EXHAUSTED'
  | 'FAILED_PRECONDITION'
  | 'ABORTED'
  | 'OUT_OF_RANGE'
  | 'UNIMPLEMENTED'
  | 'INTERNAL'
  | 'UNAVAILABLE'
  | 'DATA_LOSS'
  | 'UNAUTHENTICATED';

/** Loads the WebAssembly module, which {@link connect} does by itself when it has not been done. For a bundler or a
 * server that keeps the module elsewhere: `module` says where, or is the module. The first call counts; one that failed
 * may be repeated. */
export function load(module?: string | URL | BufferSource | WebAssembly.Module): Promise<void>;
