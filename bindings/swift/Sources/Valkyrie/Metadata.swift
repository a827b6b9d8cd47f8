// What travels beside messages, and messages themselves.
import CValkyrie

/// A message to send: text, which is sent as UTF-8, or bytes. It is copied before the call that takes it waits.
public protocol Message {
    /// Calls `body` with the bytes, which are there until it returns.
    func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R
}

extension String: Message {
    public func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        var text = self
        return try text.withUTF8 { try body(UnsafeRawBufferPointer($0)) }
    }
}

extension Array: Message where Element == UInt8 {
    public func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try withUnsafeBytes(body)
    }
}

extension ArraySlice: Message where Element == UInt8 {
    public func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try withUnsafeBytes(body)
    }
}

extension UnsafeRawBufferPointer: Message {
    public func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(self)
    }
}

/// Key and value pairs in the order that their sender gave them. Keys are 1 to 128 of `a-z 0-9 - _ .`; values are
/// printable ASCII, or any bytes where the key ends in `-bin`.
public struct Metadata: Sendable, Hashable, RandomAccessCollection, ExpressibleByDictionaryLiteral {
    /// Text, or bytes under a key that ends in `-bin`.
    public enum Value: Sendable, Hashable, ExpressibleByStringLiteral {
        case text(String)
        case bytes([UInt8])

        public init(stringLiteral text: String) {
            self = .text(text)
        }

        /// The text; `nil` for bytes.
        public var text: String? {
            if case .text(let text) = self { text } else { nil }
        }

        /// The bytes, of a text in UTF-8.
        public var bytes: [UInt8] {
            switch self {
            case .text(let text): Array(text.utf8)
            case .bytes(let bytes): bytes
            }
        }
    }

    /// One pair.
    public struct Entry: Sendable, Hashable {
        public var key: String
        public var value: Value

        public init(key: String, value: Value) {
            self.key = key
            self.value = value
        }
    }

    private var entries: [Entry]

    public init() {
        entries = []
    }

    public init(_ entries: some Sequence<Entry>) {
        self.entries = Array(entries)
    }

    public init(dictionaryLiteral entries: (String, Value)...) {
        self.entries = entries.map { Entry(key: $0.0, value: $0.1) }
    }

    public var startIndex: Int { 0 }
    public var endIndex: Int { entries.count }
    public subscript(position: Int) -> Entry { entries[position] }

    /// The first value of that key.
    public subscript(key: String) -> Value? { first { $0.key == key }?.value }

    /// Every value of that key.
    public func all(_ key: String) -> [Value] { filter { $0.key == key }.map(\.value) }

    /// Adds a pair at the end.
    public mutating func append(_ key: String, _ value: Value) {
        entries.append(Entry(key: key, value: value))
    }

    /// Copies what the library lends; nothing of `nil`.
    init(reading metadata: OpaquePointer?) {
        entries = []
        guard let metadata else { return }
        let count = valkyrie_metadata_len(metadata)
        guard count > 0 else { return }
        entries.reserveCapacity(Int(count))
        var (key, value) = (valkyrie_bytes(), valkyrie_bytes())
        while valkyrie_metadata_at(metadata, UInt(entries.count), &key, &value) {
            let name = key.text
            entries.append(Entry(key: name, value: name.hasSuffix("-bin") ? .bytes(value.array) : .text(value.text)))
        }
    }

    /// Lends the entries to C.
    func withEntries<R>(_ body: (UnsafeBufferPointer<valkyrie_metadata_entry>) throws -> R) throws -> R {
        guard !entries.isEmpty else { return try body(UnsafeBufferPointer(start: nil, count: 0)) }
        // All of it in one block: each key with its NUL, then its value.
        var block: [UInt8] = []
        var places: [(key: Int, value: Int, end: Int)] = []
        for entry in entries {
            guard !entry.key.utf8.contains(0) else {
                throw StatusError(.invalidArgument, "INVALID_METADATA", "a metadata key has a NUL inside; leave it out")
            }
            let key = block.count
            block += entry.key.utf8
            block.append(0)
            let value = block.count
            block += entry.value.bytes
            places.append((key, value, block.count))
        }
        return try block.withUnsafeBytes { block in
            let given = places.map { place in
                valkyrie_metadata_entry(
                    key: block.baseAddress?.advanced(by: place.key).assumingMemoryBound(to: CChar.self),
                    value: valkyrie_bytes(UnsafeRawBufferPointer(rebasing: block[place.value..<place.end])))
            }
            return try given.withUnsafeBufferPointer(body)
        }
    }
}

/// A message of the library's that was received. It is freed with the last reference.
package final class Received: @unchecked Sendable {
    let handle: OpaquePointer

    init(_ handle: OpaquePointer) {
        self.handle = handle
    }

    deinit {
        valkyrie_message_free(handle)
    }

    /// Lends the bytes until `body` returns.
    package func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        // Its last use may be this one.
        try withExtendedLifetime(self) { try body(valkyrie_message_bytes(handle).buffer) }
    }

    /// A copy.
    var array: [UInt8] { withBytes { Array($0) } }

    /// As text.
    var text: String { withBytes { String(decoding: $0, as: UTF8.self) } }
}
