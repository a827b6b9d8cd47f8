// A first call: HelloKt tcp://127.0.0.1:8080
package hello

import dev.valkyrie.Client

suspend fun main(arguments: Array<String>) {
    val client = Client.connect(arguments.firstOrNull() ?: "tcp://127.0.0.1:8080")
    val reply = client.request("Hello, World!")
    println(reply.decodeToString())
    client.shutdown()
}
