// The measuring loop of the JVM's peers, as ../node/harness.js has it: MainKt --peer NAME --addr … --spec …. To add a peer: a class of
// Client, and its name in `main`.
package bench

import com.sun.management.OperatingSystemMXBean
import java.io.File
import java.lang.management.ManagementFactory
import kotlin.system.exitProcess
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.runBlocking

/** One connection. */
interface Client {
    /** The bytes that came back. */
    suspend fun echo(payload: ByteArray): Int

    /** Calls for so long, so many at once; what each took, in nanoseconds. */
    suspend fun load(payload: ByteArray, inFlight: Int, seconds: Double): Samples = coroutineScope {
        val end = System.nanoTime() + (seconds * 1e9).toLong()
        val all = List(inFlight) {
            async(Dispatchers.Default) {
                val samples = Samples()
                while (true) {
                    val began = System.nanoTime()
                    if (began >= end) break
                    check(echo(payload) == payload.size) { "short reply" }
                    samples.add(System.nanoTime() - began)
                }
                samples
            }
        }
        all.awaitAll().reduce { all, some -> all.apply { add(some) } }
    }

    suspend fun close()
}

class Samples {
    private var values = LongArray(1024)
    var size = 0
        private set

    fun add(value: Long) {
        if (size == values.size) values = values.copyOf(2 * size)
        values[size++] = value
    }

    fun add(others: Samples) = repeat(others.size) { add(others.values[it]) }

    fun facts(): MutableMap<String, Any> {
        check(size > 0) { "no samples" }
        val sorted = values.copyOf(size).apply { sort() }
        fun at(quantile: Double) = sorted[((size - 1) * quantile).toInt()] / 1e3
        return mutableMapOf("p50_us" to at(.5), "p99_us" to at(.99), "p999_us" to at(.999), "max_us" to at(1.0), "n" to size)
    }
}

/** CPU seconds of the server and of this process, since it was made. */
class Window(private val pids: List<String>) {
    private val server = serverCpu()
    private val client = CPU.processCpuTime
    private val began = System.nanoTime()

    /** Seconds, and those of the server and of the client. */
    fun end() = Triple((System.nanoTime() - began) / 1e9, serverCpu() - server, (CPU.processCpuTime - client) / 1e9)

    private fun serverCpu() = pids.sumOf { pid ->
        File("/proc/$pid/task").listFiles().orEmpty().sumOf { File(it, "schedstat").readText().substringBefore(' ').toLong() }
    } / 1e9

    private companion object {
        val CPU = ManagementFactory.getOperatingSystemMXBean() as OperatingSystemMXBean
    }
}

/** A JVM compiles what it runs often: until then nothing is measured. */
private const val WARM_SECONDS = 3.0

private suspend fun run(connect: suspend () -> Client, spec: Map<String, String>, pids: List<String>): Map<String, Any> {
    val payload = ByteArray(spec["size"]?.toInt() ?: 32) { 0x5a }
    val connectOnce: suspend () -> Long = {
        val began = System.nanoTime()
        val client = connect()
        client.echo(payload)
        (System.nanoTime() - began).also { client.close() }
    }
    return when (spec["w"]) {
        "unary" -> {
            val client = connect()
            val (inFlight, seconds) = (spec["inflight"]?.toInt() ?: 1) to spec.getValue("secs").toDouble()
            val warm = client.load(payload, inFlight, maxOf(WARM_SECONDS, 2 * seconds))
            val window = Window(pids)
            val samples = client.load(payload, inFlight, seconds)
            val (took, server, own) = window.end()
            client.close()
            val count = samples.size
            samples.facts() + mapOf(
                "rps" to count / took, "warm" to warm.size, "srv_cpu_s_per_M" to server / count * 1e6, "cli_cpu_s_per_M" to own / count * 1e6,
            )
        }
        "connect" -> {
            val count = spec.getValue("n").toInt()
            repeat(count) { connectOnce() }
            val window = Window(pids)
            val samples = Samples()
            repeat(count) { samples.add(connectOnce()) }
            val (_, server, own) = window.end()
            samples.facts() + mapOf("srv_cpu_us" to server / count * 1e6, "cli_cpu_us" to own / count * 1e6)
        }
        else -> error("unsupported")
    }
}

fun main(arguments: Array<String>) {
    val flags = arguments.toList().chunked(2).associate { (name, value) -> name to value }
    val (host, port) = flags.getValue("--addr").split(':')
    val connect: suspend () -> Client = when (val peer = flags.getValue("--peer")) {
        "valkyrie" -> suspend { Valkyrie.connect(host, port.toInt()) }
        "grpc" -> suspend { Grpc(host, port.toInt(), direct = false) }
        "grpc-direct" -> suspend { Grpc(host, port.toInt(), direct = true) }
        "raw" -> suspend { Raw(host, port.toInt()) }
        else -> error("no peer $peer")
    }
    val pids = flags["--pid"].orEmpty().split(',').filter { it.isNotEmpty() }
    // A list of flat objects, whose numbers and words have no comma inside.
    val specs = flags.getValue("--spec").removeSurrounding("[", "]").split("}, {").map { one ->
        one.trim('{', '}').split(", ").associate { fact -> fact.split(": ").map { it.trim('"') }.let { (key, value) -> key to value } }
    }
    for (spec in specs) {
        val result = try {
            runBlocking { run(connect, spec, pids) }
        } catch (error: Exception) {
            mapOf("error" to "$error".filter { it != '"' && it != '\\' }.take(160))
        }
        val facts = result + ("label" to spec.getValue("label"))
        println(facts.entries.joinToString(", ", "{", "}") { (key, value) -> "\"$key\": " + if (value is Number) value else "\"$value\"" })
    }
    exitProcess(0)
}
