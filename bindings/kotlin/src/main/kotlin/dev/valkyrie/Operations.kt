package dev.valkyrie

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.CompletableFuture
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.ExecutionException
import kotlin.coroutines.resume
import kotlinx.coroutines.CancellableContinuation
import kotlinx.coroutines.suspendCancellableCoroutine

/** Who waits for an operation. Told from the completing thread, or from the one that began it, with no lock held. */
internal fun interface Waiter {
    fun complete(outcome: Any)
}

/**
 * Operations that wait, by number, and the one thread that waits for all of them. It is a daemon, as no operation keeps a JVM
 * alive, and it is the only one of ours that runs in the JVM: the native threads never enter it.
 */
internal object Operations {
    /** What the thread reads batches from; a larger one is kept up to [KEPT]. */
    private const val BUFFER = 64 * 1024
    private const val KEPT = 4 * 1024 * 1024

    /** Made before it is needed, which is where nothing can be made. */
    private val UNREADABLE = Failure.here("the outcome cannot be read, for want of memory")

    /** How long the thread lets others give memory back. */
    private const val PAUSE_MS = 10L

    /** A [Waiter], or an outcome that came before its waiter. Each number is in here at most once, and not for long. */
    private val waiting = ConcurrentHashMap<Long, Any>()
    private val thread = Thread(null, ::drain, "valkyrie", 0, false)

    init {
        Library.check()
        thread.isDaemon = true
        thread.contextClassLoader = null
        thread.start()
    }

    /** Tells [waiter] of the outcome of [op], which may be there. */
    fun add(op: Long, waiter: Waiter) {
        val early = waiting.putIfAbsent(op, waiter) ?: return
        waiting.remove(op)
        waiter.complete(early)
    }

    /** How many wait here: for tests. */
    val size: Int get() = waiting.size

    val isCompleting: Boolean get() = Thread.currentThread() === thread

    fun mayBlock() {
        check(!isCompleting) {
            "this would wait for itself: a blocking call in a continuation of a future or an unconfined coroutine, which run on the " +
                "thread that completes all calls; take thenApplyAsync, or call without Blocking"
        }
    }

    /** Runs [begin] and waits for its outcome. A cancel of the coroutine cancels the operation. [keep] is not collected meanwhile. */
    suspend inline fun await(keep: Any?, crossinline begin: () -> Long): Any =
        suspendCancellableCoroutine { continuation ->
            // Nobody waits any more: there is nothing to begin.
            if (continuation.isActive) {
                val op = begin()
                add(op, Suspended(continuation, keep))
                continuation.invokeOnCancellation { Native.cancel(op) }
            }
        }

    /** As [await]; a cancel of the coroutine ends the wait only. */
    suspend inline fun awaitAlone(keep: Any?, crossinline begin: () -> Long): Any =
        suspendCancellableCoroutine { continuation ->
            if (continuation.isActive) add(begin(), Suspended(continuation, keep))
        }

    /** Runs [begin]; what [value] makes of the outcome. A future that ends otherwise, by a cancel or a time limit, cancels the operation. */
    inline fun <T> future(keep: Any?, crossinline value: (Any) -> T, begin: () -> Long): CompletableFuture<T> {
        val future = Kept<T>(keep)
        try {
            val op = begin()
            future.whenComplete { _, _ -> if (!future.isOver) Native.cancel(op) }
            add(op) { outcome ->
                future.isOver = true
                try {
                    future.complete(value(outcome))
                } catch (error: StatusException) {
                    future.completeExceptionally(error)
                }
            }
        } catch (error: StatusException) {
            future.isOver = true
            future.completeExceptionally(error)
        }
        return future
    }

    /** Blocks the thread until [begin] has its outcome. An interrupt cancels the operation. */
    inline fun <T> block(keep: Any?, value: (Any) -> T, begin: () -> Long): T {
        mayBlock()
        val future = future(keep, { it }, begin)
        try {
            return value(future.get())
        } catch (error: InterruptedException) {
            future.cancel(false)
            throw error
        } catch (error: ExecutionException) {
            throw error.cause ?: error
        }
    }

    private fun drain() {
        var buffer = direct(BUFFER)
        while (true) {
            try {
                val length = Native.drain(buffer)
                if (length < 0) {
                    // It waits there until there is room for it.
                    val larger = direct(Math.toIntExact(-length))
                    if (larger.capacity() <= KEPT) buffer = larger
                    Native.drain(larger)
                    complete(larger)
                } else {
                    complete(buffer)
                }
            } catch (error: Throwable) {
                // Without memory: whoever waits for this thread would wait for ever.
                report(error)
                Thread.sleep(PAUSE_MS)
            }
        }
    }

    private fun direct(length: Int) = ByteBuffer.allocateDirect(length).order(ByteOrder.LITTLE_ENDIAN)

    private fun complete(buffer: ByteBuffer) {
        val count = buffer.getInt(0)
        val batch = Batch(buffer, 8 * (1 + count))
        var unreadable: Failure? = null
        for (index in 1..count) {
            val op = buffer.getLong(8 * index)
            val outcome =
                unreadable ?: try {
                    batch.outcome()
                } catch (error: Throwable) {
                    report(error)
                    // Where the next one begins is not known then.
                    UNREADABLE.also { unreadable = it }
                }
            val waiter = waiting.putIfAbsent(op, outcome) ?: continue
            waiting.remove(op)
            try {
                (waiter as Waiter).complete(outcome)
            } catch (error: Throwable) {
                // Of a continuation of the host's: the calls of others go on.
                report(error)
            }
        }
    }

    private fun report(error: Throwable) {
        try {
            thread.uncaughtExceptionHandler?.uncaughtException(thread, error)
        } catch (_: Throwable) {
            // Nobody is left to hear of it.
        }
    }

    internal class Suspended(private val continuation: CancellableContinuation<Any>, private val keep: Any?) : Waiter {
        override fun complete(outcome: Any) = continuation.resume(outcome)
    }

    internal class Kept<T>(@Suppress("unused") private val keep: Any?) : CompletableFuture<T>() {
        /** The operation is complete, or was never begun. */
        @Volatile var isOver: Boolean = false

        /** What depends on it is not ours to cancel. */
        override fun <U> newIncompleteFuture(): CompletableFuture<U> = CompletableFuture()
    }
}

/** What an operation gave, thrown where it failed. */
internal fun <T> valueOf(outcome: Any): T {
    if (outcome is Failure) throw outcome.exception()
    @Suppress("UNCHECKED_CAST")
    return outcome as T
}
