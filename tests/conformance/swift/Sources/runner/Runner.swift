// The Swift runner: ../../../README.md has its variables and its output.
import Foundation
import Valkyrie

let environment = ProcessInfo.processInfo.environment

/// What every case shares.
struct Settings: Sendable {
    let endpoint: String
    let absent: String
    let options: ConnectOptions

    init() {
        let endpoint = environment["VALKYRIE_CONFORMANCE_ENDPOINT"] ?? ""
        self.endpoint = endpoint
        absent = environment["VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT"] ?? ""
        let sealed = environment["VALKYRIE_CONFORMANCE_SEALED"] == "1"
        var options = ConnectOptions()
        // Trust is for what is encrypted.
        if sealed || ["tls", "wss", "quic"].contains(where: { endpoint.hasPrefix($0 + ":") }) {
            options.trustedCertificates = .file(environment["VALKYRIE_CONFORMANCE_CERTIFICATES"] ?? "")
            options.sealed = sealed
        }
        self.options = options
    }
}

struct Mismatch: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

@main
struct Runner {
    static func main() async throws {
        // Only says which core the package has.
        if CommandLine.arguments.dropFirst() == ["--version"] { return print(Valkyrie.version) }
        let settings = Settings()
        let text = try Data(contentsOf: URL(fileURLWithPath: environment["VALKYRIE_CONFORMANCE_CASES"] ?? ""))
        guard let cases = try JSONSerialization.jsonObject(with: text) as? [[String: Any]] else {
            throw Mismatch("the cases are no list of objects")
        }
        // Not on the main actor.
        try await Task.detached { try await run(cases, settings) }.value
    }

    private static func run(_ cases: [[String: Any]], _ settings: Settings) async throws {
        let client = try await Client.connect(settings.endpoint, options: settings.options)
        for (number, fields) in cases.enumerated() {
            let one = Case(client, settings, fields, "swift\(getpid())x\(number)")
            var (ok, detail) = (true, "")
            do {
                detail = try await limited { try await one.run() }
            } catch {
                (ok, detail) = (false, "\(error)")
            }
            let said: [String: Any] = ["case": one.string("case") ?? "", "ok": ok, "detail": detail]
            let line = try JSONSerialization.data(withJSONObject: said)
            print(String(decoding: line, as: UTF8.self))
            fflush(stdout)
        }
        try await client.close()
    }

    /// A hang is a failed case.
    private static func limited(_ body: @escaping @Sendable () async throws -> String) async throws -> String {
        let work = Task { try await body() }
        let timer = Task {
            try await Task.sleep(for: .seconds(60))
            work.cancel()
        }
        defer { timer.cancel() }
        do {
            return try await work.value
        } catch is CancellationError {
            throw Mismatch("no end within 60 s")
        }
    }
}
