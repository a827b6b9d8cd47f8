package dev.valkyrie

import java.nio.ByteBuffer

/**
 * What the native part exports, by the names of `bindings/jni/src/lib.rs`, which says what each does. Each may throw
 * [StatusException], for what is refused. Text crosses as UTF-8. An operation is a number, whose outcome [Operations] tells.
 */
internal object Native {
    init {
        Library.load()
    }

    @JvmStatic external fun version(): ByteArray

    @JvmStatic external fun layoutVersion(): Int

    @JvmStatic external fun inFlight(): Int

    @JvmStatic external fun make(endpoint: ByteArray, options: ByteArray): Long

    @JvmStatic external fun ready(client: Long): Long

    @JvmStatic
    external fun call(
        client: Long,
        method: ByteArray,
        message: ByteArray,
        timeoutMs: Long,
        how: Int,
        rest: ByteArray?,
    ): Long

    @JvmStatic external fun open(client: Long, method: ByteArray, timeoutMs: Long, how: Int, rest: ByteArray?): Long

    @JvmStatic external fun send(stream: Long, message: ByteArray): Long

    @JvmStatic external fun halfClose(stream: Long): Long

    @JvmStatic external fun recv(stream: Long, max: Int): Long

    @JvmStatic external fun streamCancel(stream: Long)

    @JvmStatic external fun streamFree(stream: Long)

    @JvmStatic external fun cancel(op: Long)

    @JvmStatic external fun close(client: Long): Long

    @JvmStatic external fun free(client: Long)

    @JvmStatic external fun tokenWanted(client: Long): Long

    @JvmStatic external fun tokenProvide(client: Long, request: Long, token: ByteArray?, error: ByteArray?)

    @JvmStatic external fun setServiceConfig(client: Long, config: ByteArray)

    @JvmStatic external fun breakers(client: Long): ByteArray

    @JvmStatic external fun metrics(client: Long): ByteArray

    @JvmStatic external fun isolate(client: Long, server: ByteArray, method: ByteArray?, isolated: Boolean)

    @JvmStatic external fun connectivity(client: Long): Int

    @JvmStatic external fun connectivityOtherThan(client: Long, seen: Int): Long

    @JvmStatic external fun breakersOtherThan(client: Long, seen: Long): Long

    @JvmStatic external fun log(level: Int)

    @JvmStatic external fun logged(): Long

    @JvmStatic external fun drain(buffer: ByteBuffer): Long

    /** Called by the native part for what it refuses: a batch of one error. */
    @JvmStatic
    fun refused(batch: ByteArray): Unit = throw Batch(ByteBuffer.wrap(batch)).apply { begin() }.error().exception()
}
