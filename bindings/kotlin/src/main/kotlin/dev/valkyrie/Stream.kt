package dev.valkyrie

import java.util.concurrent.CompletableFuture
import kotlin.coroutines.resume
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.suspendCancellableCoroutine

/**
 * A call with any number of messages each way, made by [Client.open]. Messages are taken from the network only as fast as they are
 * received here. Each direction may be used by another thread. Errors: [StatusException], from `send` and `recv` alike.
 *
 * It is to be closed, as by `use {}`: one that is not finished is cancelled by that.
 */
public class Stream internal constructor(
    private val handle: Long,
    // Keeps the client from being collected while the stream is in use.
    private val client: Client,
) : AutoCloseable {
    private val freed = Handles.freeing(this, Native::streamFree, handle)

    // Guarded by this object, which is never locked while somebody is told something.
    private var messages = emptyList<ByteArray>()
    private var next = 0
    private var pull: Pull? = null
    private var over = false
    private var failure: Failure? = null

    /** Metadata from the server; empty until the stream has ended. */
    @Volatile
    public var metadata: Metadata = Metadata.EMPTY
        private set

    /** Trailers from the server; empty until the stream has ended. */
    @Volatile
    public var trailers: Metadata = Metadata.EMPTY
        private set

    /**
     * Sends a message; returns when flow control has taken it, which holds the sender to the server's pace. The message may be changed as
     * soon as this has begun. A cancel ends the wait only: the message is on its way.
     */
    @JvmSynthetic
    public suspend fun send(message: ByteArray) {
        valueOf<Done>(Operations.awaitAlone(this) { Native.send(handle, message) })
    }

    /** [send] with text, as UTF-8. */
    @JvmSynthetic
    public suspend fun send(message: String): Unit = send(message.utf8())

    /** [send] as a future. */
    public fun sendAsync(message: ByteArray): CompletableFuture<Void?> = ended { Native.send(handle, message) }

    /** [send], blocking the thread. */
    @Throws(InterruptedException::class)
    public fun sendBlocking(message: ByteArray) {
        Operations.block(this, { valueOf<Done>(it) }) { Native.send(handle, message) }
    }

    /** Says that no more messages come from here. */
    @JvmSynthetic
    public suspend fun halfClose() {
        valueOf<Done>(Operations.awaitAlone(this) { Native.halfClose(handle) })
    }

    /** [halfClose] as a future. */
    public fun halfCloseAsync(): CompletableFuture<Void?> = ended { Native.halfClose(handle) }

    /** [halfClose], blocking the thread. */
    @Throws(InterruptedException::class)
    public fun halfCloseBlocking() {
        Operations.block(this, { valueOf<Done>(it) }) { Native.halfClose(handle) }
    }

    /** The next message, `null` when the stream has ended with OK. A cancel loses no message: it comes with the next call. */
    @JvmSynthetic
    public suspend fun recv(): ByteArray? {
        while (true) {
            when (val taken = take()) {
                is Pull -> suspendCancellableCoroutine<Unit> { waiting -> taken.whenComplete { _, _ -> waiting.resume(Unit) } }
                else -> return taken as ByteArray?
            }
        }
    }

    /** [recv] as a future. A cancel of it loses no message, unless that is there at the same moment. */
    public fun recvAsync(): CompletableFuture<ByteArray?> = CompletableFuture<ByteArray?>().also(::recvInto)

    /** [recv], blocking the thread. An interrupt loses no message. */
    @Throws(InterruptedException::class)
    public fun recvBlocking(): ByteArray? {
        while (true) {
            val taken = take()
            if (taken !is Pull) return taken as ByteArray?
            Operations.mayBlock()
            taken.get()
        }
    }

    /** Receives until the stream ends with OK. To be collected once. Leaving it early cancels nothing: [close] does. */
    public fun messages(): Flow<ByteArray> = flow { while (true) emit(recv() ?: break) }

    /** Cancels the call, at the server too: what waits ends with code `CANCELLED`. Idempotent; does nothing when the call is over. */
    public fun cancel(): Unit = Native.streamCancel(handle)

    /** Lets go of the stream, and cancels it when it is not finished. Idempotent. */
    override fun close(): Unit = freed.clean()

    /** Sends the only message. Its failure is the stream's own, and comes out of the next [recv]. */
    internal fun sendOnly(message: ByteArray) {
        Operations.add(Native.send(handle, message)) {}
        halfClosed()
    }

    /** Half-closes, and lets its failure come out of the next [recv]. */
    internal fun halfClosed(): Unit = Operations.add(Native.halfClose(handle)) {}

    /** Sends a message; `false` where the stream is over, which [recv] says more of. */
    internal suspend fun accepts(message: ByteArray): Boolean =
        try {
            send(message)
            true
        } catch (_: StatusException) {
            false
        }

    /** What is there: a message, `null` at the end, what to wait for before; or it throws how the stream failed. */
    private fun take(): Any? {
        val failure =
            synchronized(this) {
                if (next < messages.size) return messages[next++]
                if (!over) return pull ?: fetch()
                failure
            }
        if (failure != null) throw failure.exception()
        return null
    }

    private fun recvInto(received: CompletableFuture<ByteArray?>) {
        if (received.isDone) return
        try {
            when (val taken = take()) {
                is Pull -> taken.whenComplete { _, _ -> recvInto(received) }
                else -> received.complete(taken as ByteArray?)
            }
        } catch (error: StatusException) {
            received.completeExceptionally(error)
        }
    }

    /** Begins to receive what is there, up to [RECV_BATCH] messages. With this object locked. */
    private fun fetch(): Pull {
        val pull = Pull()
        this.pull = pull
        val fetched = Waiter { outcome ->
            synchronized(this) {
                this.pull = null
                fetched(outcome)
            }
            pull.complete(Unit)
        }
        try {
            Operations.add(Native.recv(handle, RECV_BATCH), fetched)
        } catch (refused: StatusException) {
            this.pull = null
            over = true
            failure = refused.failure()
            pull.complete(Unit)
        }
        return pull
    }

    private fun fetched(outcome: Any) {
        if (outcome is Messages) {
            messages = outcome.messages
            next = 0
            metadata = outcome.metadata ?: return
            trailers = outcome.trailers
        } else if (outcome is Failure) {
            failure = outcome
            metadata = outcome.metadata
            trailers = outcome.trailers
        }
        over = true
    }

    private inline fun ended(crossinline begin: () -> Long): CompletableFuture<Void?> {
        val ended = CompletableFuture<Void?>()
        try {
            Operations.add(begin()) { outcome ->
                if (outcome is Failure) ended.completeExceptionally(outcome.exception()) else ended.complete(null)
            }
        } catch (refused: StatusException) {
            ended.completeExceptionally(refused)
        }
        return ended
    }

    /** A batch on its way. Receivers that come meanwhile wait for the same one. */
    private class Pull : CompletableFuture<Unit>()

    private companion object {
        /** Messages taken from the core at once; credit goes back to the server when they are taken. */
        const val RECV_BATCH = 64
    }
}
