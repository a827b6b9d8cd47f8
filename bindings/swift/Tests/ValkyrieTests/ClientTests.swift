// Unary calls, errors, and what a client says of itself.
import CValkyrie
import Foundation
import Valkyrie
import ValkyrieFoundation
import XCTest

final class ClientTests: XCTestCase {
    func testEveryKindOfMessage() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            XCTAssertEqual(client.endpoint, endpoint)
            let text = try await client.request("Grüße, 世界 🛡")
            XCTAssertEqual(text.text, "Grüße, 世界 🛡")
            let bytes = try await client.request([0, 255, 128] as [UInt8])
            XCTAssertEqual(bytes, [0, 255, 128])
            let slice = try await client.request(([1, 2, 3, 4] as [UInt8])[1..<3])
            XCTAssertEqual(slice, [2, 3])
            let empty = try await client.request("")
            XCTAssertEqual(empty, [])
            let message = Data((0..<65536).map { UInt8($0 % 251) })
            let data = try await client.data("/echo", message)
            XCTAssertEqual(data, message)
            let response = try await client.callWithResponse("/echo", message)
            XCTAssertEqual(response.message, [UInt8](message))
            XCTAssertEqual(response.withUnsafeBytes { $0.count }, 65536)
            let none = try await client.data("/echo", Data())
            XCTAssertEqual(none, Data())
        }
    }

    func testMetadataGoesBothWaysInOrder() async throws {
        let client = try await Client.connect(endpoint)
        var metadata: Metadata = ["x-one": "1", "x-data-bin": .bytes([0, 255]), "x-empty": ""]
        metadata.append("x-one", "again")
        let response = try await client.callWithResponse("/test/metadata", "", options: CallOptions(metadata: metadata))
        XCTAssertEqual(response.metadata, metadata)
        XCTAssertEqual(response.trailers.map(\.key), ["t-x-one", "t-x-data-bin", "t-x-empty", "t-x-one"])
        XCTAssertEqual(response.metadata["x-one"]?.text, "1")
        XCTAssertEqual(response.metadata.all("x-one").compactMap(\.text), ["1", "again"])
        XCTAssertEqual(response.metadata["x-data-bin"]?.bytes, [0, 255])
        for wrong: Metadata in [["Upper Case": "1"], ["x-line": "line\nbreak"], ["x\0y": "1"]] {
            let error = await failure { try await client.call("/echo", "x", options: CallOptions(metadata: wrong)) }
            XCTAssertEqual(error.code, .invalidArgument, "\(wrong)")
        }
    }

    func testAStatusErrorTellsEverything() async throws {
        let client = try await Client.connect(endpoint)
        let metadata: Metadata = [
            "code": "14", "message": "wait", "details": "1", "pushback_ms": "1500", "trailers": "1",
        ]
        let error = await failure { try await client.call("/test/status", "x", options: CallOptions(metadata: metadata)) }
        XCTAssertEqual(error.code, .unavailable)
        XCTAssertEqual(error.code.name, "UNAVAILABLE")
        XCTAssertEqual(error.reason, "NONE")
        XCTAssertEqual(error.message, "wait")
        XCTAssertEqual(error.class, .application)
        XCTAssertEqual(error.details.count, 1)
        XCTAssertEqual(error.pushback, .milliseconds(1500))
        XCTAssertEqual(error.trailers["t-status"]?.text, "trailer")
        XCTAssertEqual(error.trailers["t-status-bin"]?.bytes, [0, 255])
        XCTAssertTrue(error.retryable)
        XCTAssertTrue(error.timeline.contains("UNAVAILABLE"), error.timeline)
        XCTAssertEqual("\(error)", "UNAVAILABLE (NONE): wait")
        let odd = await failure {
            try await client.call("/test/status", "x", options: CallOptions(metadata: ["code": "42"]))
        }
        XCTAssertEqual(odd.code.rawValue, 42)
        XCTAssertEqual(odd.code.name, "UNKNOWN")
        let unknown = await failure { try await client.call("/no", "x") }
        XCTAssertEqual(unknown.code, .unimplemented)
        XCTAssertEqual(unknown.reason, "UNKNOWN_METHOD")
    }

    func testWhatIsWrongIsRefused() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            var errors = [
                await failure { try await Client.connect("tcp://\0") },
                await failure { try await Client.connect("carrier-pigeon://loft") },
                await failure { try await client.call("/echo\0", "x") },
                await failure { try await client.call("echo", "x") },
                await failure { try await client.open("echo").receive() },
                await failure { try await client.request("x", options: CallOptions(timeout: .seconds(-1))) },
                await failure { try await client.request("x", options: CallOptions(idempotencyKey: "")) },
                await failure { try await client.open("/echo", options: CallOptions(idempotencyKey: "key")).receive() },
                await failure { try client.isolate("tcp://192.0.2.1:1") },
                await failure { try client.setServiceConfig("{\"retries\": 3}") },
            ]
            for options in [
                ConnectOptions(trustedCertificates: "file:/etc/passwd"), ConnectOptions(serviceConfig: "{"),
                ConnectOptions(keepalive: .seconds(1)), ConnectOptions(timeout: .seconds(-1)),
                ConnectOptions(token: .source { "" }, serviceConfig: "{"),
            ] {
                errors.append(await failure { try await Client.connect(endpoint, options: options) })
            }
            for error in errors {
                XCTAssertEqual(error.code, .invalidArgument, "\(error)")
                XCTAssertFalse(error.message.isEmpty)
            }
        }
    }

    func testTimeLimits() async throws {
        let client = try await Client.connect(endpoint, options: ConnectOptions(timeout: .milliseconds(50)))
        for options in [nil, CallOptions(timeout: .milliseconds(50)), CallOptions(timeout: .zero)] {
            let error = await failure { try await client.call("/test/sleep", "60000", options: options) }
            XCTAssertEqual(error.code, .deadlineExceeded)
            XCTAssertEqual(error.reason, "DEADLINE_EXCEEDED")
        }
        let none = try await client.call("/test/remaining", "", options: CallOptions(timeout: .unlimited))
        XCTAssertEqual(none.text, "0")
        let some = try await client.call("/test/remaining", "", options: CallOptions(timeout: .seconds(45)))
        XCTAssertTrue((1...45_000).contains(Int(some.text) ?? 0), some.text)
        let token = fresh("deadline")
        let late = await failure { try await client.call("/test/hang", token, options: CallOptions(timeout: .seconds(1))) }
        XCTAssertEqual(late.code, .deadlineExceeded)
        try await client.hang(token, "dropped")
    }

    func testAKeyRunsACallOnce() async throws {
        let client = try await Client.connect(endpoint)
        let token = fresh("key")
        let options = CallOptions(priority: .critical, idempotencyKey: .text(token))
        let first = try await client.callWithResponse("/test/flaky", token, options: options)
        let second = try await client.callWithResponse("/test/flaky", token, options: options)
        XCTAssertEqual([first, second].map(\.message.text), ["1", "1"])
        XCTAssertEqual([first, second].map { $0.metadata["valkyrie-replayed"]?.text }, [nil, "true"])
        let drawn = CallOptions(priority: .bulk, idempotencyKey: .drawn)
        let third = try await client.call("/test/flaky", token, options: drawn)
        XCTAssertEqual(third.text, "2")
        let retried = fresh("flaky")
        let idempotent = CallOptions(metadata: ["n": "2"], idempotent: true)
        let count = try await client.call("/test/flaky", retried, options: idempotent)
        XCTAssertEqual(count.text, "3")
    }

    func testALiveClientIsSteered() async throws {
        let client = try await Client.connect(endpoint)
        _ = try await client.request("x")
        let breaker = try XCTUnwrap(client.breakers().first)
        XCTAssertEqual(breaker.method, "/echo")
        XCTAssertEqual(breaker.state, .closed)
        XCTAssertEqual(breaker.calls, 1)
        XCTAssertNil(breaker.age)
        XCTAssertTrue(try client.metrics().contains("valkyrie_client_calls_total{method=\"/echo\",code=\"OK\"} 1\n"))
        try client.isolate(breaker.server)
        XCTAssertTrue(try client.breakers().contains { $0.method == nil && $0.state == .isolated })
        let held = await failure { try await client.request("x") }
        XCTAssertEqual(held.reason, "BREAKER_OPEN")
        try client.restore(breaker.server)
        try client.isolate(breaker.server, method: "/echo")
        _ = try await client.call("/test/sleep", "0")
        try client.restore(breaker.server, method: "/echo")
        _ = try await client.request("x")
        try client.setServiceConfig("{\"methods\": [{\"names\": [\"/test/sleep\"], \"timeout_ms\": 20}]}")
        let late = await failure { try await client.call("/test/sleep", "60000") }
        XCTAssertEqual(late.code, .deadlineExceeded)
    }

    func testConnectivityAndItsChanges() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            XCTAssertEqual(client.connectivity, .ready)
            let changes = client.connectivityChanges
            let all = Task {
                var states: [Connectivity] = []
                for await state in changes { states.append(state) }
                return states
            }
            let left = Task {
                for await _ in changes {}
                return true
            }
            _ = try await client.request("x")
            left.cancel()
            let wasLeft = await left.value
            XCTAssertTrue(wasLeft)
            try await client.close()
            let states = await all.value
            XCTAssertEqual(states.last, .shutdown)
            XCTAssertEqual(client.connectivity, .shutdown)
        }
        // A client that goes ends it too.
        var client: Client? = try await Client.connect(endpoint)
        let changes = try XCTUnwrap(client?.connectivityChanges)
        let last = Task {
            var last: Connectivity?
            for await state in changes { last = state }
            return last
        }
        client = nil
        let state = await last.value
        XCTAssertEqual(state, .shutdown)
    }

    func testAChangeOfABreakerIsToldAndTheEnd() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            var changes = client.breakerChanges.makeAsyncIterator()
            let none = try await changes.next()
            XCTAssertEqual(none?.count, 0)
            let all = client.breakerChanges
            let left = Task {
                for try await _ in all {}
                return true
            }
            left.cancel()
            let wasLeft = try await left.value
            XCTAssertTrue(wasLeft)
            try client.isolate(endpoint)
            let isolated = try await changes.next()
            XCTAssertEqual(isolated?.map(\.state), [.isolated])
            try await client.close()
            let end = try await changes.next()
            XCTAssertNil(end)
        }
    }

    func testClosingLetsCallsFinishAndEndsLaterOnes() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            try await eventually("nothing is in flight") { valkyrie_in_flight() == 0 }
            async let last = client.call("/test/sleep", "50")
            try await eventually("the call begins") { valkyrie_in_flight() == 1 }
            _ = try await client.request("x")
            async let other: Void = client.close()
            try await client.close()
            try await other
            let answer = try await last
            XCTAssertEqual(answer.text, "50")
            try await client.close()
            let errors = [
                await failure { try await client.request("x") },
                await failure { try await client.open("/echo").receive() },
                await failure { try await client.open("/echo").send("x") },
                await failure { try await client.stream("/echo", "x").receive() },
                await failure { try client.breakers() },
            ]
            for error in errors {
                XCTAssertEqual(error.code, .cancelled)
                XCTAssertEqual(error.reason, "CLIENT_CLOSED")
            }
        }
    }

    func testTokensOfAFunction() async throws {
        try XCTSkipIf(scheme == "echo", "the server inside the library checks no tokens")
        try await leavesNothing {
            let own = try await Client.connect(endpoint)
            let guarded = try await own.call("/test/private", "\(scheme) credentials").text
            let asked = Counter()
            let source = Token.source {
                asked.add()
                return "good alice"
            }
            for token in ["good alice", source] {
                let client = try await Client.connect(guarded, options: ConnectOptions(token: token))
                let principal = try await client.call("/test/principal", "")
                XCTAssertEqual(principal.text, "sub:alice")
                try await client.close()
            }
            XCTAssertEqual(asked.count, 1)
            struct NoToken: Error {}
            let failing = ConnectOptions(token: .source { throw NoToken() })
            let error = await failure { try await Client.connect(guarded, options: failing).call("/test/principal", "") }
            XCTAssertEqual(error.reason, "CREDENTIALS_UNAVAILABLE")
            XCTAssertTrue(error.message.contains("NoToken"), error.message)
            let denied = await failure { try await Client.connect(guarded).call("/test/principal", "") }
            XCTAssertEqual(denied.code, .unauthenticated)
        }
    }

    func testALoggerHearsOfConnections() async throws {
        try await leavesNothing {
            let (before, heard) = (Counter(), Counter())
            setLogger({ _ in before.add() }, level: .debug)
            // From when this returns.
            setLogger({ record in
                if record.level == .info && record.target == "valkyrie.connection" && record.fields["endpoint"] == endpoint {
                    heard.add()
                }
            }, level: .info)
            _ = try await Client.connect(endpoint).request("x")
            try await eventually("the logger hears") { heard.count > 0 }
            setLogger(nil)
            let count = before.count
            _ = try await Client.connect(endpoint).request("x")
            XCTAssertEqual(before.count, count)
        }
    }

    func testTheVersionIsTheCores() {
        XCTAssertTrue(Valkyrie.version.contains("(core "), Valkyrie.version)
    }
}

/// Counts from any thread.
final class Counter: @unchecked Sendable {
    private let lock = NSLock()
    private var value = 0

    var count: Int { lock.withLock { value } }
    func add() { lock.withLock { value += 1 } }
}
