// How calls end when they do not end well.
import CValkyrie

/// A status code: gRPC's numbers. One without a name is passed on as it came.
public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    public let rawValue: UInt32

    public init(rawValue: UInt32) {
        self.rawValue = rawValue
    }

    public static let ok = Code(rawValue: 0)
    public static let cancelled = Code(rawValue: 1)
    public static let unknown = Code(rawValue: 2)
    public static let invalidArgument = Code(rawValue: 3)
    public static let deadlineExceeded = Code(rawValue: 4)
    public static let notFound = Code(rawValue: 5)
    public static let alreadyExists = Code(rawValue: 6)
    public static let permissionDenied = Code(rawValue: 7)
    public static let resourceExhausted = Code(rawValue: 8)
    public static let failedPrecondition = Code(rawValue: 9)
    public static let aborted = Code(rawValue: 10)
    public static let outOfRange = Code(rawValue: 11)
    public static let unimplemented = Code(rawValue: 12)
    public static let `internal` = Code(rawValue: 13)
    public static let unavailable = Code(rawValue: 14)
    public static let dataLoss = Code(rawValue: 15)
    public static let unauthenticated = Code(rawValue: 16)

    /// The name, such as `DEADLINE_EXCEEDED`; `UNKNOWN` for a number without one.
    public var name: String { String(cString: valkyrie_code_name(rawValue)) }

    public var description: String { name }
}

/// Whose fault an error is.
public enum ErrorClass: String, Sendable {
    case application, caller, auth, transient, server, `protocol`
}

/// A call's status when it is not OK. A task that was cancelled gets `CancellationError` instead.
public struct StatusError: Error, Sendable, CustomStringConvertible {
    /// A typed detail from the server.
    public struct Detail: Sendable {
        public let type: String
        public let value: [UInt8]
    }

    public let code: Code
    /// Stable reason, finer than the code: `CONNECTION_LOST`. `NONE` when the application made the status.
    public let reason: String
    /// A sentence for people.
    public let message: String
    /// Whose fault it is.
    public let `class`: ErrorClass
    /// Typed details from the server.
    public let details: [Detail]
    /// How long the server asks to wait before another attempt; `.unlimited`: never.
    public let pushback: Duration?
    /// What became of the call's attempts, a line for each; empty when none was made.
    public let timeline: String
    /// Metadata that came before the status.
    public let metadata: Metadata
    /// Trailers that came with the status.
    public let trailers: Metadata

    /// Whether another attempt may help.
    public var retryable: Bool { code == .unavailable }

    public var description: String { "\(code.name) (\(reason)): \(message)" }

    /// One that this package makes.
    init(_ code: Code, _ reason: String, _ message: String) {
        self.code = code
        self.reason = reason
        self.message = message
        `class` = code == .invalidArgument || code == .failedPrecondition ? .caller : .server
        details = []
        pushback = nil
        timeline = ""
        metadata = Metadata()
        trailers = Metadata()
    }

    /// Reads an error of the library's, and frees it.
    init(taking error: OpaquePointer?) {
        // What is read of NULL is that nothing is wrong, which no caller has.
        defer { valkyrie_error_free(error) }
        code = Code(rawValue: valkyrie_error_code(error))
        reason = valkyrie_error_reason(error).text
        message = String(cString: valkyrie_error_message(error))
        `class` = ErrorClass(rawValue: valkyrie_error_class(error).text) ?? .application
        var details: [Detail] = []
        var (type, value) = (valkyrie_bytes(), valkyrie_bytes())
        while valkyrie_error_detail(error, UInt(details.count), &type, &value) {
            details.append(Detail(type: type.text, value: value.array))
        }
        self.details = details
        var wait: UInt64 = 0
        pushback = valkyrie_error_pushback_ms(error, &wait) ? Duration(milliseconds: wait) : nil
        timeline = valkyrie_error_timeline(error).text
        metadata = Metadata(reading: valkyrie_error_metadata(error))
        trailers = Metadata(reading: valkyrie_error_trailers(error))
    }
}
