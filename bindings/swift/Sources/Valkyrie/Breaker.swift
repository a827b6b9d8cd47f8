// Circuit breakers, and the JSON that they come in.
import CValkyrie

/// What a client's circuit breaker of one server and one method does.
public struct Breaker: Sendable {
    public enum State: String, Sendable {
        case closed, open
        case halfOpen = "half_open"
        case isolated
    }

    /// The server's endpoint.
    public let server: String
    /// Calls of which method; `nil` for all, while the whole server is isolated.
    public let method: String?
    public let state: State
    /// How long it has done so; `nil` while it has never done anything else.
    public let age: Duration?
    /// An open one's: after how long it lets trial calls pass.
    public let opensFor: Duration?
    /// Calls that it remembers, 10 s of them unless the service config says otherwise.
    public let calls: Int
    /// Those of them that failed.
    public let failures: Int
    /// How often its state has changed.
    public let changes: Int

    static func list(_ json: UnsafeRawBufferPointer) throws -> [Breaker] {
        guard let objects = FlatJson.list(json) else {
            throw StatusError(.internal, "INTERNAL", "breakers are no list of objects")
        }
        return objects.map { object in
            let number = { (key: String) in object[key].flatMap { UInt64($0) } }
            return Breaker(
                server: object["server"] ?? "", method: object["method"],
                state: object["state"].flatMap(State.init) ?? .closed,
                age: number("age_ms").map(Duration.init(milliseconds:)),
                opensFor: number("opens_for_ms").map(Duration.init(milliseconds:)),
                calls: Int(clamping: number("calls") ?? 0), failures: Int(clamping: number("failures") ?? 0),
                changes: Int(clamping: number("changes") ?? 0))
        }
    }
}

/// A client's breakers, and all of them again whenever one has changed: `Client.breakerChanges`.
public struct BreakerChanges: AsyncSequence, Sendable {
    public typealias Element = [Breaker]

    let client: ClientHandle

    public func makeAsyncIterator() -> Iterator {
        Iterator(client: client)
    }

    public struct Iterator: AsyncIteratorProtocol {
        let client: ClientHandle
        private var seen: UInt64 = 0

        init(client: ClientHandle) {
            self.client = client
        }

        /// `nil` once the client is closed, and when the task is cancelled.
        public mutating func next() async throws -> [Breaker]? {
            let (client, seen) = (client, seen)
            do {
                let done = try await Operation.run { operation in
                    try operation.begin(VALKYRIE_OPERATION_BREAKERS) {
                        $0.client = client.pointer
                        $0.seen = seen
                    }
                }
                self.seen = done.seen
                return try done.message.map { try Received($0).withBytes(Breaker.list) }
            } catch is CancellationError {
                return nil
            } catch let error as StatusError where error.reason == "CLIENT_CLOSED" {
                return nil
            }
        }
    }
}

/// A list of objects without objects inside, which is all that the library gives: this package does without Foundation.
struct FlatJson {
    private let bytes: UnsafeRawBufferPointer
    private var at = 0

    /// Texts and numbers as text; what is null is left out. `nil` for anything else.
    static func list(_ bytes: UnsafeRawBufferPointer) -> [[String: String]]? {
        var json = FlatJson(bytes: bytes)
        var objects: [[String: String]] = []
        guard json.takes("[") else { return nil }
        while json.takes("{") {
            var object: [String: String] = [:]
            while json.takes("\"") {
                guard let key = json.text(), json.takes(":") else { return nil }
                if json.takes("\"") {
                    guard let value = json.text() else { return nil }
                    object[key] = value
                } else {
                    let word = json.word()
                    if word != "null" { object[key] = word }
                }
                _ = json.takes(",")
            }
            guard json.takes("}") else { return nil }
            objects.append(object)
            _ = json.takes(",")
        }
        return json.takes("]") ? objects : nil
    }

    private init(bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
    }

    private mutating func takes(_ letter: Unicode.Scalar) -> Bool {
        while at < bytes.count, bytes[at] == 0x20 || bytes[at] == 0x0a { at += 1 }
        guard at < bytes.count, UInt32(bytes[at]) == letter.value else { return false }
        at += 1
        return true
    }

    private mutating func word() -> String {
        let start = at
        while at < bytes.count, ![0x2c, 0x7d, 0x5d, 0x20].contains(bytes[at]) { at += 1 }
        return String(decoding: bytes[start..<at], as: UTF8.self)
    }

    /// Behind its first quote, to behind its last one.
    private mutating func text() -> String? {
        var units: [UInt16] = []
        var plain: [UInt8] = []
        func flush() {
            units += String(decoding: plain, as: UTF8.self).utf16
            plain = []
        }
        while at < bytes.count {
            let byte = bytes[at]
            at += 1
            if byte == 0x22 {
                flush()
                return String(decoding: units, as: UTF16.self)
            }
            guard byte == 0x5c else {
                plain.append(byte)
                continue
            }
            guard at < bytes.count else { return nil }
            let escape = Unicode.Scalar(bytes[at])
            at += 1
            switch escape {
            case "n": plain.append(0x0a)
            case "t": plain.append(0x09)
            case "r": plain.append(0x0d)
            case "b": plain.append(0x08)
            case "f": plain.append(0x0c)
            case "u":
                guard at + 4 <= bytes.count,
                    let unit = UInt16(String(decoding: bytes[at..<at + 4], as: UTF8.self), radix: 16)
                else { return nil }
                at += 4
                flush()
                units.append(unit)
            default: plain.append(UInt8(truncatingIfNeeded: escape.value))
            }
        }
        return nil
    }
}
