// What goes wrong, and how it is told: errors tcp://127.0.0.1:8080
import Valkyrie

let client = try await Client.connect(CommandLine.arguments.dropFirst().first ?? "tcp://127.0.0.1:8080")
do {
    _ = try await client.call("/no/such/method", "x", options: CallOptions(timeout: .seconds(1.5)))
} catch let error as StatusError {
    print("\(error.code): \(error.message) (\(error.reason))")
}
try await client.close()
