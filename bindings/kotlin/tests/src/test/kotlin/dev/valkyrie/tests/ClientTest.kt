package dev.valkyrie.tests

import dev.valkyrie.BreakerState
import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import dev.valkyrie.Code
import dev.valkyrie.ConnectOptions
import dev.valkyrie.Connectivity
import dev.valkyrie.ErrorClass
import dev.valkyrie.IdempotencyKey
import dev.valkyrie.LogLevel
import dev.valkyrie.LogRecord
import dev.valkyrie.Metadata
import dev.valkyrie.Pem
import dev.valkyrie.Priority
import dev.valkyrie.StatusException
import dev.valkyrie.TokenSource
import dev.valkyrie.Valkyrie
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.TimeUnit
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Job
import kotlinx.coroutines.TimeoutCancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withTimeout
import org.junit.jupiter.api.AfterAll
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test

class ClientTest {
    companion object {
        private val client by lazy { Client.connectBlocking(Server.tcp) }

        @AfterAll
        @JvmStatic
        fun close() = client.close()
    }

    private suspend fun text(method: String, message: String) = client.call(method, message).decodeToString()

    private suspend fun hanging(token: String, until: String) = client.call("/test/hang_stats", token) {
        metadata("until", until)
        timeout = 30.seconds
    }

    @Test
    fun `a reply is the message, of whatever size`() = test {
        for (size in listOf(0, 1, 100, 16_384, 65_536, 1 shl 20, (3 shl 20) + 3)) {
            val message = ByteArray(size) { (it % 251).toByte() }
            assertArrayEquals(message, client.call("/echo", message) { timeout = 30.seconds })
        }
        assertEquals("ä€😀", client.request("ä€😀").decodeToString())
    }

    @Test
    fun `a surrogate that stands alone is no letter of a method`() = test {
        assertEquals("INVALID_METHOD", failure { client.call("/test/any/a\ud800", "") }.reason)
        assertEquals("a\ufffdb😀", client.request("a\udc00b😀").decodeToString())
    }

    @Test
    fun `a message may be changed as soon as the call has begun`() = test {
        val message = "before".encodeToByteArray()
        val reply = client.callAsync("/echo", message)
        message.fill(0)
        assertEquals("before", reply.get().decodeToString())
    }

    @Test
    fun `each of many calls gets its own answer`() = test {
        val replies = List(10_000) { async { client.request("$it").decodeToString() } }.awaitAll()
        assertEquals(List(10_000) { "$it" }, replies)
    }

    @Test
    fun `metadata and trailers come in order, text as text and bytes as bytes`() = test {
        val metadata = Metadata.of("a" to "1", "b" to "word", "a" to "2").with("x-bin", byteArrayOf(0, -1))
        val response = client.callWithResponse("/test/metadata", ByteArray(0), CallOptions().metadata(metadata))
        assertEquals(metadata, response.metadata)
        assertEquals(listOf("1", "2"), response.metadata.getAll("a"))
        assertArrayEquals(byteArrayOf(0, -1), response.trailers.getBytes("t-x-bin"))
        assertEquals("word", response.trailers["t-b"])
        assertNull(response.metadata["c"])
        assertEquals(Code.INVALID_ARGUMENT, failure { client.call("/echo", "") { metadata("NOT LOWER", "x") } }.code)
    }

    @Test
    fun `a status has all that the server said`() = test {
        val status = failure {
            client.call("/test/status", "nothing here") {
                metadata = Metadata.of("code" to "5", "details" to "1", "pushback_ms" to "70", "trailers" to "1")
            }
        }
        assertEquals(Code.NOT_FOUND, status.code)
        assertEquals(5, status.number)
        assertEquals("nothing here", status.message)
        assertEquals("NONE", status.reason)
        assertEquals(ErrorClass.APPLICATION, status.errorClass)
        assertEquals(1, status.details.size)
        assertEquals(70.milliseconds, status.pushback)
        assertEquals("trailer", status.trailers["t-status"])
        assertTrue(status.stackTrace.isNotEmpty())
        val unknown = failure { client.call("/test/status", "") { metadata("code", "99") } }
        assertEquals(Code.UNKNOWN to 99, unknown.code to unknown.number)
        assertEquals(Code.UNIMPLEMENTED, failure { client.call("/no/such/method", "") }.code)
        assertEquals("INVALID_METHOD", failure { client.call("no slash", "") }.reason)
    }

    @Test
    fun `a time limit is what the call, or the client, says`() = test {
        val status = failure { client.call("/test/hang", "") { timeout = 30.milliseconds } }
        assertEquals(Code.DEADLINE_EXCEEDED, status.code)
        assertEquals("0", client.call("/test/remaining", "") { timeout = Duration.INFINITE }.decodeToString())
        assertTrue(text("/test/remaining", "").toInt() in 1..5_000)
        Client.connect(Server.tcp) { timeout = 7.seconds }.use {
            assertTrue(it.call("/test/remaining", "").decodeToString().toInt() in 1..7_000)
        }
        assertThrows(IllegalArgumentException::class.java) { client.callAsync("/echo", ByteArray(0), limit((-1).seconds)) }
        assertEquals(Code.UNAVAILABLE, failure { client.call("/test/status", "") { metadata("code", "14") } }.code)
    }

