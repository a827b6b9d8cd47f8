// A call with a deadline that is retried, behind a circuit breaker: RetriesKt tcp://127.0.0.1:8080,tcp://127.0.0.1:8081
package retries

import dev.valkyrie.Client
import dev.valkyrie.StatusException
import kotlin.time.Duration.Companion.seconds

const val CONFIG = """{"methods": [{"names": ["*"], "retry": {"max_attempts": 4}, "breaker": {"open_ms": 10000}}]}"""

suspend fun main(arguments: Array<String>) {
    val client = Client.connect(arguments.firstOrNull() ?: "tcp://127.0.0.1:8080") { serviceConfig = CONFIG }
    try {
        val reply = client.call("/echo", "Hello, World!") {
            idempotent = true
            timeout = 2.seconds
        }
        println(reply.decodeToString())
    } catch (error: StatusException) {
        println("${error.code}: ${error.message}\n${error.timeline}")
    }
    client.shutdown()
}
