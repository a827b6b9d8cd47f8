package dev.valkyrie.tests

import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import dev.valkyrie.Code
import dev.valkyrie.Metadata
import dev.valkyrie.StatusException
import java.util.concurrent.atomic.AtomicInteger
import kotlin.time.Duration.Companion.milliseconds
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.asFlow
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withTimeoutOrNull
import org.junit.jupiter.api.AfterAll
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class StreamTest {
    companion object {
        private val client by lazy { Client.connectBlocking(Server.tcp) }

        @AfterAll
        @JvmStatic
        fun close() = client.close()
    }

    private suspend fun stats(token: String, until: String) =
        client.call("/test/hang_stats", token, CallOptions().metadata("until", until))

    private fun bytes(text: String) = text.encodeToByteArray()

    @Test
    fun `a flow has every message of the server, each time it is collected`() = test {
        val numbers = client.stream("/test/count", "1000 100")
        repeat(2) {
            val messages = numbers.toList()
            assertEquals(1000, messages.size)
            messages.forEachIndexed { index, message -> assertTrue(message.size == 100 && message[99] == (index % 251).toByte()) }
        }
    }

    @Test
    fun `messages go both ways, and one answers many`() = test {
        val sent = List(500) { "message $it" }
        assertEquals(sent, client.stream("/echo", sent.asFlow().map(::bytes)).toList().map { it.decodeToString() })
        val answer = client.call("/test/half_close", sent.asFlow().map(::bytes))
        assertEquals("500", answer.decodeToString())
        client.open("/echo").use { stream ->
            for (word in sent) {
                stream.send(word)
                assertEquals(word, stream.recv()!!.decodeToString())
            }
            stream.halfClose()
            assertNull(stream.recv())
            assertNull(stream.recv())
        }
    }

    @Test
    fun `a stream has metadata and trailers once it has ended`() = test {
        client.open("/test/metadata", CallOptions().metadata("k", "v")).use { stream ->
            stream.halfClose()
            assertTrue(stream.messages().toList().all { it.isEmpty() })
            assertEquals("v", stream.metadata["k"])
            assertEquals("v", stream.trailers["t-k"])
        }
    }

    @Test
    fun `an error comes behind the messages before it`() = test {
        val options = CallOptions().metadata(Metadata.of("n" to "3", "code" to "9", "message" to "then this"))
        var count = 0
        val status = failure { client.stream("/test/stream_then_status", "", options).collect { count++ } }
        assertEquals(Triple(3, Code.FAILED_PRECONDITION, "then this"), Triple(count, status.code, status.message))
        assertEquals(Code.UNIMPLEMENTED, failure { client.stream("/no/such", flow { while (true) emit(bytes("x")) }).toList() }.code)
    }

    @Test
    fun `what the sent flow throws ends the call`() = test {
        val token = "kotlin-throws-${System.nanoTime()}"
        val thrown = IllegalStateException("mine")
        val sent = flow {
            emit(bytes(token))
            stats(token, "started")
            throw thrown
        }
        val seen = try {
            client.stream("/test/hang", sent).toList()
            null
        } catch (error: IllegalStateException) {
            error
        }
        assertEquals("mine", seen?.message)
        stats(token, "dropped")
    }

    @Test
    fun `leaving a flow and cancelling its collector end the call at the server`() = test {
        assertEquals(2, client.stream("/test/count", "1000000 100").take(2).toList().size)
        val token = "kotlin-leave-${System.nanoTime()}"
        val job = launch { client.stream("/test/hang", token).first() }
        stats(token, "started")
        job.cancel()
        stats(token, "dropped")
        val other = "$token-cancel"
        val stream = client.open("/test/hang")
        stream.send(other)
        stats(other, "started")
        stream.cancel()
        stats(other, "dropped")
        assertEquals(Code.CANCELLED, failure { stream.recv() }.code)
        stream.close()
        stream.close()
        assertEquals("STREAM_MISUSE", failure { stream.send("late") }.reason)
    }

    @Test
    fun `who does not collect is not sent everything`() = test {
        val own = Client.connect(client.call("/test/private", Server.tcp.substringBefore(':')).decodeToString())
        // 128 MB, of which nothing is taken but the first.
        own.open("/test/count").use { stream ->
            stream.send("2000 65536")
            stream.halfClose()
            stream.recv()
            repeat(200) { own.request("x") }
            assertTrue(own.call("/test/held", "").decodeToString().contains(Regex("\"streams\":[1-9]")), "it is still there")
        }
        // Nor does a server that reads nothing take everything.
        val sent = AtomicInteger()
        own.open("/test/hang").use { stream ->
            val sending = launch {
                repeat(2000) {
                    stream.send(ByteArray(65536))
                    sent.incrementAndGet()
                }
            }
            repeat(200) { own.request("x") }
            assertTrue(sent.get() < 2000)
            sending.cancel()
        }
        own.close()
    }

    @Test
    fun `a wait that is given up loses no message`() = test {
        client.open("/echo").use { stream ->
            assertNull(withTimeoutOrNull(20.milliseconds) { stream.recv() })
            stream.recvAsync().cancel(true)
            stream.send("kept")
            assertEquals("kept", stream.recv()!!.decodeToString())
        }
    }

    @Test
    fun `many receivers of one stream share its messages`() = test {
        client.open("/test/count").use { stream ->
            stream.send("10000 8")
            stream.halfClose()
            val counts = List(8) {
                async(Dispatchers.Default) {
                    var count = 0
                    while (stream.recv() != null) count++
                    count
                }
            }
            assertEquals(10_000, counts.awaitAll().sum())
        }
    }

    @Test
    fun `streams have blocking and asynchronous forms`() {
        client.open("/echo").use { stream ->
            stream.sendBlocking(bytes("one"))
            stream.sendAsync(bytes("two")).get()
            assertEquals("one", stream.recvBlocking()!!.decodeToString())
            assertEquals("two", stream.recvAsync().get()!!.decodeToString())
            stream.halfCloseAsync().get()
            assertNull(stream.recvBlocking())
            assertNull(stream.recvAsync().get())
        }
        val failed = client.open("/no/such/method").use { stream -> stream.recvAsync().handle { _, error -> error }.get() }
        assertSame(Code.UNIMPLEMENTED, (failed as StatusException).code)
        assertThrows(StatusException::class.java) { client.open("/no/such/method").use { it.recvBlocking() } }
    }
}
