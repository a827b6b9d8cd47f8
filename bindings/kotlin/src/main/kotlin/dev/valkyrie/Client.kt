package dev.valkyrie

import java.lang.ref.Cleaner
import java.util.concurrent.CompletableFuture
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.single
import kotlinx.coroutines.flow.takeWhile
import kotlinx.coroutines.future.await
import kotlinx.coroutines.launch

/** Where a client stands with its servers, as gRPC names it. */
public enum class Connectivity {
    /** No connection, and none is being made, but by the next call. */
    IDLE,

    /** A connection is being made. */
    CONNECTING,

    /** A connection stands. */
    READY,

    /** The last try failed, and the next one waits. */
    TRANSIENT_FAILURE,

    /** The client is closed. */
    SHUTDOWN,
}

/** The answer of a unary call. */
public class Response internal constructor(
    /** The message. */
    public val message: ByteArray,
    /** What came before it. */
    public val metadata: Metadata,
    /** What came behind it. */
    public val trailers: Metadata,
)

/**
 * Calls methods of one endpoint. It connects again by itself, may be used by any number of threads and coroutines at once, and keeps no
 * JVM alive. Each kind of call comes in three forms: `call` suspends, `callAsync` gives a [CompletableFuture] and `callBlocking` blocks
 * the thread.
 *
 * Cancel: a coroutine, or a future, that is cancelled cancels its call, at the server too; so does an interrupt of a thread that blocks.
 * An answer that comes at the same moment is lost.
 *
 * Errors: [StatusException]; [IllegalArgumentException] for an impossible option.
 *
 * Threads: one daemon thread completes the calls of all clients. Coroutines go on by their dispatcher; what depends on a future without
 * `Async`, and what runs in [Dispatchers.Unconfined], runs on that thread, and must not block.
 */
