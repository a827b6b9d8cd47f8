// The Kotlin runner: ../README.md has its variables, its actions and its output. It knows nothing of a single case.
package dev.valkyrie.conformance

import dev.valkyrie.Breaker
import dev.valkyrie.BreakerState
import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import dev.valkyrie.ConnectOptions
import dev.valkyrie.Connectivity
import dev.valkyrie.IdempotencyKey
import dev.valkyrie.Identity
import dev.valkyrie.LogLevel
import dev.valkyrie.Logger
import dev.valkyrie.Metadata
import dev.valkyrie.Pem
import dev.valkyrie.Response
import dev.valkyrie.Security
import dev.valkyrie.StatusException
import dev.valkyrie.Stream
import dev.valkyrie.TokenSource
import dev.valkyrie.Valkyrie
import java.io.File
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.time.Instant
import java.time.temporal.ChronoUnit
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.TimeoutCancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.supervisorScope
import kotlinx.coroutines.withTimeout

private val CASE_TIMEOUT = 60.seconds
private val EMPTY = ByteArray(0)

fun main() = runBlocking(Dispatchers.Default) {
    fun variable(name: String) = System.getenv("VALKYRIE_CONFORMANCE_$name") ?: error("VALKYRIE_CONFORMANCE_$name is not set")
    val settings = Settings(
        variable("ENDPOINT"),
        variable("ABSENT_ENDPOINT"),
        variable("CERTIFICATES"),
        System.getenv("VALKYRIE_CONFORMANCE_SEALED") == "1",
    )
    val client = settings.connect(settings.endpoint)
    val process = ProcessHandle.current().pid()
    Json(File(variable("CASES")).readText()).list().forEachIndexed { number, fields ->
        val one = Case(client, settings, fields, "kotlin${process}x$number")
        var ok = true
        val detail = try {
            withTimeout(CASE_TIMEOUT) { one.run() }
        } catch (error: Mismatch) {
            ok = false
            error.message.orEmpty()
        } catch (_: TimeoutCancellationException) {
            ok = false
            "no end within $CASE_TIMEOUT"
        } catch (error: Exception) {
            ok = false
            error.stackTraceToString()
        }
        println("""{"case":${quoted(fields["case"].toString())},"ok":$ok,"detail":${quoted(detail)}}""")
    }
    client.close()
}

private class Mismatch(message: String) : Exception(message)

private class Settings(val endpoint: String, val absent: String, certificates: String, private val sealed: Boolean) {
    val scheme = endpoint.substringBefore(':')

    // Trust is for what is encrypted.
    private val trusted = if (sealed || scheme in setOf("tls", "wss", "quic")) Pem.file(certificates) else null

    fun options(more: ConnectOptions.() -> Unit = {}) = ConnectOptions().apply {
        trustedCertificates = trusted
        sealed = this@Settings.sealed
        more()
    }

    suspend fun connect(endpoint: String, more: ConnectOptions.() -> Unit = {}) = Client.connect(endpoint, options(more))
}

/** A reply, or an error in the same shape. */
private class Got(
    val message: ByteArray = EMPTY,
    val metadata: Metadata = Metadata(),
    val trailers: Metadata = Metadata(),
    val code: String = "OK",
    val error: StatusException? = null,
) {
    val reason: String get() = error?.reason ?: ""

    override fun toString() = "$code $reason ${error?.message.orEmpty()} ${message.decodeToString()}".take(120)
}

private fun failed(error: Throwable): Got =
    when (error) {
        is StatusException -> {
            val code = error.code.name
            Got(metadata = error.metadata, trailers = error.trailers, code = code, error = error)
        }
        is TimeoutCancellationException -> throw error
        // A local cancel is the host's own kind.
        is CancellationException -> Got(code = "CANCELLED")
        else -> throw error
    }

private suspend fun outcome(call: suspend () -> Response): Got =
    try {
        call().let { Got(it.message, it.metadata, it.trailers) }
    } catch (error: Exception) {
        failed(error)
    }

