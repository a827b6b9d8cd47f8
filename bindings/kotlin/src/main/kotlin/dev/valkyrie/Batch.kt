package dev.valkyrie

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds

/** An operation gave nothing but success. */
internal object Done

/** One or more messages of a stream, and its end once it has ended. */
internal class Messages(val messages: List<ByteArray>, val metadata: Metadata?, val trailers: Metadata)

/** What happened meanwhile, for the log. */
internal class Records(val records: List<LogRecord>)

/** How an operation failed. */
internal class Failure(private val message: String, private val facts: StatusException.Facts) {
    val metadata: Metadata get() = facts.metadata
    val trailers: Metadata get() = facts.trailers

    /** A new one for whoever asks, so that its stack is the one that helps: the completing thread's is nobody's. */
    fun exception(): StatusException = StatusException(message, facts)

    companion object {
        /** A failure of this side's. */
        fun here(message: String): Failure {
            val (code, none) = Code.INTERNAL to Metadata.EMPTY
            val facts = StatusException.Facts(code, code.number, code.name, ErrorClass.SERVER, emptyList(), null, "", none, none)
            return Failure(message, facts)
        }
    }
}

/** Reads a batch of completions. ARCHITECTURE.md has the layout, `bindings/bridge/src/layout.rs` writes it. */
internal class Batch(private val buffer: ByteBuffer, private val start: Int = 0) {
    private var word = start
    private var piece = 0

    init {
        buffer.order(ByteOrder.LITTLE_ENDIAN)
        word = start + 12
        piece = start + buffer.getInt(start + 4) * 4
    }

    /** The next record's kind. Records come in the order of their slots. */
    fun begin(): Int {
        word()
        return word()
    }

    /** What the next operation ended with. */
    fun outcome(): Any =
        when (begin()) {
            0 -> Done
            1 -> Response(bytes(), Metadata.EMPTY, Metadata.EMPTY)
            2 -> Response(bytes(), metadata(), metadata())
            3 -> {
                val messages = list { bytes() }
                if (word() == 1) Messages(messages, metadata(), metadata()) else Messages(messages, null, Metadata.EMPTY)
            }
            5 -> Records(list { LogRecord(LogLevel.entries[word() - 1], text(), text(), list { text() to text() }.toMap()) })
            else -> error()
        }

    fun error(): Failure {
        val number = word()
        val code = Code.of(number)
        skip()
        val reason = text()
        val kind = ErrorClass.of(text())
        val message = text()
        val timeline = text()
        val pushback =
            when (val wait = word()) {
                0 -> null
                -1 -> Duration.INFINITE
                else -> ((wait.toLong() and 0xffff_ffffL) - 1).milliseconds
            }
        val details = list { Detail(text(), bytes()) }
        val facts = StatusException.Facts(code, number, reason, kind, details, pushback, timeline, metadata(), metadata())
        return Failure(message, facts)
    }

    private fun word(): Int = buffer.getInt(word).also { word += 4 }

    private fun skip() {
        piece += word()
    }

    private fun bytes(): ByteArray {
        val bytes = ByteArray(word())
        buffer.get(piece, bytes)
        piece += bytes.size
        return bytes
    }

    private fun text(): String = bytes().decodeToString()

    private inline fun <T> list(item: () -> T): List<T> {
        val count = word()
        if (count == 1) return listOf(item())
        return ArrayList<T>(count).apply { repeat(count) { add(item()) } }
    }

    private fun metadata(): Metadata {
        val entries = list { Metadata.Entry(text(), bytes()) }
        return if (entries.isEmpty()) Metadata.EMPTY else Metadata(entries)
    }
}
