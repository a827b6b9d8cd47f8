// A first call over TLS: Hello_tlsKt [endpoint authorities.pem]
package hello_tls

import dev.valkyrie.Client
import dev.valkyrie.Pem

suspend fun main(arguments: Array<String>) {
    val endpoint = arguments.getOrElse(0) { "tls://localhost:8443" }
    val file = arguments.getOrElse(1) { "certificates/ca.pem" }
    val client = Client.connect(endpoint) { trustedCertificates = Pem.file(file) }
    val reply = client.request("Hello, World!")
    println(reply.decodeToString())
    client.shutdown()
}
