// What happens to connections, for a log.
import CValkyrie

/// How grave a record is.
public enum LogLevel: String, Sendable {
    case error, warn, info, debug
}

/// What happened.
public struct LogRecord: Sendable {
    public let level: LogLevel
    /// What it is about: `valkyrie.connection`.
    public let target: String
    public let message: String
    /// Particulars: `endpoint`, `reason`.
    public let fields: [String: String]
}

/// Gives what happens to connections to `logger`, one record after the other, in a task: those that cannot be made or are lost
/// (`.warn`), those that are made and those whose server goes away (`.info`), and those that end here (`.debug`). `nil`, as at first,
/// is nobody: an error reaches whoever awaits the call, and a library that prints unasked is in the way. What is logged before a
/// logger is there is lost, and of what it is too slow for the last 1,024 records stay.
public func setLogger(_ logger: (@Sendable (LogRecord) -> Void)?, level: LogLevel = .warn) {
    let next = logger.map { Listener(level, $0) }
    current.with { listener in
        listener?.leave()
        listener = next
        // The next record is asked for before this returns, so that it is not lost.
        next?.ask()
    }
}

/// Who gets the records. Only this one asks for them.
private let current = Locked<Listener?>(nil)

/// A logger, and the records on their way to it.
private final class Listener: @unchecked Sendable {
    private let level: LogLevel
    private let records: AsyncStream<LogRecord>.Continuation
    private var operation: UInt64 = 0

    init(_ level: LogLevel, _ logger: @escaping @Sendable (LogRecord) -> Void) {
        self.level = level
        let (stream, records) = AsyncStream.makeStream(of: LogRecord.self, bufferingPolicy: .bufferingNewest(1024))
        self.records = records
        Task {
            for await record in stream { logger(record) }
        }
    }

    /// Gives up, with `current` locked.
    func leave() {
        valkyrie_operation_cancel(operation)
        records.finish()
    }

    /// Asks for the next record, with `current` locked.
    func ask() {
        guard let queue = try? Completions.shared.get().queue else { return }
        var asked = valkyrie_operation()
        asked.struct_size = UInt32(MemoryLayout<valkyrie_operation>.size)
        asked.kind = UInt32(VALKYRIE_OPERATION_LOG)
        let data = Unmanaged.passRetained(self)
        let code = level.rawValue.withCString { target in
            asked.target = target
            return valkyrie_operation_start(queue, &asked, &operation, nil, Listener.heard, data.toOpaque())
        }
        if code != 0 { data.release() }
    }

    private static let heard: valkyrie_callback = { completion, data in
        guard let completion = completion?.pointee, let data else { return }
        let listener = Unmanaged<Listener>.fromOpaque(data).takeRetainedValue()
        valkyrie_error_free(completion.error)
        if let message = completion.message {
            listener.records.yield(LogRecord(Received(message)))
        }
        current.with { current in
            if current === listener && completion.code == 0 { listener.ask() }
        }
    }
}

extension LogRecord {
    fileprivate init(_ received: Received) {
        var fields: [String: String] = [:]
        for entry in Metadata(reading: valkyrie_message_metadata(received.handle)) {
            fields[entry.key] = entry.value.text
        }
        level = fields.removeValue(forKey: "level").flatMap(LogLevel.init) ?? .warn
        target = fields.removeValue(forKey: "target") ?? ""
        message = received.text
        self.fields = fields
    }
}