    private fun limit(limit: Duration) = CallOptions().apply { timeout = limit }

    @Test
    fun `a coroutine that is cancelled cancels its call at the server`() = test {
        for (how in listOf("job", "timeout", "future")) {
            val token = "kotlin-$how-${System.nanoTime()}"
            if (how == "timeout") {
                val over = async {
                    try {
                        withTimeout(300) { client.call("/test/hang", token) { timeout = Duration.INFINITE } }
                        null
                    } catch (error: TimeoutCancellationException) {
                        error
                    }
                }
                hanging(token, "dropped")
                assertTrue(over.await() != null)
            } else if (how == "future") {
                val call = client.callAsync("/test/hang", token.encodeToByteArray(), limit(Duration.INFINITE))
                hanging(token, "started")
                assertTrue(call.cancel(true))
                hanging(token, "dropped")
            } else {
                val job = launch { client.call("/test/hang", token) { timeout = Duration.INFINITE } }
                hanging(token, "started")
                job.cancel(CancellationException("enough"))
                hanging(token, "dropped")
            }
        }
    }

    @Test
    fun `a coroutine that is cancelled already sends nothing`() = test {
        val token = "kotlin-before-${System.nanoTime()}"
        launch {
            coroutineContext[Job]!!.cancel()
            client.call("/test/hang", token)
        }.join()
        client.request("behind it")
        assertTrue(text("/test/hang_stats", token).contains("\"started\":0"))
    }

    @Test
    fun `an interrupt cancels a call that blocks`() = test {
        val token = "kotlin-interrupt-${System.nanoTime()}"
        val ended = LinkedBlockingQueue<Throwable>()
        val thread = Thread {
            try {
                client.callBlocking("/test/hang", token.encodeToByteArray(), limit(Duration.INFINITE))
            } catch (error: Throwable) {
                ended.add(error)
            }
        }
        thread.start()
        hanging(token, "started")
        thread.interrupt()
        hanging(token, "dropped")
        assertTrue(ended.take() is InterruptedException)
    }

    @Test
    fun `blocking where nothing could wake it is refused`() = test {
        // Begun, so that what depends on it runs where it is completed.
        val token = "kotlin-block-${System.nanoTime()}"
        val barrier = CallOptions().metadata("barrier", token).metadata("n", "2")
        val blocked = client.callAsync("/test/barrier", ByteArray(0), barrier).handle { _, _ ->
            assertThrows(IllegalStateException::class.java) { client.callBlocking("/echo", ByteArray(0)) }
        }
        client.call("/test/barrier", ByteArray(0), barrier)
        assertTrue(blocked.get().message!!.contains("thenApplyAsync"))
    }

    @Test
    fun `a call with a key is executed once, and priorities are sent`() = test {
        suspend fun times(key: IdempotencyKey?, token: String) = List(2) {
            client.call("/test/flaky", "$token-${Server.hashCode()}") { idempotencyKey = key }.decodeToString()
        }
        assertEquals(listOf("1", "1"), times(IdempotencyKey.of("order-7"), "text"))
        assertEquals(listOf("1", "1"), times(IdempotencyKey.of(ByteArray(64)), "bytes"))
        assertEquals(listOf("1", "2"), times(IdempotencyKey.DRAWN, "drawn"))
        assertEquals(listOf("1", "2"), times(null, "none"))
        for (each in Priority.entries) client.call("/echo", "x") { priority = each }
    }

    @Test
    fun `an idempotent call is tried again`() = test {
        val asked = client.call("/test/flaky", "kotlin-again-${System.nanoTime()}") {
            metadata("n", "1")
            idempotent = true
        }
        assertEquals("2", asked.decodeToString())
    }

    @Test
    fun `a client shows its connectivity and each change of it`() = test {
        val own = Client.connect(Server.tcp)
        assertEquals(Connectivity.READY, own.connectivity)
        val first = CompletableDeferred<Connectivity>()
        val seen = async { own.connectivityChanges().onEach(first::complete).toList() }
        assertEquals(Connectivity.READY, first.await())
        own.shutdown()
        assertEquals(listOf(Connectivity.READY, Connectivity.SHUTDOWN), seen.await())
        assertEquals(Connectivity.SHUTDOWN, own.connectivity)
    }

