// Messages both ways: StreamKt tcp://127.0.0.1:8080
package stream

import dev.valkyrie.Client
import kotlinx.coroutines.flow.flowOf
import kotlinx.coroutines.flow.map

suspend fun main(arguments: Array<String>) {
    val client = Client.connect(arguments.firstOrNull() ?: "tcp://127.0.0.1:8080")
    val words = flowOf("one", "two", "three").map { it.encodeToByteArray() }
    client.stream("/echo", words).collect { println(it.decodeToString()) }
    client.shutdown()
}
