// A client of one endpoint.
import CValkyrie

/// Version of the package and a hash of the core it is built from: `0.1.0 (core 1a2b3c4d)`.
public let version = String(cString: valkyrie_version())

/// Calls methods of one endpoint. It connects again by itself, and any number of tasks may use it at once. It lives as long as
/// something refers to it, a stream of its too; what is in flight when it goes ends with code `.cancelled`.
public final class Client: Sendable {
    /// The endpoint given to `connect`.
    public let endpoint: String

    // A number of the library's, no address: every use checks it.
    private let handle: ClientHandle
    private let source: TokenSources.Number?

    /// Connects to an endpoint: `tcp://host:port`, `unix:///path`, `ws://host:port`, or encrypted `tls://host:port`,
    /// `wss://host:port`, `quic://host:port`. `echo://core` is a server inside the library, for a first try and for tests: it opens
    /// no socket.
    ///
    /// Throws `StatusError`: `.unavailable` when nothing answers within `ConnectOptions.connectTimeout`, `.invalidArgument` when
    /// the endpoint cannot be parsed or its scheme is not supported, `.unauthenticated` when a certificate is refused. Cancelling
    /// the task gives up.
    public static func connect(_ endpoint: String, options: ConnectOptions = ConnectOptions()) async throws -> Client {
        var source: TokenSources.Number?
        if case .source(let function) = options.token {
            source = TokenSources.add(function)
        }
        do {
            let number = source
            let done = try await Operation.run { operation in
                try withText(endpoint, "endpoint") { target in
                    try options.withOptions(number) { options in
                        try operation.begin(VALKYRIE_OPERATION_CONNECT) {
                            $0.target = target
                            $0.client_options = options
                        }
                    }
                }
            }
            guard let client = done.client else { throw StatusError(.internal, "INTERNAL", "no client") }
            return Client(ClientHandle(client), endpoint, source)
        } catch {
            source.map(TokenSources.remove)
            throw error
        }
    }

    private init(_ handle: ClientHandle, _ endpoint: String, _ source: TokenSources.Number?) {
        self.handle = handle
        self.endpoint = endpoint
        self.source = source
    }

    deinit {
        valkyrie_client_free(handle.pointer)
        source.map(TokenSources.remove)
    }

    /// Where the client stands with its servers now. It waits for nothing and makes no connection.
    public var connectivity: Connectivity { handle.connectivity }

    /// Where the client stands now, and then each change, until it is `.shutdown`. Steps that followed each other at once may be
    /// passed over. A task that is cancelled leaves the loop, which loses nothing. Waiting does not keep the client.
    public var connectivityChanges: ConnectivityChanges { ConnectivityChanges(client: handle) }

    /// Puts another service config in the place of the client's, without a lost call. Calls that began keep their time limit and
    /// how they are tried again; all the rest heeds the new one. What is known of the servers stays, such as an open breaker. One
    /// that is wrong throws with reason `INVALID_CONFIGURATION`, says line, key and what to write instead, and changes nothing.
    public func setServiceConfig(_ serviceConfig: String) throws {
        try withText(serviceConfig, "serviceConfig") { config in
            try checked { valkyrie_client_set_service_config(handle.pointer, config, $0) }
        }
    }

    /// The circuit breakers: one for each server and method that was called or isolated, and one for each server that is isolated
    /// as a whole.
    public func breakers() throws -> [Breaker] {
        try message { valkyrie_client_breakers(handle.pointer, $0, $1) }.withBytes(Breaker.list)
    }

    /// The circuit breakers now, and then all of them whenever one has changed its state, until the client is closed. Steps that
    /// followed each other at once may be passed over. A task that is cancelled leaves the loop, which loses nothing. Waiting does not
    /// keep the client.
    public var breakerChanges: BreakerChanges { BreakerChanges(client: handle) }

    /// What became of the client's calls since it was made, in Prometheus' text format. Names begin with `valkyrie_client_`; times
    /// are in seconds.
    public func metrics() throws -> String {
        try message { valkyrie_client_metrics(handle.pointer, $0, $1) }.text
    }

    /// Holds the calls of a method, or all calls, back from a server until `restore`. Those that go on end; further ones go to the
    /// other servers, and throw with reason `BREAKER_OPEN` where there is none. `.invalidArgument` for what is none of the client's
    /// servers. The same again is nothing.
    public func isolate(_ server: String, method: String? = nil) throws {
        try setIsolated(server, method, true)
    }

    /// Ends `isolate`; without a method for the server and each of its methods. The same again is nothing.
    public func restore(_ server: String, method: String? = nil) throws {
        try setIsolated(server, method, false)
    }

