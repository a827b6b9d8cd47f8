// A call with a deadline that is retried, behind a circuit breaker: retries tcp://127.0.0.1:8080,tcp://127.0.0.1:8081
import Valkyrie

let serviceConfig = """
    {"methods": [{"names": ["*"], "retry": {"max_attempts": 4}, "breaker": {"open_ms": 10000}}]}
    """

let endpoint = CommandLine.arguments.dropFirst().first ?? "tcp://127.0.0.1:8080"
let client = try await Client.connect(endpoint, options: ConnectOptions(serviceConfig: serviceConfig))
do {
    let options = CallOptions(timeout: .seconds(2), idempotent: true)
    print(String(decoding: try await client.call("/echo", "Hello, World!", options: options), as: UTF8.self))
} catch let error as StatusError {
    print("\(error.code): \(error.message)\n\(error.timeline)")
}
try await client.close()