public class Client internal constructor(
    private val handle: Long,
    /** The endpoint given to [connect]. */
    public val endpoint: String,
) : AutoCloseable {
    private val freed = Handles.freeing(this, Native::free, handle)
    private var closing: CompletableFuture<Void?>? = null

    /** Where the client stands with its servers now. It waits for nothing and makes no connection. */
    public val connectivity: Connectivity get() = Connectivity.entries[Native.connectivity(handle)]

    /**
     * Where the client stands now, and then each change, until it is [Connectivity.SHUTDOWN]. Steps that followed each other at once may be
     * passed over. A collector that leaves loses nothing of others.
     */
    public fun connectivityChanges(): Flow<Connectivity> = flow {
        var seen = connectivity
        emit(seen)
        while (seen != Connectivity.SHUTDOWN) {
            valueOf<Done>(Operations.await(null) { Native.connectivityOtherThan(handle, seen.ordinal) })
            val now = connectivity
            if (now != seen) {
                seen = now
                emit(now)
            }
        }
    }

    /** Calls `/echo`. */
    @JvmSynthetic
    public suspend fun request(message: ByteArray, options: CallOptions = CallOptions.NONE): ByteArray = call(ECHO, message, options)

    /** Calls `/echo` with text. */
    @JvmSynthetic
    public suspend fun request(message: String, options: CallOptions = CallOptions.NONE): ByteArray = call(ECHO, message, options)

    /** A unary call: one message each way. The message may be changed as soon as this has begun. */
    @JvmSynthetic
    public suspend fun call(method: String, message: ByteArray, options: CallOptions = CallOptions.NONE): ByteArray =
        callWithResponse(method, message, options).message

    /** A unary call whose message is text, sent as UTF-8. */
    @JvmSynthetic
    public suspend fun call(method: String, message: String, options: CallOptions = CallOptions.NONE): ByteArray =
        call(method, message.utf8(), options)

    /** A unary call with options: `call(method, message) { timeout = 2.seconds }`. */
    @JvmSynthetic
    public suspend inline fun call(method: String, message: ByteArray, options: CallOptions.() -> Unit): ByteArray =
        call(method, message, CallOptions().apply(options))

    /** A unary call of text with options. */
    @JvmSynthetic
    public suspend inline fun call(method: String, message: String, options: CallOptions.() -> Unit): ByteArray =
        call(method, message, CallOptions().apply(options))

    /** [call] with the server's metadata and trailers. */
    @JvmSynthetic
    public suspend fun callWithResponse(
        method: String,
        message: ByteArray,
        options: CallOptions = CallOptions.NONE,
    ): Response = valueOf(Operations.await(this) { begin(method, message, options) })

    /** [call] as a future. */
    @JvmOverloads
    public fun callAsync(method: String, message: ByteArray, options: CallOptions = CallOptions.NONE): CompletableFuture<ByteArray> =
        Operations.future(this, { valueOf<Response>(it).message }) { begin(method, message, options) }

    /** [callWithResponse] as a future. */
    @JvmOverloads
    public fun callWithResponseAsync(
        method: String,
        message: ByteArray,
        options: CallOptions = CallOptions.NONE,
    ): CompletableFuture<Response> = Operations.future(this, ::valueOf) { begin(method, message, options) }

    /** [call], blocking the thread. */
    @JvmOverloads
    @Throws(InterruptedException::class)
    public fun callBlocking(method: String, message: ByteArray, options: CallOptions = CallOptions.NONE): ByteArray =
        callWithResponseBlocking(method, message, options).message

    /** [callWithResponse], blocking the thread. */
    @JvmOverloads
    @Throws(InterruptedException::class)
    public fun callWithResponseBlocking(
        method: String,
        message: ByteArray,
        options: CallOptions = CallOptions.NONE,
    ): Response = Operations.block(this, { valueOf(it) }) { begin(method, message, options) }

    /**
     * Server streaming: sends one message and receives any number. Each collection is a call of its own. Messages are taken from the network
     * only as fast as they are collected; a collector that leaves, or is cancelled, cancels the call.
     */
    public fun stream(method: String, message: ByteArray, options: CallOptions = CallOptions.NONE): Flow<ByteArray> = flow {
        open(method, options).use { stream ->
            stream.sendOnly(message)
            while (true) emit(stream.recv() ?: break)
        }
    }

    /** [stream] with text. */
    public fun stream(method: String, message: String, options: CallOptions = CallOptions.NONE): Flow<ByteArray> =
        stream(method, message.utf8(), options)

    /**
     * Sends [messages] as fast as the server takes them, and receives meanwhile. Each collection is a call of its own, and collects [messages]
     * once, in its own coroutine. What they throw ends the call as cancelled and the collection with it; when the call ends, they are
     * collected no further.
     */
    public fun stream(method: String, messages: Flow<ByteArray>, options: CallOptions = CallOptions.NONE): Flow<ByteArray> = flow {
        open(method, options).use { stream ->
            coroutineScope {
                val sending = launch {
                    messages.takeWhile(stream::accepts).collect()
                    stream.halfClosed()
                }
                while (true) emit(stream.recv() ?: break)
                sending.cancel()
            }
        }
    }

    /** Client streaming: [stream] for a method that answers with one message. [NoSuchElementException] when it answers with none. */
    @JvmSynthetic
    public suspend fun call(method: String, messages: Flow<ByteArray>, options: CallOptions = CallOptions.NONE): ByteArray =
        stream(method, messages, options).single()

    /** Opens a stream with any number of messages each way. It connects in the background: errors come out of its methods. */
    @JvmOverloads
    public fun open(method: String, options: CallOptions = CallOptions.NONE): Stream {
        val stream = Native.open(handle, method.utf8(), options.timeoutMs, options.how, options.rest)
        return Stream(stream, this)
    }

    /**
     * Puts another service config in the place of the client's, without a lost call. Calls that began keep their time limit and how they are
     * tried again; all the rest heeds the new one. What is known of the servers stays, such as an open breaker. One that is wrong ends
     * with reason `INVALID_CONFIGURATION`, says line, key and what to write instead, and changes nothing. It waits for nothing.
     */
    public fun setServiceConfig(serviceConfig: String): Unit = Native.setServiceConfig(handle, serviceConfig.utf8())

    /** The circuit breakers: one for each server and method that was called or isolated, and one for each server that is isolated as a whole. */
    public fun breakers(): List<Breaker> = Breaker.of(Native.breakers(handle).decodeToString())

    /**
     * The circuit breakers now, and then all of them whenever one has changed its state, until the client is closed. Steps that followed each
     * other at once may be passed over. A collector that leaves loses nothing of others.
     */
    public fun breakerChanges(): Flow<List<Breaker>> = flow {
        var seen = 0L
        while (true) {
            val changed =
                try {
                    valueOf<Messages>(Operations.await(null) { Native.breakersOtherThan(handle, seen) })
                } catch (error: StatusException) {
                    if (error.reason == "CLIENT_CLOSED") return@flow
                    throw error
                }
            val (breakers, number) = changed.messages.map { it.decodeToString() }
            seen = number.toLong()
            emit(Breaker.of(breakers))
        }
    }

    /** What became of the client's calls since it was made, in Prometheus' text format. Names begin with `valkyrie_client_`; times are in seconds. */
    public fun metrics(): String = Native.metrics(handle).decodeToString()

    /**
     * Holds the calls of a method, or all calls, back from a server until [restore]. Those that go on end; further ones go to the other servers,
     * and end with reason `BREAKER_OPEN` where there is none. `INVALID_ARGUMENT` for what is none of the client's servers. Idempotent.
     */
    @JvmOverloads
    public fun isolate(server: String, method: String? = null): Unit =
        Native.isolate(handle, server.utf8(), method?.utf8(), true)

    /** Ends [isolate]; without a method for the server and each of its methods. Idempotent. */
    @JvmOverloads
    public fun restore(server: String, method: String? = null): Unit =
        Native.isolate(handle, server.utf8(), method?.utf8(), false)

    /**
     * Closes gracefully: calls in flight finish, for 5 s at most. Idempotent. Later calls end with code `CANCELLED` and reason
     * `CLIENT_CLOSED`. A cancel of the coroutine ends the wait only.
     */
    @JvmSynthetic
    public suspend fun shutdown() {
        closeAsync().await()
    }

    /** [shutdown] as a future. A cancel of it ends the wait only. */
    @Synchronized
    public fun closeAsync(): CompletableFuture<Void?> {
        val closing =
            closing ?: CompletableFuture<Void?>().also { closing ->
                this.closing = closing
                val done = Waiter {
                    // The collector knows nothing of what the core keeps for it, and may come late.
                    freed.clean()
                    closing.complete(null)
                }
                Operations.add(Native.close(handle), done)
            }
        return closing.copy()
    }

    /**
     * [shutdown], blocking the thread, for `use {}` and Java's `try`. An interrupt ends the calls in flight at once. On the thread that
     * completes calls it begins and waits for nothing.
     */
    override fun close() {
        val closing = closeAsync()
        if (Operations.isCompleting) return
        try {
            closing.get()
        } catch (_: InterruptedException) {
            freed.clean()
            Thread.currentThread().interrupt()
        }
    }

    override fun toString(): String = "Client($endpoint)"

    private fun begin(method: String, message: ByteArray, options: CallOptions): Long =
        Native.call(handle, method.utf8(), message, options.timeoutMs, options.how, options.rest)

    public companion object {
        private const val ECHO = "/echo"

        /**
         * Connects to an endpoint: `tcp://host:port`, `unix:///path`, `ws://host:port`, or encrypted `tls://host:port`, `wss://host:port`,
         * `quic://host:port`; several with commas between them are servers of one service. `echo://core` is a server inside the library, for
         * a first try and for tests: it opens no socket.
         *
         * Ends with [StatusException]: `UNAVAILABLE` when nothing answers within [ConnectOptions.connectTimeout], `INVALID_ARGUMENT` when
         * the endpoint cannot be parsed or its scheme is not supported, `UNAUTHENTICATED` when a certificate is refused. A cancel
         * gives up connecting.
         */
        @JvmSynthetic
        public suspend fun connect(endpoint: String, options: ConnectOptions.() -> Unit = {}): Client =
            connect(endpoint, ConnectOptions().apply(options))

        /** [connect] with options that are there. */
        @JvmSynthetic
        public suspend fun connect(endpoint: String, options: ConnectOptions): Client {
            val made = Made(endpoint, options)
            try {
                return made.client(Operations.await(null, made::ready))
            } catch (error: Throwable) {
                Native.free(made.handle)
                throw error
            }
        }

        /** [connect] as a future. */
        @JvmStatic
        @JvmOverloads
        public fun connectAsync(endpoint: String, options: ConnectOptions = ConnectOptions()): CompletableFuture<Client> {
            val made =
                try {
                    Made(endpoint, options)
                } catch (error: StatusException) {
                    return CompletableFuture.failedFuture(error)
                }
            val future = Operations.future(null, made::client, made::ready)
            future.whenComplete { client, _ -> if (client == null) Native.free(made.handle) }
            return future
        }

        /** [connect], blocking the thread. */
        @JvmStatic
        @JvmOverloads
        @Throws(InterruptedException::class)
        public fun connectBlocking(endpoint: String, options: ConnectOptions = ConnectOptions()): Client {
            val made = Made(endpoint, options)
            try {
                return Operations.block(null, made::client, made::ready)
            } catch (error: Throwable) {
                Native.free(made.handle)
                throw error
            }
        }
    }

    /** A client that has not connected yet. */
    private class Made(private val endpoint: String, options: ConnectOptions) {
        val handle = Native.make(endpoint.utf8(), options.packed())
        private val tokens = options.tokenSource?.let { Tokens(handle, it) }

        fun ready(): Long {
            tokens?.start()
            return Native.ready(handle)
        }

        fun client(outcome: Any): Client {
            if (outcome is Failure) {
                throw outcome.exception().also { error ->
                    if (error.reason == "CREDENTIALS_UNAVAILABLE") tokens?.failure?.let(error::initCause)
                }
            }
            return Client(handle, endpoint)
        }
    }

    /** Asks a function whenever the core wants a token, until the client is closed or freed: it keeps nothing of it but its number. */
    private class Tokens(private val client: Long, private val source: TokenSource) {
        @Volatile var failure: Throwable? = null

        fun start() {
            // The core is told before it connects that somebody will answer.
            CoroutineScope(Dispatchers.Default).launch(start = CoroutineStart.UNDISPATCHED) { answer() }
        }

        private suspend fun answer() {
            while (true) {
                var request = 0L
                try {
                    valueOf<Done>(Operations.await(null) { Native.tokenWanted(client).also { request = it } })
                } catch (_: StatusException) {
                    return
                }
                try {
                    val token = source.token()
                    failure = null
                    Native.tokenProvide(client, request, token.utf8(), null)
                } catch (error: Throwable) {
                    failure = error
                    Native.tokenProvide(client, request, null, (error.message ?: error.toString()).utf8())
                }
            }
        }
    }
}

/** What the collector finds is freed. */
internal object Handles {
    private val cleaner = Cleaner.create()

    fun freeing(owner: Any, free: (Long) -> Unit, handle: Long): Cleaner.Cleanable = cleaner.register(owner, Free(free, handle))

    private class Free(private val free: (Long) -> Unit, private val handle: Long) : Runnable {
        override fun run() = free(handle)
    }
}
