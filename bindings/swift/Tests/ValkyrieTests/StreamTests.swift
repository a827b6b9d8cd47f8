// Streams of every shape, and their pace.
import Valkyrie
import XCTest

final class StreamTests: XCTestCase {
    func testServerStreaming() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            var count = 0
            let stream = try client.stream("/test/count", "1000 100")
            for try await message in stream {
                XCTAssertEqual(message, [UInt8](repeating: UInt8(count % 251), count: 100))
                count += 1
            }
            XCTAssertEqual(count, 1000)
            for _ in 0..<3 {
                let over = try await stream.receive()
                XCTAssertNil(over)
            }
            // The loop has left it.
            let late = await failure { try await stream.send("late") }
            XCTAssertEqual(late.code, .cancelled)
            let metadata: Metadata = ["x-one": "1"]
            let told = try client.stream("/test/metadata", "", options: CallOptions(metadata: metadata))
            XCTAssertEqual(told.metadata, Metadata())
            for try await _ in told {}
            XCTAssertEqual(told.metadata, metadata)
            XCTAssertEqual(told.trailers["t-x-one"]?.text, "1")
        }
    }

    func testClientStreamingAndBoth() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let sum = try client.open("/test/half_close")
            for i in 0..<7 { try await sum.send("\(i)") }
            try await sum.halfClose()
            let answer = try await sum.receive()
            XCTAssertEqual(answer?.text, "7")
            let end = try await sum.receive()
            XCTAssertNil(end)
            let both = try client.open("/echo")
            for i in 0..<50 {
                try await both.send("\(i)")
                let back = try await both.receive()
                XCTAssertEqual(back?.text, "\(i)")
            }
            try await both.halfClose()
            let over = try await both.receive()
            XCTAssertNil(over)
        }
    }

    func testAStreamKeepsWhatCameBeforeItsErrorAndRepeatsIt() async throws {
        let client = try await Client.connect(endpoint)
        let options = CallOptions(metadata: ["n": "3", "code": "10", "message": "after three"])
        let stream = try client.stream("/test/stream_then_status", "", options: options)
        var count = 0
        let error = await failure {
            for try await _ in stream { count += 1 }
        }
        XCTAssertEqual(count, 3)
        let again = await failure { try await stream.receive() }
        for error in [error, again] {
            XCTAssertEqual(error.code, .aborted)
            XCTAssertEqual(error.message, "after three")
        }
    }

    func testASenderWaitsForAReceiverThatDoesNotRead() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let stream = try client.open("/echo")
            let message = [UInt8](repeating: 7, count: 64 * 1024)
            let taken = Counter()
            let sending = Task {
                for _ in 0..<400 {
                    try await stream.send(message)
                    taken.add()
                }
                try await stream.halfClose()
            }
            // Credit both ways is a few MiB at most: the sends stop long before 25 MiB. Calls beside it are not held up.
            var last = -1
            while last != taken.count {
                last = taken.count
                for _ in 0..<50 { _ = try await client.request("beside") }
            }
            XCTAssertLessThan(taken.count, 400)
            var count = 0
            for try await back in stream {
                XCTAssertTrue(back == message)
                count += 1
            }
            try await sending.value
            XCTAssertEqual(count, 400)
        }
    }

    func testOneReceivesAtATime() async throws {
        let client = try await Client.connect(endpoint)
        let stream = try client.open("/test/hang")
        let token = fresh("misuse")
        try await stream.send(token)
        let first = Task { try await stream.receive() }
        try await client.hang(token, "started")
        var refused: StatusError?
        while refused == nil {
            // Whichever comes second.
            let second = Task { try await stream.receive() }
            do {
                try await Task.sleep(for: .milliseconds(5))
                second.cancel()
                _ = try await second.value
            } catch {
                refused = error as? StatusError
            }
        }
        XCTAssertEqual(refused?.reason, "STREAM_MISUSE")
        first.cancel()
        let left = await isCancelled { try await first.value }
        XCTAssertTrue(left)
    }
}
