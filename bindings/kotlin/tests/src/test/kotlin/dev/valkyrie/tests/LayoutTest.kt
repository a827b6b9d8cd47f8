package dev.valkyrie.tests

import dev.valkyrie.Code
import dev.valkyrie.ErrorClass
import dev.valkyrie.LogLevel
import dev.valkyrie.LogRecord
import dev.valkyrie.Metadata
import dev.valkyrie.Response
import dev.valkyrie.StatusException
import java.io.File
import java.nio.ByteBuffer
import kotlin.time.Duration.Companion.milliseconds
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

/** The layout of completions: the published bytes, of `bindings/bridge/tests/layout.json`, read as published. */
class LayoutTest {
    private fun Any.get(name: String): Any? = javaClass.getMethod(name).invoke(this)

    private fun text(messages: Any?) = (messages as List<*>).map { (it as ByteArray).decodeToString() }

    @Test
    fun `the published bytes are read as they are published`() {
        val hex = Regex("\"bytes\": \"([0-9a-f]+)\"").find(File("layout.json").readText())!!.groupValues[1]
        val bytes = ByteBuffer.wrap(hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray())
        val type = Class.forName("dev.valkyrie.Batch")
        val batch = type.getConstructor(ByteBuffer::class.java, Int::class.java).newInstance(bytes, 0)
        val outcomes = List(7) { batch.get("outcome")!! }

        val metadata = Metadata.of("a", "1").with("b-bin", byteArrayOf(0, -1))
        assertEquals("Done", outcomes[0].javaClass.simpleName)
        val plain = outcomes[1] as Response
        assertEquals("hello" to true, plain.message.decodeToString() to (plain.metadata.isEmpty() && plain.trailers.isEmpty()))
        val response = outcomes[2] as Response
        assertEquals(Triple(0, metadata, Metadata()), Triple(response.message.size, response.metadata, response.trailers))
        assertEquals(listOf("x", "") to null, text(outcomes[3].get("getMessages")) to outcomes[3].get("getMetadata"))
        assertEquals(listOf<String>() to metadata, text(outcomes[4].get("getMessages")) to outcomes[4].get("getMetadata"))
        assertEquals(Metadata.of("t", "z"), outcomes[4].get("getTrailers"))
        val status = outcomes[5].get("exception") as StatusException
        assertEquals(listOf("später", Code.UNAVAILABLE, 14, "NONE", ErrorClass.APPLICATION, "attempt 1", 1500.milliseconds),
            listOf(status.message, status.code, status.number, status.reason, status.errorClass, status.timeline, status.pushback))
        assertEquals("type" to listOf<Byte>(1), status.details.single().let { it.type to it.value.toList() })
        assertEquals(Metadata() to Metadata.of("k", "v"), status.metadata to status.trailers)
        val record = (outcomes[6].get("getRecords") as List<*>).single() as LogRecord
        assertEquals(LogLevel.WARN to "valkyrie.connection", record.level to record.target)
        assertEquals(mapOf("endpoint" to "tcp://h:1"), record.fields)
    }
}