private class Case(
    private val client: Client,
    private val settings: Settings,
    private val fields: Map<String, Any>,
    private val token: String,
) {
    private val count = number("count") ?: 0

    private fun number(key: String) = (fields[key] as? Long)?.toInt()

    private fun text(key: String) = (fields[key] as? String)?.replace("\$TOKEN", token)?.replace("\$ABSENT", settings.absent)

    private val message: ByteArray
        get() = text("text")?.encodeToByteArray()
            ?: text("hex")?.let(::fromHex)
            ?: ByteArray(number("size") ?: 0) { (it % 251).toByte() }

    // What is no UTF-8 is a text of surrogates that stand alone: only such text is none.
    private val method: String
        get() {
            val bytes = fromHex(text("method_hex") ?: return text("method").orEmpty())
            return try {
                Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
            } catch (_: CharacterCodingException) {
                bytes.joinToString("") { (if (it >= 0) it.toInt() else 0xdc00 + (it.toInt() and 0xff)).toChar().toString() }
            }
        }

    private fun pattern(i: Int) = ByteArray(number("size") ?: 0).apply { fill((i % 251).toByte()) }

    private val options: CallOptions
        get() = CallOptions().apply {
            metadata = entries(text("metadata"))
            number("metadata_size")?.let { metadata("x-large", "x".repeat(it)) }
            timeout = number("timeout_ms")?.milliseconds
            number("idempotent")?.let { idempotent = it == 1 }
            idempotencyKey =
                if (number("draw_idempotency_key") == 1) IdempotencyKey.DRAWN else text("idempotency_key")?.let(IdempotencyKey::of)
        }

    private suspend fun call(client: Client = this.client, options: CallOptions = this.options, message: ByteArray = this.message) =
        outcome { client.callWithResponse(method, message, options) }

    private suspend fun echo(client: Client) = outcome { client.callWithResponse("/echo", "x".encodeToByteArray()) }

    private suspend fun check(got: Got) {
        val wrong = mutableListOf<String>()
        fun compare(what: String, expected: Any?, value: Any?) {
            if (expected != null && expected != value) wrong += "$what: expected $expected, got $value"
        }
        compare("code", fields["code"], got.code)
        compare("code number", number("code_number"), got.error?.number ?: 0)
        compare("reason", fields["reason"], got.reason)
        compare("status message", text("status_message"), got.error?.message ?: "")
        val detail = got.error?.details?.firstOrNull()
        compare("detail type", fields["detail_type"], detail?.type)
        compare("detail", fields["detail_text"], detail?.value?.decodeToString())
        compare("pushback", number("pushback_ms")?.milliseconds, got.error?.pushback)
        compare("reply", fields["reply_text"], got.message.decodeToString())
        compare("reply size", number("reply_size"), got.message.size)
        for ((key, metadata) in listOf("expect_metadata" to got.metadata, "expect_trailers" to got.trailers)) {
            text(key)?.let { compare(key, entries(it).toString(), metadata.toString()) }
            text(key)?.let { compare(key, entries(it), metadata) }
        }
        if (number("reply_echo") == 1 && !got.message.contentEquals(message)) {
            wrong += "the reply of ${got.message.size} bytes is not the message"
        }
        number("reply_max")?.let { most ->
            if (got.message.decodeToString().toIntOrNull() !in 1..most) wrong += "reply: expected 1 to $most, got $got"
        }
        if (wrong.isNotEmpty()) throw Mismatch("${wrong.joinToString("; ")} ($got)")
        if (number("then_dropped") == 1) hangUntil("dropped")
    }

    private suspend fun hangUntil(until: String): String =
        client.call("/test/hang_stats", token) {
            metadata("until", until)
            timeout = 30.seconds
        }.decodeToString()

    /** A client for a fresh server. */
    private suspend fun fresh() =
        settings.connect(client.call("/test/private", settings.scheme).decodeToString()) { serviceConfig = text("service_config") }

    private suspend fun shutdown(client: Client, how: String) {
        outcome { client.callWithResponse("/test/shutdown", how.encodeToByteArray()) }
    }

    /** Receives to the end: how many messages came, and how it ended. */
    private suspend fun receiveAll(stream: Stream, from: Int = 0, isRight: (ByteArray, Int) -> Boolean = { _, _ -> true }): Pair<Int, Got> {
        var count = from
        try {
            while (true) {
                val message = stream.recv() ?: return count to Got(metadata = stream.metadata, trailers = stream.trailers)
                if (!isRight(message, count)) throw Mismatch("message $count of ${message.size} bytes is not the pattern")
                count++
            }
        } catch (error: StatusException) {
            return count to failed(error)
        }
    }

    private suspend fun stream(client: Client, message: ByteArray): Stream {
        val stream = client.open(text("method").orEmpty(), options)
        try {
            stream.send(message)
            stream.halfClose()
        } catch (_: StatusException) {
            // Receiving says how it ended.
        }
        return stream
    }

    suspend fun run(): String {
        when (val action = fields["action"]) {
            "request" -> check(outcome { Response(text("text")?.let { client.request(it) } ?: client.request(message)) })
            "unary" -> check(call())
            "twice" -> twice()
            "stream_with_key" -> check(client.open(text("method").orEmpty(), options).use { receiveAll(it).second })
            "server_stream" -> stream(client, text("text").orEmpty().encodeToByteArray()).use { stream ->
                val (came, got) = receiveAll(stream) { message, i -> message.contentEquals(pattern(i)) }
                if (came != count) throw Mismatch("expected $count messages, got $came, then $got")
                check(got)
            }
            "client_stream" -> clientStream()
            "bidi" -> bidi()
            "cancel_before" -> check(cancelled(CompletableDeferred(Unit)))
            "cancel_during" -> check(during(this))
            "cancel_times" -> return cancelTimes()
            "cancel_after" -> supervisorScope {
                val call = async { call() }
                check(call.await())
                call.cancel()
                check(call())
            }
            "cancel_stream" -> client.open(text("method").orEmpty(), options).use { stream ->
                stream.send(message)
                hangUntil("started")
                stream.cancel()
                check(receiveAll(stream).second)
            }
            "leave_stream" -> leaveStream()
            "in_flight" -> coroutineScope {
                val replies = List(count) { i -> async { call(message = "$i".encodeToByteArray()) } }.awaitAll()
                replies.forEachIndexed { i, got -> if (got.message.decodeToString() != "$i") throw Mismatch("reply $i is $got") }
            }
            "go_away" -> goAway()
            "connect" -> check(outcome { settings.connect(text("endpoint").orEmpty()).callWithResponse("/echo", EMPTY) })
            "connect_with" -> check(connectWith())
            "credentials" -> credentials()
            "configured" -> check(outcome { settings.connect(settings.endpoint) { serviceConfig = text("service_config") }.use { response(it) } })
            "keepalive" -> check(keepalive())
            "reconfigured" -> reconfigured()
            "isolate" -> isolate()
            "metrics" -> metrics()
            "bad_metadata" -> return refused { client.call("/echo", "x", options) }
            "script" -> return script()
            "failover" -> failover()
            // The compiler refuses what is of another type.
            "wrong_type" -> return "the types of Kotlin do not let it through"
            "connectivity" -> return connectivity()
            "breaker_changes" -> breakerChanges()
            "call_closed" -> check(call(settings.connect(settings.endpoint).apply { close() }))
            "double_close" -> settings.connect(settings.endpoint).apply { close() }.close()
            "after_shutdown" -> afterShutdown()
            else -> throw Mismatch("unknown action $action")
        }
        return ""
    }

    private suspend fun response(client: Client) = client.callWithResponse(method, message, options)

    private fun Response(message: ByteArray) = Got(message)

    private suspend fun outcome(call: suspend () -> Any): Got =
        try {
            when (val said = call()) {
                is Response -> Got(said.message, said.metadata, said.trailers)
                is Got -> said
                else -> Got()
            }
        } catch (error: Exception) {
            failed(error)
        }

    private suspend fun twice() {
        val first = call()
        val then = call(message = text("then_message")?.encodeToByteArray() ?: message)
        text("then_code")?.let { if (it != then.code) throw Mismatch("the second call: $then") }
        text("then_reply")?.let { if (it != then.message.decodeToString()) throw Mismatch("the second reply: $then") }
        val replayed = listOf(first, then).map { it.metadata["valkyrie-replayed"] == "true" }
        if (replayed != listOf(false, number("replayed") == 1)) throw Mismatch("replayed: $replayed")
        check(first)
    }

    private suspend fun clientStream() = client.open(text("method").orEmpty(), options).use { stream ->
        try {
            repeat(count) { stream.send(pattern(it)) }
            stream.halfClose()
        } catch (_: StatusException) {
            // The call may be over already; receiving says how it ended.
        }
        var reply = EMPTY
        val (came, got) = receiveAll(stream) { message, _ ->
            reply = message
            true
        }
        if (got.code == "OK" && came != 1) throw Mismatch("expected one reply, got $came")
        check(Got(reply, got.metadata, got.trailers, got.code, got.error))
    }

    private suspend fun bidi() = client.open(text("method").orEmpty(), options).use { stream ->
        suspend fun receive(i: Int) {
            if (stream.recv()?.contentEquals(pattern(i)) != true) throw Mismatch("message $i is not the one sent")
        }
        val lockstep = number("lockstep") == 1
        repeat(count) {
            stream.send(pattern(it))
            if (lockstep) receive(it)
        }
        stream.halfClose()
        if (!lockstep) repeat(count) { receive(it) }
        val (came, got) = receiveAll(stream)
        if (came != 0) throw Mismatch("a message after the last")
        check(got)
    }

    /** The call, in a coroutine that is cancelled when [cancel] is complete. */
    private suspend fun cancelled(cancel: Deferred<Unit>): Got = supervisorScope {
        val call = async { call() }
        cancel.await()
        call.cancel()
        try {
            call.await()
        } catch (error: CancellationException) {
            failed(error)
        }
    }

    private suspend fun during(one: Case, cancelling: () -> Unit = {}): Got = coroutineScope {
        val cancel = CompletableDeferred<Unit>()
        launch {
            one.hangUntil("started")
            cancelling()
            cancel.complete(Unit)
        }
        one.cancelled(cancel)
    }

    private suspend fun cancelTimes(): String {
        val took = List(count) { round ->
            val one = Case(client, settings, fields, "$token-$round")
            var since = 0L
            one.check(during(one) { since = ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now()) })
            val dropped = Regex("\"dropped_us\":(\\d+)").find(one.hangUntil("dropped"))!!.groupValues[1].toLong()
            maxOf(dropped - since, 0)
        }.sorted()
        return "${took[took.size / 2]} µs, ${took.last()} at worst"
    }

    private suspend fun leaveStream() {
        var left = count
        try {
            client.stream(text("method").orEmpty(), message, options).collect { if (--left == 0) throw Left() }
        } catch (_: Left) {
        }
        if (left != 0) throw Mismatch("the stream ended $left messages early")
        check(echo(client))
    }

    private class Left : Exception()

    private suspend fun goAway() {
        val own = fresh()
        stream(own, message).use { stream ->
            repeat(count) { if (stream.recv() == null) throw Mismatch("the stream ended after $it messages") }
            shutdown(own, text("how").orEmpty())
            val (came, got) = receiveAll(stream, count)
            number("total")?.let { if (it != came) throw Mismatch("expected $it messages, got $came, then $got") }
            check(got)
        }
        val after = echo(own)
        if (after.code != fields["then_code"]) throw Mismatch("then: expected ${fields["then_code"]}, got $after")
        own.shutdown()
    }

    // As the case says, and in no other way.
    private suspend fun connectWith() = outcome {
        Client.connect(text("endpoint").orEmpty()) {
            trustedCertificates = text("trusted")?.let(Pem::file)
            revocationLists = text("revoked")?.let(Pem::file)
            identity = text("identity")?.let { Identity(Pem.file(it), Pem.file(text("key").orEmpty())) }
            serverName = text("server_name")
            minSecurity = text("min_security")?.let { Security.valueOf(it.uppercase()) }
            sealed = number("sealed") == 1
        }.use { it.callWithResponse("/echo", "x".encodeToByteArray()) }
    }

    private suspend fun credentials() {
        val source = text("source")
        val token = text("token")
        val asked = java.util.concurrent.atomic.AtomicInteger()
        fun ConnectOptions.credentials() {
            connectTimeout = number("connect_timeout_ms")?.milliseconds
            if (source == null) this.token = token
            else tokenSource = TokenSource {
                val times = asked.incrementAndGet()
                check(!(source == "fails" || (source == "once" && times > 1))) { "no token today" }
                if (source == "silent") awaitCancellation()
                token.orEmpty()
            }
        }
        val fixed = text("endpoint")
        val server = "${settings.scheme} ${text("server") ?: "credentials"}"
        val endpoint = fixed ?: client.call("/test/private", server).decodeToString()
        val logged = CopyOnWriteArrayList<String>()
        Valkyrie.setLogger(Logger { logged.add(it.toString()) }, LogLevel.DEBUG)
        var own: Client? = null
        val got = outcome {
            val options = if (fixed == null) settings.options { credentials() } else ConnectOptions().apply { credentials() }
            own = Client.connect(endpoint, options)
            val client = own!!
            client.open("/echo").use { stream ->
                if (number("hold") == 1) {
                    stream.recv()
                    throw Mismatch("the stream ended well")
                }
                repeat(count - 1) { client.call(method, "") }
                while (asked.get() < (number("asked") ?: 0)) {
                    stream.send("x")
                    stream.recv() ?: throw Mismatch("the stream ended meanwhile")
                    client.call(method, "")
                }
                client.callWithResponse(method, EMPTY)
            }
        }
        own?.shutdown()
        // Its thread may come to it later.
        var waits = 200
        while (got.code == "OK" && logged.none { "connected to" in it } && waits-- > 0) delay(10)
        Valkyrie.setLogger(null)
        val shown = "$got ${got.error?.timeline} ${got.error?.stackTraceToString()} $logged"
        if (token != null && token in shown) throw Mismatch("the token is shown")
        if (got.code == "OK" && logged.none { "connected to" in it }) throw Mismatch("nothing is logged: $logged")
        check(got)
    }

    private suspend fun keepalive() = outcome {
        fun time(key: String) = number(key)?.let { if (it == 0) Duration.ZERO else it.milliseconds }
        settings.connect(settings.endpoint) {
            keepalive = time("keepalive_ms")
            keepaliveTimeout = time("keepalive_timeout_ms")
            keepaliveIdle = time("keepalive_idle_ms")
        }.use { it.callWithResponse("/echo", "x".encodeToByteArray()) }
    }

    private suspend fun reconfigured() {
        settings.connect(settings.endpoint) { serviceConfig = text("service_config") }.use { own ->
            val first = call(own)
            if (first.code != fields["first_code"]) throw Mismatch("the first call: $first")
            check(outcome {
                own.setServiceConfig(text("then_config").orEmpty())
                response(own)
            })
        }
    }

    // Of the server as a whole, and of one of its methods.
    private suspend fun isolate() = settings.connect(settings.endpoint).use { own ->
        suspend fun reason(method: String) =
            outcome { own.callWithResponse(method, "1".encodeToByteArray()) }.reason.ifEmpty { "OK" }
        val other = "/test/sleep"
        val seen = mutableListOf(reason(method))
        val server = own.breakers().first().server
        own.isolate(server)
        seen += listOf(reason(method), reason(other))
        val isolated = own.breakers().any { it.method == null && it.state == BreakerState.ISOLATED }
        own.restore(server)
        seen += reason(method)
        own.isolate(server, method)
        seen += listOf(reason(method), reason(other))
        own.restore(server, method)
        seen += reason(method)
        val restored = own.breakers().all { it.state == BreakerState.CLOSED }
        if (!isolated || !restored || seen.joinToString(" ") != fields["reasons"]) {
            throw Mismatch("isolated $isolated, restored $restored, $seen")
        }
        check(outcome { own.isolate("tcp://192.0.2.1:1") })
    }

    private suspend fun metrics() = settings.connect(settings.endpoint).use { own ->
        repeat(count) { call(own) }
        val text = own.metrics()
        if (text("line") !in text.lines()) throw Mismatch("no ${text("line")} in $text")
    }

    private suspend fun refused(call: suspend () -> Any): String =
        try {
            call()
            throw Mismatch("the argument was taken")
        } catch (error: StatusException) {
            if (error.code.name != "INVALID_ARGUMENT") throw error
            error.message.orEmpty()
        } catch (error: IllegalArgumentException) {
            error.message.orEmpty()
        }

    // The outcomes of its calls, and the core's trace of them.
    private suspend fun script(): String = coroutineScope {
        val own = Client.connect(text("endpoint").orEmpty()) { serviceConfig = text("service_config") }
        val trace = StringBuilder()
        for (step in text("steps").orEmpty().split(';')) {
            var words = step.trim().split(' ')
            var times = 1
            val kind = words[0].last()
            if (kind == 'x' || kind == '&') {
                times = words[0].dropLast(1).toInt()
                words = words.drop(1)
            }
            val method = words[0]
            val options = CallOptions().apply {
                idempotent = "idempotent" in words
                timeout = words.find { it.startsWith("timeout=") }?.substring(8)?.toInt()?.milliseconds
            }
            val outcomes = if (kind == '&') {
                own.call("/script/together/$times", "")
                // In order: a future's call has begun when it is there.
                val begun = List(times) { own.callWithResponseAsync(method, EMPTY, options) }
                begun.map { future ->
                    outcome {
                        try {
                            future.get()
                        } catch (error: java.util.concurrent.ExecutionException) {
                            throw error.cause!!
                        }
                    }
                }
            } else {
                List(times) { outcome { own.callWithResponse(method, EMPTY, options) } }
            }
            for (got in if (method.startsWith("/script/")) emptyList() else outcomes) {
                trace.append("${got.code} ${if (got.code == "OK") got.message.decodeToString() else got.reason}\n")
                val timeline = got.error?.timeline.orEmpty()
                if (timeline.isNotEmpty()) trace.append("  ${timeline.replace("\n", "\n  ")}\n")
            }
        }
        trace.append(own.call("/script/trace", "").decodeToString())
        own.shutdown()
        trace.toString()
    }

    // One of several servers is killed among many calls, 50 at a time, that may be executed twice.
    private suspend fun failover() = coroutineScope {
        val own = settings.connect(text("endpoint").orEmpty())
        val failures = mutableListOf<String>()
        for (first in 0 until count step 50) {
            val calls = List(50) { i ->
                async {
                    val number = "${first + i}".encodeToByteArray()
                    outcome { own.callWithResponse("/echo", number, CallOptions().apply { idempotent = true }) }
                }
            }
            if (first == count / 4 / 50 * 50) outcome { own.callWithResponse("/test/die", EMPTY) }
            calls.awaitAll().forEachIndexed { i, got ->
                if (got.message.decodeToString() != "${first + i}") failures += "call ${first + i}: $got ${got.error?.timeline}"
            }
        }
        own.shutdown()
        if (failures.isNotEmpty()) throw Mismatch("${failures.size} of $count failed: ${failures[0]}")
    }

    // Ready, another while the server goes, and the end.
    private suspend fun connectivity(): String = coroutineScope {
        val own = fresh()
        val changes = Channel<Connectivity>(Channel.UNLIMITED)
        launch {
            own.connectivityChanges().collect(changes::send)
            changes.close()
        }
        val ready = changes.receive()
        if (ready != Connectivity.READY || own.connectivity != ready) throw Mismatch("connected, and $ready")
        val going = launch { shutdown(own, text("how").orEmpty()) }
        val without = changes.receive()
        going.join()
        own.shutdown()
        val states = mutableListOf(without)
        for (state in changes) states += state
        if (states.last() != Connectivity.SHUTDOWN || own.connectivity != Connectivity.SHUTDOWN) throw Mismatch("closed, and $states")
        "$without in between"
    }

    // Nothing yet, a breaker that changes by itself, and the end.
    private suspend fun breakerChanges() = coroutineScope {
        val own = settings.connect(settings.endpoint) { serviceConfig = text("service_config") }
        val changes = Channel<List<Breaker>>(Channel.UNLIMITED)
        launch {
            own.breakerChanges().collect(changes::send)
            changes.close()
        }
        val before = changes.receive()
        repeat(count) { call(own) }
        val states = changes.receive().filter { it.method == method }.map { it.state.name.lowercase() }
        own.shutdown()
        val further = mutableListOf<List<Breaker>>()
        for (breakers in changes) further += breakers
        if (before.isNotEmpty() || further.isNotEmpty() || states != listOf(text("state"))) {
            throw Mismatch("before $before, $states, then $further")
        }
    }

    private suspend fun afterShutdown() {
        val own = fresh()
        own.call("/echo", "x")
        shutdown(own, "now")
        repeat(100) {
            val got = call(own)
            if (got.code != "OK") {
                check(got)
                return own.shutdown()
            }
        }
        throw Mismatch("100 calls succeeded")
    }
}

