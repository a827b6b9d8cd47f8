// What goes wrong, and how it is told: ErrorsKt tcp://127.0.0.1:8080
package errors

import dev.valkyrie.Client
import dev.valkyrie.StatusException
import kotlin.time.Duration.Companion.seconds

suspend fun main(arguments: Array<String>) {
    val client = Client.connect(arguments.firstOrNull() ?: "tcp://127.0.0.1:8080")
    try {
        client.call("/no/such/method", "x") { timeout = 1.5.seconds }
    } catch (error: StatusException) {
        println("${error.code}: ${error.message} (${error.reason})")
    }
    client.shutdown()
}
