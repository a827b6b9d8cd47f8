// What is over leaves nothing behind.
import CValkyrie
import Foundation
import Valkyrie
import XCTest

final class LeakTests: XCTestCase {
    func testAHundredThousandCalls() async throws {
        try await leavesNothing {
            let client = try await Client.connect(endpoint)
            let started = ContinuousClock.now
            for block in 0..<100 {
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for i in 0..<1000 {
                        group.addTask {
                            let text = "\(block * 1000 + i)"
                            let answer = try await client.request(text, options: CallOptions(timeout: .seconds(60))).text
                            guard answer == text else { throw Wrong(answer: answer) }
                        }
                    }
                    try await group.waitForAll()
                }
            }
            let spent = ContinuousClock.now - started
            print("100,000 calls, 1,000 at once, in \(spent)")
        }
    }

    func testClientsStreamsAndErrorsThatGo() async throws {
        try await leavesNothing {
            for round in 0..<200 {
                let client = try await Client.connect(endpoint)
                let stream = try client.stream("/test/count", "1000000 100")
                _ = try await stream.receive()
                let idle = try client.open("/echo")
                if round % 2 == 0 { try await idle.send("x") }
                _ = try? await client.call("/no", "x")
                let response = try await client.callWithResponse("/echo", "kept")
                if round % 3 == 0 {
                    // It would wait for them.
                    stream.cancel()
                    idle.cancel()
                    try await client.close()
                }
                XCTAssertEqual(response.message.text, "kept")
            }
        }
    }
}
