// How a client stands with its servers.
import CValkyrie

/// As gRPC names it.
public enum Connectivity: String, Sendable {
    /// No connection, and none is being made, but by the next call.
    case idle
    case connecting
    case ready
    /// The last try failed, and the next one waits.
    case transientFailure = "transient_failure"
    /// The client is closed.
    case shutdown

    init(number: UInt32) {
        self =
            switch Int32(number) {
            case VALKYRIE_CONNECTIVITY_IDLE: .idle
            case VALKYRIE_CONNECTIVITY_CONNECTING: .connecting
            case VALKYRIE_CONNECTIVITY_READY: .ready
            case VALKYRIE_CONNECTIVITY_TRANSIENT_FAILURE: .transientFailure
            default: .shutdown
            }
    }

    var number: UInt32 {
        switch self {
        case .idle: UInt32(VALKYRIE_CONNECTIVITY_IDLE)
        case .connecting: UInt32(VALKYRIE_CONNECTIVITY_CONNECTING)
        case .ready: UInt32(VALKYRIE_CONNECTIVITY_READY)
        case .transientFailure: UInt32(VALKYRIE_CONNECTIVITY_TRANSIENT_FAILURE)
        case .shutdown: UInt32(VALKYRIE_CONNECTIVITY_SHUTDOWN)
        }
    }
}

/// Where a client stands, and then each change: `Client.connectivityChanges`.
public struct ConnectivityChanges: AsyncSequence, Sendable {
    public typealias Element = Connectivity

    let client: ClientHandle

    public func makeAsyncIterator() -> Iterator {
        Iterator(client: client)
    }

    public struct Iterator: AsyncIteratorProtocol {
        let client: ClientHandle
        private var seen: Connectivity?

        init(client: ClientHandle) {
            self.client = client
        }

        /// `nil` behind `.shutdown`, and when the task is cancelled.
        public mutating func next() async -> Connectivity? {
            if seen == .shutdown { return nil }
            while !Task.isCancelled {
                let now = client.connectivity
                guard let seen, seen == now else {
                    seen = now
                    return now
                }
                // A client that is gone ends the wait, and stands as shut down.
                let client = client
                _ = try? await Operation.run { operation in
                    try operation.begin(VALKYRIE_OPERATION_CONNECTIVITY) {
                        $0.client = client.pointer
                        $0.connectivity = seen.number
                    }
                }
            }
            return nil
        }
    }
}
