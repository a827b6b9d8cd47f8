// Operations of the C library: each begins once, and its callback resumes the task that waits for it, once.
import CValkyrie

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// How an operation ended well. What the pointers name belongs to who waits for it.
struct Completion: @unchecked Sendable {
    let client: OpaquePointer?
    let message: OpaquePointer?
    let connectivity: UInt32
    let ready: UInt32
    let seen: UInt64
}

/// One operation, from its start to its callback.
final class Operation: @unchecked Sendable {
    private static let cancelled = UInt64.max

    private var continuation: UnsafeContinuation<Completion, any Error>?
    /// Zero, then the operation's number, or that it was cancelled: who comes second ends it.
    private let state: UnsafeMutablePointer<UInt64>

    private init() {
        state = .allocate(capacity: 1)
        state.initialize(to: 0)
    }

    deinit {
        state.deallocate()
    }

    /// Waits for what `prepare` begins. Cancelling the task gives it up, and throws `CancellationError` unless it is complete.
    static func run(_ prepare: (Operation) throws -> Void) async throws -> Completion {
        try Task.checkCancellation()
        let operation = Operation()
        do {
            return try await withTaskCancellationHandler {
                try await operation.wait(prepare)
            } onCancel: {
                operation.cancel()
            }
        } catch let error as StatusError where error.code == .cancelled && Task.isCancelled {
            throw CancellationError()
        }
    }

    /// As `run`, and goes on when the task is cancelled.
    static func runToTheEnd(_ prepare: (Operation) throws -> Void) async throws -> Completion {
        try await Operation().wait(prepare)
    }

    private func wait(_ prepare: (Operation) throws -> Void) async throws -> Completion {
        try await withUnsafeThrowingContinuation { continuation in
            self.continuation = continuation
            do {
                try prepare(self)
            } catch {
                continuation.resume(throwing: error)
            }
        }
    }

    /// Begins the operation. What `fill` writes is copied before this returns; once it throws there is no callback.
    func begin(_ kind: Int32, _ fill: (inout valkyrie_operation) -> Void) throws {
        let queue = try Completions.shared.get().queue
        var asked = valkyrie_operation()
        asked.struct_size = UInt32(MemoryLayout<valkyrie_operation>.size)
        asked.kind = UInt32(kind)
        fill(&asked)
        var number: UInt64 = 0
        var error: OpaquePointer?
        let data = Unmanaged.passRetained(self)
        let code = valkyrie_operation_start(queue, &asked, &number, &error, Operation.ended, data.toOpaque())
        guard code == 0 else {
            data.release()
            throw StatusError(taking: error)
        }
        if valkyrie_swift_exchange(state, number) == Operation.cancelled {
            valkyrie_operation_cancel(number)
        }
    }

    private func cancel() {
        let number = valkyrie_swift_exchange(state, Operation.cancelled)
        if number != 0 && number != Operation.cancelled {
            valkyrie_operation_cancel(number)
        }
    }

    private static let ended: valkyrie_callback = { completion, data in
        guard let completion = completion?.pointee, let data else { return }
        let operation = Unmanaged<Operation>.fromOpaque(data).takeRetainedValue()
        guard completion.code == 0 else {
            operation.continuation?.resume(throwing: StatusError(taking: completion.error))
            return
        }
        operation.continuation?.resume(
            returning: Completion(
                client: completion.client, message: completion.message, connectivity: completion.connectivity,
                ready: completion.ready, seen: completion.seen))
    }
}

/// The process's queue of completions, and the thread that waits for them: it resumes tasks and does nothing else.
struct Completions: @unchecked Sendable {
    static let shared: Result<Completions, StatusError> = Result { try Completions() }
        .mapError { $0 as? StatusError ?? StatusError(.internal, "INTERNAL", "\($0)") }

    let queue: OpaquePointer

    private init() throws {
        guard valkyrie_abi_version() == UInt32(VALKYRIE_ABI_VERSION) else {
            throw StatusError(
                .failedPrecondition, "INVALID_CONFIGURATION",
                "the C library has version \(valkyrie_abi_version()) of its interface, and this package is for "
                    + "\(VALKYRIE_ABI_VERSION): install the one that belongs to it")
        }
        var queue: OpaquePointer?
        var error: OpaquePointer?
        guard valkyrie_queue_new(&queue, &error) == 0, let queue else { throw StatusError(taking: error) }
        self.queue = queue
        #if canImport(Darwin)
        var thread: pthread_t?
        #else
        var thread = pthread_t()
        #endif
        let data = UnsafeMutableRawPointer(queue)
        let drain: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { data in
            // For ever: nothing frees the queue.
            while true {
                _ = valkyrie_queue_dispatch(data.map(OpaquePointer.init), UInt64.max)
            }
        }
        #if canImport(Darwin)
        let began = pthread_create(&thread, nil, { drain($0) }, data)
        #else
        let began = pthread_create(&thread, nil, drain, data)
        #endif
        guard began == 0 else {
            valkyrie_queue_free(queue)
            throw StatusError(.resourceExhausted, "TOO_MANY_OBJECTS", "no thread for completions: error \(began)")
        }
        #if canImport(Darwin)
        if let thread { pthread_detach(thread) }
        #else
        pthread_detach(thread)
        #endif
    }
}

/// A value behind a lock. Nothing waits or calls a user's function while it is held.
final class Locked<Value>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private var value: Value

    init(_ value: Value) {
        self.value = value
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    func with<R>(_ body: (inout Value) throws -> R) rethrows -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body(&value)
    }
}

/// A text as C takes it. One with a NUL inside would be cut there.
func withText<R>(
    _ text: String, _ name: String, reason: String = "INVALID_ARGUMENT", _ body: (UnsafePointer<CChar>) throws -> R
) throws -> R {
    try text.withCString { pointer in
        guard strlen(pointer) == text.utf8.count else {
            throw StatusError(.invalidArgument, reason, "\(name) has a NUL inside; leave it out")
        }
        return try body(pointer)
    }
}

func withMethod<R>(_ method: String, _ body: (UnsafePointer<CChar>) throws -> R) throws -> R {
    try withText(method, "method", reason: "INVALID_METHOD", body)
}

extension valkyrie_bytes {
    init(_ bytes: UnsafeRawBufferPointer) {
        self.init(data: bytes.baseAddress?.assumingMemoryBound(to: UInt8.self), len: UInt(bytes.count))
    }

    var buffer: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: data, count: Int(len)) }
    var text: String { String(decoding: buffer, as: UTF8.self) }
    var array: [UInt8] { Array(buffer) }
}

extension Duration {
    /// No limit at all: never.
    public static var unlimited: Duration { .seconds(Int64.max) }

    /// Milliseconds as the C library takes them, a part of one as a whole one.
    func milliseconds(_ name: String) throws -> UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else {
            throw StatusError(.invalidArgument, "INVALID_ARGUMENT", "\(name) is \(self); give a time from zero")
        }
        guard seconds < Int64.max / 1000 - 1 else { return UInt64.max }
        return UInt64(seconds) * 1000 + UInt64((attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000)
    }

    init(milliseconds: UInt64) {
        self = milliseconds > UInt64(Int64.max) ? .unlimited : .milliseconds(Int64(milliseconds))
    }
}
