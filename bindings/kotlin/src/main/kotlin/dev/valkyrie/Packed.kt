package dev.valkyrie

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction
import kotlin.time.Duration

/** Many values as one array, in the layout of `bindings/jni/src/packed.rs`. */
internal class Packed {
    private var buffer = ByteBuffer.allocate(256).order(ByteOrder.LITTLE_ENDIAN)

    fun bytes(value: ByteArray?): Packed {
        room(4 + (value?.size ?: 0))
        buffer.putInt(value?.size ?: -1)
        value?.let(buffer::put)
        return this
    }

    fun text(value: String?): Packed = bytes(value?.utf8())

    fun number(value: Long): Packed {
        room(12)
        buffer.putInt(8).putLong(value)
        return this
    }

    fun flag(value: Boolean): Packed = number(if (value) 1 else 0)

    fun time(value: Duration?, name: String): Packed = number(milliseconds(value, name))

    fun pem(value: Pem?): Packed = text(value?.text).text(value?.file)

    fun metadata(metadata: Metadata): Packed {
        for (entry in metadata) text(entry.key).bytes(entry.bytes)
        return this
    }

    fun toArray(): ByteArray = buffer.array().copyOf(buffer.position())

    private fun room(needed: Int) {
        if (buffer.remaining() >= needed) return
        val larger = ByteBuffer.allocate(maxOf(buffer.capacity() * 2, Math.addExact(buffer.position(), needed)))
        buffer = larger.order(ByteOrder.LITTLE_ENDIAN).put(buffer.flip())
    }

    companion object {
        /** -1 stands for "not given" from here to the native part, the largest number for "no limit". A fraction is rounded up. */
        fun milliseconds(value: Duration?, name: String): Long {
            if (value == null) return -1
            require(!value.isNegative()) { "$name is $value, not a time from 0" }
            if (value.isInfinite()) return Long.MAX_VALUE
            val whole = value.inWholeMilliseconds
            return if (value.inWholeNanoseconds > whole * 1_000_000) whole + 1 else whole
        }
    }
}

/** Text as UTF-8. A surrogate that stands alone becomes U+FFFD, as in other languages, and not the JVM's `?`, which is a letter of methods. */
internal fun String.utf8(): ByteArray {
    if (none { it.isSurrogate() }) return encodeToByteArray()
    val encoder = Charsets.UTF_8.newEncoder().onMalformedInput(CodingErrorAction.REPLACE)
    val encoded = encoder.replaceWith(byteArrayOf(0xef.toByte(), 0xbf.toByte(), 0xbd.toByte())).encode(CharBuffer.wrap(this))
    return ByteArray(encoded.remaining()).also(encoded::get)
}
