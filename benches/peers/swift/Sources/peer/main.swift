// Valkyrie in Swift, with the measuring loop of ../../../node/harness.js.
import Foundation
import Valkyrie

struct Failure: Error, CustomStringConvertible {
    let description: String
}

func flag(_ name: String) -> String? {
    let arguments = CommandLine.arguments
    guard let at = arguments.firstIndex(of: name), at + 1 < arguments.count else { return nil }
    return arguments[at + 1]
}

func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

/// CPU seconds of the server and of this process, since it was made.
struct Window {
    private static let pids = (flag("--pid") ?? "").split(separator: ",").map(String.init)
    private let server = Window.serverCpu(), client = Window.ownCpu(), began = now()

    /// Seconds, and those of the server and of the client.
    func end() -> (Double, Double, Double) {
        (Double(now() - began) / 1e9, Window.serverCpu() - server, Window.ownCpu() - client)
    }

    private static func serverCpu() -> Double {
        var nanos: UInt64 = 0
        for pid in pids {
            for task in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? [] {
                let text = try? String(contentsOfFile: "/proc/\(pid)/task/\(task)/schedstat", encoding: .utf8)
                nanos += text?.split(separator: " ").first.flatMap { UInt64($0) } ?? 0
            }
        }
        return Double(nanos) / 1e9
    }

    private static func ownCpu() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}

func facts(_ samples: [UInt64]) throws -> [String: Any] {
    guard !samples.isEmpty else { throw Failure(description: "no samples") }
    let sorted = samples.sorted()
    func at(_ quantile: Double) -> Double { Double(sorted[Int(Double(sorted.count - 1) * quantile)]) / 1e3 }
    return ["p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": at(1), "n": sorted.count]
}

func load(_ client: Client, _ payload: [UInt8], _ inFlight: Int, _ seconds: Double) async throws -> [UInt64] {
    let end = now() + UInt64(seconds * 1e9)
    return try await withThrowingTaskGroup(of: [UInt64].self) { group in
        for _ in 0..<inFlight {
            group.addTask {
                var samples: [UInt64] = []
                while true {
                    let began = now()
                    if began >= end { return samples }
                    guard try await client.call("/echo", payload).count == payload.count else {
                        throw Failure(description: "short reply")
                    }
                    samples.append(now() - began)
                }
            }
        }
        return try await group.reduce(into: []) { $0 += $1 }
    }
}

func run(_ spec: [String: Any]) async throws -> [String: Any] {
    let endpoint = "tcp://\(flag("--addr") ?? "")"
    let payload = [UInt8](repeating: 0x5a, count: spec["size"] as? Int ?? 32)
    switch spec["w"] as? String {
    case "unary":
        let client = try await Client.connect(endpoint)
        let inFlight = spec["inflight"] as? Int ?? 1
        let seconds = spec["secs"] as? Double ?? 0.3
        let warm = try await load(client, payload, inFlight, 2 * seconds)
        let window = Window()
        let samples = try await load(client, payload, inFlight, seconds)
        let (took, server, own) = window.end()
        try await client.close()
        let count = Double(samples.count)
        return try facts(samples).merging([
            "rps": count / took, "warm": warm.count, "srv_cpu_s_per_M": server / count * 1e6, "cli_cpu_s_per_M": own / count * 1e6,
        ]) { $1 }
    case "connect":
        let count = spec["n"] as? Int ?? 100
        var samples: [UInt64] = []
        var window = Window()
        for index in 0..<count + 3 {
            if index == 3 { window = Window() }
            let began = now()
            let client = try await Client.connect(endpoint)
            _ = try await client.call("/echo", payload)
            if index >= 3 { samples.append(now() - began) }
            try await client.close()
        }
        let (_, server, own) = window.end()
        return try facts(samples).merging([
            "srv_cpu_us": server / Double(count) * 1e6, "cli_cpu_us": own / Double(count) * 1e6,
        ]) { $1 }
    default:
        throw Failure(description: "unsupported")
    }
}

let specs = try JSONSerialization.jsonObject(with: Data((flag("--spec") ?? "[]").utf8)) as? [[String: Any]] ?? []
for spec in specs {
    var result: [String: Any]
    do {
        // Not on the main actor, to which each answer would hop.
        result = try await Task.detached { try await run(spec) }.value
    } catch {
        result = ["error": "\(error)".prefix(160).description]
    }
    result["label"] = spec["label"]
    print(String(decoding: try JSONSerialization.data(withJSONObject: result), as: UTF8.self))
    fflush(stdout)
}
