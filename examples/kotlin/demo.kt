// The main job, a line per thing done. After "ready" it waits for the server to stop: DemoKt ENDPOINT FILE…
package demo

import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import dev.valkyrie.StatusException
import java.io.File
import java.security.MessageDigest
import java.util.Locale
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.TimeMark
import kotlin.time.TimeSource
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.launch

private fun hex(digest: MessageDigest) = digest.digest().joinToString("") { "%02x".format(it) }

private fun seconds(began: TimeMark) = "%.3f".format(Locale.ROOT, began.elapsedNow().inWholeMicroseconds / 1e6)

private suspend fun call(client: Client) = println("call ${client.request("Hello, World!").decodeToString()}")

/** The chunks of files. */
private fun chunks(paths: List<String>) = flow {
    val buffer = ByteArray(64 * 1024)
    for (path in paths) {
        File(path).inputStream().use { file ->
            while (true) {
                val count = file.read(buffer)
                if (count < 0) break
                emit(buffer.copyOf(count))
            }
        }
    }
}.flowOn(Dispatchers.IO)

/** The files go up and come down on one stream. Each end hashes what it gets. */
private suspend fun transfer(client: Client, paths: List<String>) {
    val (sent, received) = List(2) { MessageDigest.getInstance("SHA-256") }
    var bytes = 0L
    val began = TimeSource.Monotonic.markNow()
    client.open("/echo", CallOptions().metadata("want-digest", "sha-256")).use { stream ->
        coroutineScope {
            launch {
                chunks(paths).collect { chunk ->
                    sent.update(chunk)
                    bytes += chunk.size
                    stream.send(chunk)
                }
                stream.halfClose()
            }
            launch { stream.messages().collect(received::update) }
        }
        println("bytes $bytes\nseconds ${seconds(began)}")
        println("sent ${hex(sent)}\nreceived ${hex(received)}")
        println("server ${stream.trailers["digest-sha-256"]}")
    }
}

/** None of the calls can end before all of them are open, on one connection. */
private suspend fun inFlight(client: Client, count: Int) {
    val began = TimeSource.Monotonic.markNow()
    val streams = List(count) { client.open("/echo") }
    streams.forEachIndexed { number, stream -> stream.send("$number") }
    streams.forEach { it.halfClose() }
    val answers = streams.map { it.recv() }
    streams.forEach { it.use { stream -> stream.recv() } }
    val answered = answers.withIndex().count { (number, message) -> message?.decodeToString() == "$number" }
    println("in_flight $answered\nin_flight_seconds ${seconds(began)}")
}

/** A call that waits for an answer is given up; the same connection goes on. */
private suspend fun cancel(client: Client) = coroutineScope {
    // Undispatched: the call has begun when this has.
    val waiting = async(start = CoroutineStart.UNDISPATCHED) { client.stream("/echo", flow { awaitCancellation() }).collect {} }
    waiting.cancel()
    val cancelled = try {
        waiting.await()
        false
    } catch (_: CancellationException) {
        true
    }
    client.request("still here")
    println("cancelled $cancelled")
}

/** How something ends. */
private suspend fun status(call: suspend () -> Unit): String =
    try {
        call()
        "OK"
    } catch (error: StatusException) {
        "${error.code} ${error.reason}"
    }

private suspend fun deadline(client: Client) {
    val options = CallOptions().apply { timeout = 100.milliseconds }
    println("deadline ${status { client.open("/echo", options).use { it.recv() } }}")
}

/** The server stops between two messages: one call ends well in the time it is given, another does not end. */
private suspend fun serverStops(client: Client) {
    val (ends, stays) = List(2) { client.open("/echo") }
    for (stream in listOf(ends, stays)) {
        stream.send("before")
        stream.recv()
    }
    println("ready")
    var refused: String
    do {
        // So short a time leaves none to wait for the server's return.
        refused = status { client.call("/echo", "anyone there?") { timeout = 500.milliseconds } }
    } while (refused == "OK")
    println("refused $refused")
    ends.send("after")
    ends.halfClose()
    ends.messages().collect { println("finished OK ${it.decodeToString()}") }
    println("cut ${status { stays.recv() }}")
    ends.close()
    stays.close()
}

suspend fun main(arguments: Array<String>) {
    Client.connect(arguments[0]).use { client ->
        call(client)
        transfer(client, arguments.drop(1))
        inFlight(client, 1000)
        cancel(client)
        deadline(client)
        serverStops(client)
    }
}
