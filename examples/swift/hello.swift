// A first call: hello tcp://127.0.0.1:8080
import Valkyrie

let client = try await Client.connect(CommandLine.arguments.dropFirst().first ?? "tcp://127.0.0.1:8080")
let reply = try await client.request("Hello, World!")
print(String(decoding: reply, as: UTF8.self))
try await client.close()
