// Messages both ways: stream tcp://127.0.0.1:8080
import Valkyrie

let client = try await Client.connect(CommandLine.arguments.dropFirst().first ?? "tcp://127.0.0.1:8080")
let stream = try client.open("/echo")
for word in ["one", "two", "three"] { try await stream.send(word) }
try await stream.halfClose()
for try await message in stream { print(String(decoding: message, as: UTF8.self)) }
try await client.close()