    private func setIsolated(_ server: String, _ method: String?, _ isolated: Bool) throws {
        try withText(server, "server") { server in
            guard let method else {
                return try checked { valkyrie_client_isolate(handle.pointer, server, nil, isolated, $0) }
            }
            try withMethod(method) { method in
                try checked { valkyrie_client_isolate(handle.pointer, server, method, isolated, $0) }
            }
        }
    }

    /// Calls `/echo`.
    public func request(_ message: some Message, options: CallOptions? = nil) async throws -> [UInt8] {
        try await call("/echo", message, options: options)
    }

    /// A unary call: one message each way. Throws `StatusError`; cancelling the task cancels the call, at the server too, and
    /// throws `CancellationError` unless the answer is here.
    public func call(_ method: String, _ message: some Message, options: CallOptions? = nil) async throws -> [UInt8] {
        try await unary(method, message, options).array
    }

    /// `call` with the server's metadata and trailers.
    public func callWithResponse(
        _ method: String, _ message: some Message, options: CallOptions? = nil
    ) async throws -> Response {
        Response(try await unary(method, message, options))
    }

    private func unary(_ method: String, _ message: some Message, _ options: CallOptions?) async throws -> Received {
        let done = try await Operation.run { operation in
            try withMethod(method) { target in
                try message.withBytes { bytes in
                    try withOptions(options) { options in
                        try operation.begin(VALKYRIE_OPERATION_CALL) {
                            $0.client = handle.pointer
                            $0.target = target
                            $0.message = valkyrie_bytes(bytes)
                            $0.call_options = options
                        }
                    }
                }
            }
        }
        guard let message = done.message else { throw StatusError(.internal, "INTERNAL", "no answer") }
        return Received(message)
    }

    /// Server streaming: sends one message, half-closes, and receives any number. Errors of the call come out of receiving.
    public func stream(_ method: String, _ message: some Message, options: CallOptions? = nil) throws -> MessageStream {
        let stream = try open(method, options: options)
        stream.sendAlone(message.withBytes { Array($0) })
        return stream
    }

    /// Opens a stream with any number of messages each way. It does not wait: errors of the call come out of sending and
    /// receiving, and this throws options that cannot be.
    public func open(_ method: String, options: CallOptions? = nil) throws -> MessageStream {
        var call: OpaquePointer?
        try withMethod(method) { method in
            try withOptions(options) { options in
                try checked { valkyrie_client_open(handle.pointer, method, options, &call, $0) }
            }
        }
        guard let call else { throw StatusError(.internal, "INTERNAL", "no stream") }
        return MessageStream(call, of: self)
    }

    /// Closes gracefully: calls in flight finish, for 5 seconds at most, also when the task is cancelled meanwhile. The same again
    /// is nothing. Later calls throw with code `.cancelled` and reason `CLIENT_CLOSED`.
    public func close() async throws {
        _ = try await Operation.runToTheEnd { operation in
            try operation.begin(VALKYRIE_OPERATION_CLOSE) { $0.client = handle.pointer }
        }
    }

    private func message(
        _ read: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> valkyrie_code
    ) throws -> Received {
        var message: OpaquePointer?
        try checked { read(&message, $0) }
        guard let message else { throw StatusError(.internal, "INTERNAL", "no message") }
        return Received(message)
    }
}

/// The number of a client: one that is gone is an error, never a crash.
struct ClientHandle: @unchecked Sendable {
    let pointer: OpaquePointer

    init(_ pointer: OpaquePointer) {
        self.pointer = pointer
    }

    var connectivity: Connectivity { Connectivity(number: valkyrie_client_connectivity(pointer)) }
}

/// The answer of a unary call.
public struct Response: Sendable {
    package let received: Received
    public let metadata: Metadata
    public let trailers: Metadata

    init(_ received: Received) {
        self.received = received
        // What is read belongs to the message, which is kept.
        metadata = Metadata(reading: valkyrie_message_metadata(received.handle))
        trailers = Metadata(reading: valkyrie_message_trailers(received.handle))
    }

    /// A copy of the message. `withUnsafeBytes` reads it where it is.
    public var message: [UInt8] { received.array }

    /// The message where it is, until `body` returns.
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try received.withBytes(body)
    }
}

/// Runs a function of the library's that does not block, and throws its error.
func checked(_ run: (UnsafeMutablePointer<OpaquePointer?>) -> valkyrie_code) throws {
    var error: OpaquePointer?
    guard run(&error) == 0 else { throw StatusError(taking: error) }
}

private func withOptions<R>(_ options: CallOptions?, _ body: (UnsafePointer<valkyrie_call_options>?) throws -> R) throws -> R {
    guard let options else { return try body(nil) }
    return try options.withOptions { try body($0) }
}
