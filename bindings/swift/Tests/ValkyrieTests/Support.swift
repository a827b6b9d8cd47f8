// What the tests share: whom they call, and how they wait.
import CValkyrie
import Foundation
import Valkyrie
import XCTest

/// A conformance server, or the one inside the library.
let endpoint = ProcessInfo.processInfo.environment["VALKYRIE_TEST_ENDPOINT"] ?? "echo://core"
let scheme = String(endpoint.prefix { $0 != ":" })

/// A text that no other test's server has seen.
func fresh(_ name: String) -> String {
    "swift-\(getpid())-\(name)-\(UInt64.random(in: 0...UInt64.max))"
}

extension Array where Element == UInt8 {
    var text: String { String(decoding: self, as: UTF8.self) }
}

extension Client {
    /// Waits until a handler of `/test/hang` that got `token` has started, or was dropped.
    func hang(_ token: String, _ until: String) async throws {
        let metadata: Metadata = ["until": .text(until)]
        _ = try await call("/test/hang_stats", token, options: CallOptions(timeout: .seconds(30), metadata: metadata))
    }

    /// A client of a fresh server.
    func privately(_ options: ConnectOptions = ConnectOptions()) async throws -> Client {
        try await Client.connect(try await call("/test/private", scheme).text, options: options)
    }
}

/// What a call fails with.
func failure(_ call: () async throws -> some Any, file: StaticString = #filePath, line: UInt = #line) async -> StatusError {
    do {
        _ = try await call()
        XCTFail("it did not fail", file: file, line: line)
    } catch let error as StatusError {
        return error
    } catch {
        XCTFail("not a StatusError: \(error)", file: file, line: line)
    }
    return await nothing()
}

private func nothing() async -> StatusError {
    do {
        _ = try await Client.connect("")
        fatalError("the empty endpoint was taken")
    } catch {
        return error as! StatusError
    }
}

/// Whether a call ended because its task was cancelled.
func isCancelled(_ call: () async throws -> some Any) async -> Bool {
    do {
        _ = try await call()
        return false
    } catch {
        return error is CancellationError
    }
}

/// Waits until something holds that other threads bring about.
func eventually(_ what: String, file: StaticString = #filePath, line: UInt = #line, _ holds: () -> Bool) async throws {
    let end = ContinuousClock.now.advanced(by: .seconds(30))
    while !holds() {
        guard ContinuousClock.now < end else { return XCTFail("never: \(what)", file: file, line: line) }
        try await Task.sleep(for: .milliseconds(1))
    }
}

/// What the library keeps for this process, beside the queue.
func alive() -> UInt { valkyrie_alive() }

/// Runs a test, and then waits until it has left nothing with the library.
func leavesNothing(_ body: () async throws -> Void) async throws {
    // The queue is made once.
    _ = try await Client.connect("echo://core").request("x")
    try await eventually("the first client goes") { alive() == 1 && valkyrie_in_flight() == 0 }
    try await body()
    try await eventually("\(alive()) objects, \(valkyrie_in_flight()) in flight") { alive() == 1 && valkyrie_in_flight() == 0 }
}