private fun entries(text: String?): Metadata =
    text.orEmpty().split('&').filter { it.isNotEmpty() }.fold(Metadata()) { metadata, entry ->
        val (key, value) = entry.substringBefore('=') to entry.substringAfter('=')
        if (key.endsWith("-bin")) metadata.with(key, fromHex(value)) else metadata.with(key, value)
    }

private fun fromHex(hex: String) = ByteArray(hex.length / 2) { hex.substring(2 * it, 2 * it + 2).toInt(16).toByte() }

private fun quoted(text: String) = buildString {
    append('"')
    for (letter in text) {
        if (letter < ' ' || letter == '"' || letter == '\\' || letter in '\ud800'..'\udfff') append("\\u%04x".format(letter.code))
        else append(letter)
    }
    append('"')
}

/** Reads a list of flat objects of texts and whole numbers. */
private class Json(private val text: String) {
    private var at = 0

    fun list() = buildList { each(']') { add(flat()) } }

    private fun flat(): Map<String, Any> = buildMap {
        each('}') {
            val key = string()
            next(':')
            put(key, if (peek() == '"') string() else whole())
        }
    }

    private fun each(end: Char, item: () -> Unit) {
        at++
        while (peek() != end) {
            item()
            if (peek() == ',') at++
        }
        at++
    }

    private fun peek(): Char {
        while (text[at].isWhitespace()) at++
        return text[at]
    }

    private fun next(expected: Char) {
        check(peek() == expected) { "$expected is missing at $at" }
        at++
    }

    private fun whole(): Long {
        val begin = at
        while (text[at].isDigit() || text[at] == '-') at++
        return text.substring(begin, at).toLong()
    }

    private fun string() = buildString {
        next('"')
        while (text[at] != '"') {
            val letter = text[at++]
            if (letter != '\\') {
                append(letter)
                continue
            }
            when (val escaped = text[at++]) {
                'n' -> append('\n')
                't' -> append('\t')
                'r' -> append('\r')
                'b' -> append('\b')
                'f' -> append('\u000c')
                'u' -> append(text.substring(at, at + 4).toInt(16).toChar()).also { at += 4 }
                else -> append(escaped)
            }
        }
        at++
    }
}
