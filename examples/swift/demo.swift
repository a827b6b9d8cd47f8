// The main job, a line per thing done. After "ready" it waits for the server to stop: demo ENDPOINT FILE…
import Foundation
import Valkyrie
import ValkyrieFoundation

@main
struct Demo {
    static func main() async throws {
        let arguments = CommandLine.arguments.dropFirst()
        let client = try await Client.connect(arguments.first ?? "tcp://127.0.0.1:8080")
        say("call", text(try await client.request("Hello, World!")))
        try await transfer(client, Array(arguments.dropFirst()))
        try await inFlight(client, 1000)
        try await cancel(client)
        say("deadline", await status {
            try await client.open("/echo", options: CallOptions(timeout: .milliseconds(100))).receive()
        })
        try await serverStops(client)
        try await client.close()
    }

    static func text(_ message: [UInt8]?) -> String { String(decoding: message ?? [], as: UTF8.self) }

    static func say(_ what: String, _ value: String) {
        print(what, value)
        fflush(stdout)
    }

    static func seconds(_ began: ContinuousClock.Instant) -> String {
        let (seconds, attoseconds) = (ContinuousClock.now - began).components
        return String(format: "%.3f", Double(seconds) + Double(attoseconds) / 1e18)
    }

    /// The files go up and come down on one stream. Each end hashes what it gets.
    static func transfer(_ client: Client, _ paths: [String]) async throws {
        let began = ContinuousClock.now
        let stream = try client.open("/echo", options: CallOptions(metadata: ["want-digest": "sha-256"]))
        async let up: (Int, String) = {
            var (sent, bytes) = (Sha256(), 0)
            for path in paths {
                let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
                while let chunk = try file.read(upToCount: 64 * 1024), !chunk.isEmpty {
                    chunk.withUnsafeBytes { sent.update($0) }
                    bytes += chunk.count
                    try await stream.send(chunk)
                }
            }
            try await stream.halfClose()
            return (bytes, sent.end())
        }()
        var received = Sha256()
        for try await message in stream { message.withUnsafeBytes { received.update($0) } }
        let (bytes, sent) = try await up
        say("bytes", "\(bytes)")
        say("seconds", seconds(began))
        say("sent", sent)
        say("received", received.end())
        say("server", stream.trailers["digest-sha-256"]?.text ?? "")
    }

    /// None of the calls can end before all of them are open, on one connection.
    static func inFlight(_ client: Client, _ count: Int) async throws {
        let began = ContinuousClock.now
        let streams = try (0..<count).map { _ in try client.open("/echo") }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for (number, stream) in streams.enumerated() {
                group.addTask { try await stream.send("\(number)") }
            }
            try await group.waitForAll()
        }
        var answered = 0
        for (number, stream) in streams.enumerated() {
            try await stream.halfClose()
            for try await message in stream where text(message) == "\(number)" { answered += 1 }
        }
        say("in_flight", "\(answered)")
        say("in_flight_seconds", seconds(began))
    }

    /// A call that waits for an answer is given up; the same connection goes on.
    static func cancel(_ client: Client) async throws {
        let waiting = Task { for try await _ in try client.open("/echo") {} }
        waiting.cancel()
        var cancelled = false
        do { try await waiting.value } catch { cancelled = error is CancellationError }
        _ = try await client.request("still here")
        say("cancelled", "\(cancelled)")
    }

    /// How a call ends.
    static func status(_ call: () async throws -> some Any) async -> String {
        do {
            _ = try await call()
            return "OK"
        } catch let error as StatusError {
            return "\(error.code) \(error.reason)"
        } catch {
            return "\(error)"
        }
    }

    /// The server stops between two messages: one call ends well in the time it is given, another does not end.
    static func serverStops(_ client: Client) async throws {
        let (ends, stays) = (try client.open("/echo"), try client.open("/echo"))
        for stream in [ends, stays] {
            try await stream.send("before")
            _ = try await stream.receive()
        }
        say("ready", "")
        var refused = "OK"
        while refused == "OK" {
            // So short a time leaves none to wait for the server's return.
            let options = CallOptions(timeout: .milliseconds(500))
            refused = await status { try await client.call("/echo", "anyone there?", options: options) }
        }
        say("refused", refused)
        try await ends.send("after")
        try await ends.halfClose()
        for try await message in ends { say("finished OK", text(message)) }
        say("cut", await status { try await stays.receive() })
    }
}

/// SHA-256 (FIPS 180-4), which Foundation lacks on Linux.
struct Sha256 {
    private var state: [UInt32]
    private var rest: [UInt8] = []
    private var length: UInt64 = 0

    // The first 32 bits of the fractional parts of the roots of the first primes.
    private static let primes = (2...311).filter { n in !(2..<n).contains { n % $0 == 0 } }
    private static let rounds: [UInt32] = primes.map { fraction(cbrt(Double($0))) }

    private static func fraction(_ root: Double) -> UInt32 { UInt32((root - root.rounded(.down)) * 4_294_967_296) }

    init() {
        state = Sha256.primes.prefix(8).map { Sha256.fraction(Double($0).squareRoot()) }
    }

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        length += UInt64(bytes.count)
        var at = 0
        if !rest.isEmpty {
            at = min(64 - rest.count, bytes.count)
            rest += bytes[..<at]
            if rest.count < 64 { return }
            rest.withUnsafeBytes { block($0) }
            rest = []
        }
        while at + 64 <= bytes.count {
            block(UnsafeRawBufferPointer(rebasing: bytes[at..<at + 64]))
            at += 64
        }
        rest += bytes[at...]
    }

    mutating func end() -> String {
        let bits = length * 8
        var tail: [UInt8] = [0x80] + [UInt8](repeating: 0, count: (119 - rest.count % 64) % 64)
        withUnsafeBytes(of: bits.bigEndian) { tail += $0 }
        tail.withUnsafeBytes { update($0) }
        return state.map { String(format: "%08x", $0) }.joined()
    }

    private mutating func block(_ bytes: UnsafeRawBufferPointer) {
        func turned(_ word: UInt32, _ by: UInt32) -> UInt32 { word >> by | word << (32 - by) }
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 64) { words in
            for i in 0..<16 { words[i] = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)) }
            for i in 16..<64 {
                let (a, b) = (words[i - 15], words[i - 2])
                let (s, t) = (turned(a, 7) ^ turned(a, 18) ^ a >> 3, turned(b, 17) ^ turned(b, 19) ^ b >> 10)
                words[i] = words[i - 16] &+ s &+ words[i - 7] &+ t
            }
            var (a, b, c, d) = (state[0], state[1], state[2], state[3])
            var (e, f, g, h) = (state[4], state[5], state[6], state[7])
            Sha256.rounds.withUnsafeBufferPointer { rounds in
                for i in 0..<64 {
                    let s = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
                    let one = h &+ s &+ (e & f ^ ~e & g) &+ rounds[i] &+ words[i]
                    let two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) &+ (a & b ^ a & c ^ b & c)
                    (h, g, f, e, d, c, b, a) = (g, f, e, d &+ one, c, b, a, one &+ two)
                }
            }
            for (i, word) in [a, b, c, d, e, f, g, h].enumerated() { state[i] &+= word }
        }
    }
}
