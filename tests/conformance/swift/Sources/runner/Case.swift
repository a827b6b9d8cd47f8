// One case: what it sends and what it expects.
import Foundation
import Valkyrie

/// A reply, or an error in the same shape.
struct Got: Sendable {
    var code = "OK"
    var number = 0
    var reason = ""
    var status = ""
    var timeline = ""
    var details: [StatusError.Detail] = []
    var pushback: Duration?
    var metadata = Metadata()
    var trailers = Metadata()
    var message: [UInt8] = []

    init(_ response: Response) {
        message = response.message
        metadata = response.metadata
        trailers = response.trailers
    }

    init(_ message: [UInt8], _ stream: MessageStream? = nil) {
        self.message = message
        metadata = stream?.metadata ?? Metadata()
        trailers = stream?.trailers ?? Metadata()
    }

    /// The host's own kind of error stands for CANCELLED.
    init(failed error: any Error) throws {
        if error is CancellationError {
            code = "CANCELLED"
            return
        }
        guard let error = error as? StatusError else { throw error }
        code = error.code.name
        number = Int(error.code.rawValue)
        reason = error.reason
        status = error.message
        timeline = error.timeline
        details = error.details
        pushback = error.pushback
        metadata = error.metadata
        trailers = error.trailers
    }

    var shown: String { "\(code) \(reason) \(status)" }
}

/// What a call gives, or its error.
func outcome(_ call: () async throws -> Response) async throws -> Got {
    do { return Got(try await call()) } catch { return try Got(failed: error) }
}

final class Case: @unchecked Sendable {
    let client: Client
    let settings: Settings
    let fields: [String: Any]
    let token: String

    init(_ client: Client, _ settings: Settings, _ fields: [String: Any], _ token: String) {
        self.client = client
        self.settings = settings
        self.fields = fields
        self.token = token
    }

    func with(token: String) -> Case { Case(client, settings, fields, token) }

    func string(_ key: String) -> String? { fields[key] as? String }
    func int(_ key: String) -> Int? { fields[key] as? Int }

    func text(_ key: String) -> String? {
        string(key)?.replacingOccurrences(of: "$TOKEN", with: token)
            .replacingOccurrences(of: "$ABSENT", with: settings.absent)
    }

    var count: Int { int("count") ?? 0 }
    var method: String { text("method") ?? "" }
    var scheme: String { String(settings.endpoint.prefix { $0 != ":" }) }

    var message: [UInt8] {
        if let text = text("text") { return Array(text.utf8) }
        if let hex = string("hex") { return bytes(hex: hex) }
        return (0..<(int("size") ?? 0)).map { UInt8($0 % 251) }
    }

    func pattern(_ i: Int) -> [UInt8] { [UInt8](repeating: UInt8(i % 251), count: int("size") ?? 0) }

    var options: CallOptions {
        var options = CallOptions(metadata: entries(text("metadata")))
        if let size = int("metadata_size") {
            options.metadata.append("x-large", .text(String(repeating: "x", count: size)))
        }
        options.timeout = int("timeout_ms").map { .milliseconds($0) }
        options.idempotent = int("idempotent") == 1
        options.idempotencyKey = int("draw_idempotency_key") == 1 ? .drawn : text("idempotency_key").map { .text($0) }
        return options
    }

    func call(_ options: CallOptions? = nil) async throws -> Got {
        try await outcome { try await client.callWithResponse(method, message, options: options ?? self.options) }
    }

    func check(_ got: Got) async throws {
        var wrong: [String] = []
        func compare<T: Equatable>(_ what: String, _ expected: T?, _ value: T?) {
            if let expected, expected != value {
                let value = value.map { "\($0)" } ?? "nothing"
                wrong.append("\(what): expected \("\(expected)".prefix(120)), got \(value.prefix(120))")
            }
        }
        compare("code", string("code"), got.code)
        compare("code number", int("code_number"), got.number)
        compare("reason", string("reason"), got.reason)
        compare("status message", text("status_message"), got.status)
        compare("detail type", string("detail_type"), got.details.first?.type)
        compare("detail", string("detail_text"), got.details.first.map { utf8($0.value) })
        compare("pushback", int("pushback_ms").map { .milliseconds($0) }, got.pushback)
        compare("reply", string("reply_text"), utf8(got.message))
        compare("reply size", int("reply_size"), got.message.count)
        for (key, metadata) in [("expect_metadata", got.metadata), ("expect_trailers", got.trailers)] {
            if let expected = text(key) { compare(key, entries(expected), metadata) }
        }
        if int("reply_echo") == 1 && got.message != message {
            wrong.append("the reply of \(got.message.count) bytes is not the message")
        }
        if let most = int("reply_max") {
            let reply = Int(utf8(got.message)) ?? 0
            if !(1...most).contains(reply) { wrong.append("reply: expected 1 to \(most), got \(reply)") }
        }
        if !wrong.isEmpty { throw Mismatch("\(wrong.joined(separator: "; ")) (\(got.shown))") }
        if int("then_dropped") == 1 { _ = try await hang("dropped") }
    }

    /// Waits for the handler of this case's token; when it was dropped, in microseconds since 1970.
    func hang(_ until: String) async throws -> Int {
        let options = CallOptions(timeout: .seconds(30), metadata: ["until": .text(until)])
        let stats = try await client.call("/test/hang_stats", token, options: options)
        let object = try JSONSerialization.jsonObject(with: Data(stats)) as? [String: Any]
        return object?["dropped_us"] as? Int ?? 0
    }

    /// A client of a fresh server.
    func freshServer() async throws -> Client {
        let endpoint = utf8(try await client.call("/test/private", scheme))
        var options = settings.options
        options.serviceConfig = string("service_config")
        return try await Client.connect(endpoint, options: options)
    }

    func connected(_ change: (inout ConnectOptions) -> Void = { _ in }) async throws -> Client {
        var options = settings.options
        change(&options)
        return try await Client.connect(settings.endpoint, options: options)
    }

    /// Receives to the end: how many messages came, and how it ended.
    func receiveAll(
        _ stream: MessageStream, from: Int = 0, _ isRight: ([UInt8], Int) -> Bool = { _, _ in true }
    ) async throws -> (Int, Got) {
        var count = from
        do {
            while let message = try await stream.receive() {
                guard isRight(message, count) else {
                    throw Mismatch("message \(count) of \(message.count) bytes is not the pattern")
                }
                count += 1
            }
            return (count, Got([], stream))
        } catch {
            return (count, try Got(failed: error))
        }
    }
}

func utf8(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

func bytes(hex: String) -> [UInt8] {
    let digits = Array(hex.utf8)
    return stride(from: 0, to: digits.count, by: 2).map { at in
        UInt8(String(decoding: digits[at..<at + 2], as: UTF8.self), radix: 16) ?? 0
    }
}

func entries(_ text: String?) -> Metadata {
    var metadata = Metadata()
    for entry in (text ?? "").split(separator: "&") {
        let parts = entry.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let (key, value) = (String(parts[0]), parts.count > 1 ? String(parts[1]) : "")
        metadata.append(key, key.hasSuffix("-bin") ? .bytes(bytes(hex: value)) : .text(value))
    }
    return metadata
}
