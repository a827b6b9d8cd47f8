// Tasks that are cancelled: the server hears of it, every wait ends once, and nothing is left.
import CValkyrie
import Valkyrie
import XCTest

final class CancelTests: XCTestCase {
    private let unlimited = CallOptions(timeout: .unlimited)

    func testACancelledTaskReachesTheServer() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let token = fresh("cancel")
            let call = Task { try await client.call("/test/hang", token, options: unlimited) }
            try await client.hang(token, "started")
            call.cancel()
            let cancelled = await isCancelled { try await call.value }
            XCTAssertTrue(cancelled)
            try await client.hang(token, "dropped")
            // One that was cancelled before it called begins nothing.
            let before = Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return await isCancelled { try await client.call("/echo", "x") }
            }
            let never = await before.value
            XCTAssertTrue(never)
            // After the end it is nothing.
            let after = Task { try await client.request("x") }
            _ = try await after.value
            after.cancel()
            let limit = Task {
                try await withThrowingTaskGroup(of: Void.self) { group in
                    group.addTask { _ = try await client.call("/test/hang", "x", options: self.unlimited) }
                    group.addTask { try await Task.sleep(for: .milliseconds(20)) }
                    try await group.next()
                    group.cancelAll()
                }
            }
            _ = try? await limit.value
            let connecting = Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return await isCancelled { try await Client.connect(endpoint) }
            }
            let unconnected = await connecting.value
            XCTAssertTrue(unconnected)
        }
    }

    func testLeavingAStreamEndsItAtTheServer() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let leave: [(String, @Sendable (MessageStream) async throws -> Void)] = [
                ("cancel", { $0.cancel() }),
                ("loop", { stream in
                    let task = Task { for try await _ in stream {} }
                    task.cancel()
                    _ = try? await task.value
                }),
            ]
            for (name, leave) in leave {
                let token = fresh(name)
                let stream = try client.open("/test/hang")
                try await stream.send(token)
                try await client.hang(token, "started")
                try await leave(stream)
                let error = await failure { try await stream.receive() }
                XCTAssertEqual(error.code, .cancelled)
                try await client.hang(token, "dropped")
                stream.cancel()
            }
            // The last reference.
            let token = fresh("gone")
            var stream: MessageStream? = try client.open("/test/hang")
            try await stream?.send(token)
            try await client.hang(token, "started")
            stream = nil
            try await client.hang(token, "dropped")
            // A loop that is left early.
            var left = 5
            for try await _ in try client.stream("/test/count", "1000000 1000") {
                left -= 1
                if left == 0 { break }
            }
            _ = try await client.request("x")
        }
    }

    func testACancelledReceiveLosesNothing() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let stream = try client.stream("/test/count", "2000 8")
            var seen = 0
            var cancelled = 0
            while true {
                let receive = Task { try await stream.receive() }
                if seen % 2 == 0 { receive.cancel() }
                do {
                    guard let message = try await receive.value else { break }
                    XCTAssertEqual(message[0], UInt8(seen % 251))
                    seen += 1
                } catch is CancellationError {
                    cancelled += 1
                    // One that is not cancelled goes on.
                    guard let message = try await stream.receive() else { break }
                    XCTAssertEqual(message[0], UInt8(seen % 251))
                    seen += 1
                }
            }
            XCTAssertEqual(seen, 2000)
            XCTAssertGreaterThan(cancelled, 0)
        }
    }

    /// Cancels that come before, while and after their calls begin and end: each wait ends once, as its answer or as its cancel.
    func testAStormOfCancels() async throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            var random = Random(state: seed)
            var (answered, cancelled) = (0, 0)
            for _ in 0..<100 {
                let plan = (0..<100).map { _ in (random.next() % 3, random.next() % 400) }
                try await withThrowingTaskGroup(of: Bool.self) { group in
                    for (i, (method, spins)) in plan.enumerated() {
                        group.addTask {
                            let call = Task {
                                switch method {
                                case 0: return try await client.call("/echo", "\(i)", options: self.unlimited)
                                case 1: return try await client.call("/test/sleep", "0", options: self.unlimited)
                                default: return try await client.call("/test/hang", "storm", options: self.unlimited)
                                }
                            }
                            for _ in 0..<spins { await Task.yield() }
                            call.cancel()
                            do {
                                let answer = try await call.value.text
                                guard answer == (method == 0 ? "\(i)" : "0") else { throw Wrong(answer: answer) }
                                return true
                            } catch is CancellationError {
                                return false
                            }
                        }
                    }
                    for try await was in group {
                        if was { answered += 1 } else { cancelled += 1 }
                    }
                }
            }
            XCTAssertEqual(answered + cancelled, 10_000)
            XCTAssertGreaterThan(answered, 0)
            XCTAssertGreaterThan(cancelled, 0)
            print("\(answered) answered, \(cancelled) cancelled")
            let well = try await client.request("well")
            XCTAssertEqual(well.text, "well")
        }
    }

    func testNothingIsLeftAtTheServer() async throws {
        let client = try await Client.connect(endpoint)
        let own = try await client.privately()
        let calls = (0..<1_000).map { _ in Task { try await own.call("/test/hang", "", options: self.unlimited) } }
        try await own.hang("", "started")
        calls.forEach { $0.cancel() }
        for call in calls {
            let cancelled = await isCancelled { try await call.value }
            XCTAssertTrue(cancelled)
        }
        struct Held: Decodable {
            let streams, running, queued, unread, unsent, deadlines: Int
        }
        while true {
            let held = try JSONDecoder().decode(Held.self, from: Data(try await own.call("/test/held", "")))
            if held.streams + held.running + held.queued + held.unread + held.unsent + held.deadlines == 0 { break }
        }
    }
}

struct Wrong: Error {
    let answer: String
}

/// SplitMix64: the same numbers for the same seed.
struct Random: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
