package dev.valkyrie.tests

import dev.valkyrie.StatusException
import java.nio.file.Path
import java.util.concurrent.TimeUnit
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** More than any step of a test takes; a hang ends with it. */
val PATIENCE: Duration = 60.seconds

/**
 * A conformance server, which ends with this process: VALKYRIE_TEST_SERVER is its program. With VALKYRIE_TEST_ENDPOINT, that endpoint
 * stands for each of its own.
 */
object Server {
    private val endpoints: Map<String, String>

    init {
        val given = System.getenv("VALKYRIE_TEST_ENDPOINT")
        endpoints =
            if (given != null) {
                mapOf("tcp" to given)
            } else {
                val program = System.getenv("VALKYRIE_TEST_SERVER") ?: error("VALKYRIE_TEST_SERVER names no program")
                val process = ProcessBuilder(program).redirectError(ProcessBuilder.Redirect.DISCARD).start()
                // It ends when its standard input does.
                Runtime.getRuntime().addShutdownHook(Thread {
                    process.outputStream.close()
                    process.waitFor(10, TimeUnit.SECONDS)
                })
                val line = process.inputStream.bufferedReader().readLine()
                Regex("\"([a-z_]+)\":\"([^\"]*)\"").findAll(line).associate { it.groupValues[1] to it.groupValues[2] }
            }
    }

    /** Whether it is a process, with every transport. */
    val isProcess: Boolean get() = "tls" in endpoints

    @JvmStatic val tcp: String get() = endpoints.getValue("tcp")

    operator fun get(name: String): String = endpoints.getValue(name)
}

/** A test that suspends. */
fun test(test: suspend CoroutineScope.() -> Unit) = runBlocking { withTimeout(PATIENCE, test) }

/** How [call] fails. */
inline fun failure(call: () -> Unit): StatusException =
    try {
        call()
        throw AssertionError("it did not fail")
    } catch (error: StatusException) {
        error
    }

/** What the library keeps: operations of the native part, and of ours. */
fun inFlight(): List<Int> {
    fun ask(name: String, method: String): Int {
        val type = Class.forName("dev.valkyrie.$name")
        return type.getMethod(method).invoke(type.getField("INSTANCE").get(null)) as Int
    }
    return listOf(ask("Native", "inFlight"), ask("Operations", "getSize"))
}

/** How a program of the tests ended, and what it said. */
class Ended(val code: Int, val said: String)

/** Runs a main class of the tests in a JVM of its own. */
fun java(main: String, vararg arguments: String, flags: List<String> = emptyList()): Ended {
    val java = Path.of(System.getProperty("java.home"), "bin", "java").toString()
    val path = System.getProperty("surefire.test.class.path") ?: System.getProperty("java.class.path")
    val process = ProcessBuilder(listOf(java) + flags + listOf("-cp", path, main) + arguments).redirectErrorStream(true).start()
    val said = process.inputStream.bufferedReader().readText()
    if (!process.waitFor(60, TimeUnit.SECONDS)) {
        process.destroyForcibly()
        throw AssertionError("$main hangs: $said")
    }
    return Ended(process.exitValue(), said)
}
