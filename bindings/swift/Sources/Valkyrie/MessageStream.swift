// Calls with any number of messages each way.
import CValkyrie

/// A call with any number of messages each way. Messages are taken from the network only as fast as they are received here.
///
/// As a sequence it gives the messages until the call has ended with OK, and throws what `receive` throws. Leaving the loop early,
/// also because the task was cancelled, cancels the call, at the server too; so does the end of the last reference.
public final class MessageStream: AsyncSequence, @unchecked Sendable {
    public typealias Element = [UInt8]

    private struct State {
        /// Messages that are here: so many receives do not block.
        var ready: UInt32 = 0
        var receiving = false
        var outcome: Outcome?
    }

    private enum Outcome {
        case ended(metadata: Metadata, trailers: Metadata)
        case failed(StatusError)
    }

    private let call: OpaquePointer
    private let client: Client
    private let state = Locked(State())

    init(_ call: OpaquePointer, of client: Client) {
        self.call = call
        self.client = client
    }

    deinit {
        valkyrie_call_free(call)
    }

    /// Metadata from the server; empty until the stream has ended.
    public var metadata: Metadata {
        switch state.with({ $0.outcome }) {
        case .ended(let metadata, _): metadata
        case .failed(let error): error.metadata
        case nil: Metadata()
        }
    }

    /// Trailers from the server; empty until the stream has ended.
    public var trailers: Metadata {
        switch state.with({ $0.outcome }) {
        case .ended(_, let trailers): trailers
        case .failed(let error): error.trailers
        case nil: Metadata()
        }
    }

    /// Sends a message; returns when flow control has taken it, so that awaiting it holds the sender to the server's pace. Send
    /// one at a time for an order. Cancelling the task gives up: whether the message is sent is not known then.
    public func send(_ message: some Message) async throws {
        _ = try await Operation.run { operation in
            try message.withBytes { bytes in
                try operation.begin(VALKYRIE_OPERATION_SEND) {
                    $0.call = call
                    $0.message = valkyrie_bytes(bytes)
                }
            }
        }
    }

    /// Says that no more messages come from here, after the last `send`.
    public func halfClose() async throws {
        _ = try await Operation.run { operation in
            try operation.begin(VALKYRIE_OPERATION_HALF_CLOSE) { $0.call = call }
        }
    }

    /// The next message, `nil` when the stream has ended with OK. Throws `StatusError` when it has not, and every time from then
    /// on; reason `STREAM_MISUSE` while another task receives. Cancelling the task loses no message: the next `receive` has it.
    public func receive() async throws -> [UInt8]? {
        try Task.checkCancellation()
        // The library is called with the lock held where that does not block.
        let here: [UInt8]?? = try state.with { state in
            guard !state.receiving else {
                throw StatusError(.failedPrecondition, "STREAM_MISUSE", "another task receives: one at a time")
            }
            switch state.outcome {
            case .ended: return .some(nil)
            case .failed(let error): throw error
            case nil: break
            }
            if state.ready > 0 {
                state.ready -= 1
                var message: OpaquePointer?
                if valkyrie_call_recv(call, &message, nil) == 0, let message {
                    return Received(message).array
                }
                state.ready = 0
            }
            state.receiving = true
            return nil
        }
        if let here { return here }
        do {
            let done = try await Operation.run { operation in
                try operation.begin(VALKYRIE_OPERATION_RECV) { $0.call = call }
            }
            let message = done.message.map { Received($0).array }
            state.with { state in
                state.receiving = false
                state.ready = done.ready
                if message == nil {
                    state.outcome = .ended(
                        metadata: Metadata(reading: valkyrie_call_metadata(call)),
                        trailers: Metadata(reading: valkyrie_call_trailers(call)))
                }
            }
            return message
        } catch {
            state.with { state in
                state.receiving = false
                if let error = error as? StatusError { state.outcome = .failed(error) }
            }
            throw error
        }
    }

    /// Cancels the call in both directions, at the server too. Nothing when it is over.
    public func cancel() {
        valkyrie_call_cancel(call)
    }

    public func makeAsyncIterator() -> Iterator {
        Iterator(leave: Leave(self))
    }

    public struct Iterator: AsyncIteratorProtocol {
        fileprivate let leave: Leave

        public func next() async throws -> [UInt8]? {
            try await leave.stream.receive()
        }
    }

    /// Goes with the loop, and the call with it.
    fileprivate final class Leave: Sendable {
        let stream: MessageStream

        init(_ stream: MessageStream) {
            self.stream = stream
        }

        deinit {
            stream.cancel()
        }
    }

    /// Sends the only message and half-closes; how that ends is how the call does.
    func sendAlone(_ message: [UInt8]) {
        let call = CallHandle(pointer: call)
        // It keeps no more than the number: a stream that nobody has any more ends here too.
        Task {
            do {
                _ = try await Operation.run { operation in
                    try message.withBytes { bytes in
                        try operation.begin(VALKYRIE_OPERATION_SEND) {
                            $0.call = call.pointer
                            $0.message = valkyrie_bytes(bytes)
                        }
                    }
                }
                _ = try await Operation.run { operation in
                    try operation.begin(VALKYRIE_OPERATION_HALF_CLOSE) { $0.call = call.pointer }
                }
            } catch {}
        }
    }
}

private struct CallHandle: @unchecked Sendable {
    let pointer: OpaquePointer
}