    @Test
    fun `a change of a breaker is told without asking again, and the end`() = test {
        val own = Client.connect(Server.tcp)
        val changes = Channel<List<BreakerState>>(Channel.UNLIMITED)
        launch {
            own.breakerChanges().collect { breakers -> changes.send(breakers.map { it.state }) }
            changes.close()
        }
        assertEquals(emptyList<BreakerState>(), changes.receive())
        own.isolate(Server.tcp)
        assertEquals(listOf(BreakerState.ISOLATED), changes.receive())
        own.shutdown()
        assertTrue(changes.receiveCatching().isClosed)
    }

    @Test
    fun `breakers are shown, and a server is held back by hand`() = test {
        Client.connect(Server.tcp).use { own ->
            own.request("x")
            val breaker = own.breakers().single()
            assertEquals(BreakerState.CLOSED to "/echo", breaker.state to breaker.method)
            own.isolate(breaker.server)
            assertEquals("BREAKER_OPEN", failure { own.request("x") }.reason)
            assertEquals(setOf(BreakerState.ISOLATED, BreakerState.CLOSED), own.breakers().map { it.state }.toSet())
            own.restore(breaker.server)
            own.request("x")
            assertEquals("INVALID_ARGUMENT", failure { own.isolate("tcp://192.0.2.1:1") }.reason)
            val wrong = failure { own.setServiceConfig("{") }
            assertEquals("INVALID_CONFIGURATION", wrong.reason)
            own.setServiceConfig("{}")
            assertTrue(own.metrics().contains("valkyrie_client_"))
        }
    }

    @Test
    fun `closing twice is once, and a closed client says so`() = test {
        val own = Client.connect(Server.tcp)
        own.close()
        own.close()
        own.shutdown()
        own.closeAsync().get()
        for (call in listOf<suspend () -> Any>({ own.request("x") }, { own.breakers() }, { own.metrics() }, { own.open("/echo") })) {
            val status = failure { call() }
            assertEquals(Code.CANCELLED to "CLIENT_CLOSED", status.code to status.reason)
        }
    }

    @Test
    fun `what cannot be connected to says why`() = test {
        assertEquals("INVALID_ENDPOINT", failure { Client.connect("nonsense") }.reason)
        assertEquals("UNSUPPORTED_SCHEME", failure { Client.connect("ftp://localhost:1") }.reason)
        val refused = failure { Client.connect("tcp://127.0.0.1:1") { connectTimeout = 2.seconds } }
        assertEquals(Code.UNAVAILABLE, refused.code)
        val future = Client.connectAsync("tcp://127.0.0.1:1").handle { _, error -> error }.get()
        assertTrue(future is StatusException)
        val both = assertThrows(IllegalArgumentException::class.java) {
            Client.connectBlocking(Server.tcp, ConnectOptions().apply {
                token = "a"
                tokenSource = TokenSource { "b" }
            })
        }
        assertTrue(both.message!!.contains("leave one out"))
    }

    @Test
    fun `every transport works, encrypted with the certificate that is trusted`() = test {
        assumeTrue(Server.isProcess)
        val trusted = Pem.file(Server["certificates"])
        for (scheme in listOf("tcp", "unix", "ws", "tls", "wss", "quic")) {
            Client.connect(Server[scheme]) { trustedCertificates = trusted.takeIf { scheme in setOf("tls", "wss", "quic") } }.use {
                assertEquals(scheme, it.request(scheme).decodeToString())
            }
        }
        Client.connect(Server.tcp) {
            sealed = true
            trustedCertificates = Pem.text(java.io.File(Server["certificates"]).readText())
        }.use { assertEquals("sealed", it.request("sealed").decodeToString()) }
        assertEquals(Code.UNAUTHENTICATED, failure { Client.connect(Server["tls"]) { systemRoots = true } }.code)
    }

    @Test
    fun `a token comes from a function, and its failure is the cause`() = test {
        assumeTrue(Server.isProcess)
        val endpoint = text("/test/private", "tcp credentials")
        var asked = 0
        Client.connect(endpoint) {
            tokenSource = TokenSource {
                asked++
                "good kotlin"
            }
        }.use { assertEquals("sub:kotlin", it.call("/test/principal", "").decodeToString()) }
        assertEquals(1, asked)
        val failed = failure {
            Client.connect(endpoint) {
                connectTimeout = 5.seconds
                tokenSource = TokenSource { throw IllegalStateException("no key") }
            }.request("x")
        }
        assertEquals("CREDENTIALS_UNAVAILABLE", failed.reason)
        assertTrue(failed.message!!.contains("no key"))
        assertTrue(failed.cause is IllegalStateException)
    }

    @Test
    fun `what happens to connections is logged to whoever asks`() = test {
        val records = LinkedBlockingQueue<LogRecord>()
        Valkyrie.setLogger(records::add, LogLevel.DEBUG)
        try {
            Client.connect(Server.tcp).close()
            val first = generateSequence { records.poll(30, TimeUnit.SECONDS) }.first { it.target == "valkyrie.connection" }
            assertTrue(first.fields.isNotEmpty() && first.message.isNotEmpty())
        } finally {
            Valkyrie.setLogger(null)
        }
    }
}
