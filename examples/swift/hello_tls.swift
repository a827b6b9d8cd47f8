// A first call over TLS. Usage: hello_tls [endpoint authorities.pem]
import Valkyrie

let arguments = CommandLine.arguments.dropFirst()
let file = arguments.dropFirst().first ?? "certificates/ca.pem"
let options = ConnectOptions(trustedCertificates: .file(file))
let client = try await Client.connect(arguments.first ?? "tls://localhost:8443", options: options)
let reply = try await client.request("Hello, World!")
print(String(decoding: reply, as: UTF8.self))
try await client.close()
