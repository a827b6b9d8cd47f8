package dev.valkyrie

import java.nio.file.Path
import java.util.concurrent.CompletionStage
import java.util.function.Supplier
import kotlin.time.Duration
import kotlin.time.toKotlinDuration
import kotlinx.coroutines.future.await

/** Options of a client. Read once, by [Client.connect]. */
public class ConnectOptions {
    /** Time limit of unary calls that give none. Default 5 s; [Duration.INFINITE]: none. */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var timeout: Duration? = null

    /** Time limit of making a connection. Default 5 s. */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var connectTimeout: Duration? = null

    /** Whom to trust: the server's certificates must lead to one of these. `tls://`, `wss://` and `quic://` need it, or [systemRoots]. */
    public var trustedCertificates: Pem? = null

    /** Whether to trust those that the system trusts, beside [trustedCertificates]. Default `false`. */
    public var systemRoots: Boolean = false

    /** The authorities' revocation lists (CRL): a certificate that one of them names is refused. */
    public var revocationLists: Pem? = null

    /** What is shown to a server which asks who calls. */
    public var identity: Identity? = null

    /** The name that the server's certificate must be for. Default: the endpoint's host. */
    public var serverName: String? = null

    /**
     * Whether to speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read or change
     * them. Default `false`.
     */
    public var sealed: Boolean = false

    /** The least protection of connections. Default: [Security.MTLS] with an identity, [Security.TLS] with certificates to trust, else insecure. */
    public var minSecurity: Security? = null

    /** Whom the client calls for: a JWT. It travels encrypted or within the machine only. Of this and [tokenSource] one may be given. */
    public var token: String? = null

    /** [token] as a function. */
    public var tokenSource: TokenSource? = null

    /**
     * What the client does about failures: retries and their budget, circuit breakers, throttling, balancing, and which methods are
     * idempotent. JSON with the keys of docs/policies.md. Without one, or a key of it, the defaults there hold. One that is wrong
     * ends [Client.connect] with reason `INVALID_CONFIGURATION`, and says line, key and what to write instead.
     */
    public var serviceConfig: String? = null

    /**
     * How long the server may be silent while calls are open until it is asked whether it is there. Default 30 s, at least 10 s; zero or
     * [Duration.INFINITE]: never. One that says nothing within [keepaliveTimeout] is gone: the connection ends with
     * `CONNECTION_LOST`, and its calls are retried by their policy (gRFC A8).
     */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var keepalive: Duration? = null

    /** How long its answer may take. Default 10 s, at least 1 s. */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var keepaliveTimeout: Duration? = null

    /** [keepalive] while no call is open, for networks that forget who is idle. Default zero, never; at least 300 s. */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var keepaliveIdle: Duration? = null

    /** [timeout], for Java. */
    public fun timeout(limit: java.time.Duration): ConnectOptions = apply { timeout = limit.toKotlinDuration() }

    /** [connectTimeout], for Java. */
    public fun connectTimeout(limit: java.time.Duration): ConnectOptions = apply { connectTimeout = limit.toKotlinDuration() }

    /** [keepalive], for Java. */
    public fun keepalive(silence: java.time.Duration): ConnectOptions = apply { keepalive = silence.toKotlinDuration() }

    /** [keepaliveTimeout], for Java. */
    public fun keepaliveTimeout(limit: java.time.Duration): ConnectOptions = apply { keepaliveTimeout = limit.toKotlinDuration() }

    /** [keepaliveIdle], for Java. */
    public fun keepaliveIdle(silence: java.time.Duration): ConnectOptions = apply { keepaliveIdle = silence.toKotlinDuration() }

    /** [tokenSource], for Java. */
    public fun tokens(source: Supplier<out CompletionStage<String>>): ConnectOptions = apply {
        tokenSource = TokenSource { source.get().await() }
    }

    internal fun packed(): ByteArray {
        require(token == null || tokenSource == null) { "token and tokenSource are given: leave one out" }
        return Packed()
            .time(timeout, "timeout")
            .time(connectTimeout, "connectTimeout")
            .time(keepalive, "keepalive")
            .time(keepaliveTimeout, "keepaliveTimeout")
            .time(keepaliveIdle, "keepaliveIdle")
            .flag(systemRoots)
            .flag(sealed)
            .flag(tokenSource != null)
            .pem(trustedCertificates)
            .pem(revocationLists)
            .pem(identity?.certificates)
            .pem(identity?.key)
            .text(serverName)
            .text(minSecurity?.name?.lowercase())
            .text(serviceConfig)
            .text(token)
            .toArray()
    }
}

/**
 * Makes tokens: called for each new connection, and for a newer token before the last one ends, while streams go on; never twice at
 * once. What it throws ends the calls that wait with reason `CREDENTIALS_UNAVAILABLE` and its message, which must hold no secret; so
 * does silence for [ConnectOptions.connectTimeout]. It runs in [kotlinx.coroutines.Dispatchers.Default].
 */
public fun interface TokenSource {
    /** A JWT. */
    public suspend fun token(): String
}

/**
 * Certificates, revocation lists or a private key in PEM: the text itself, or a file, which is looked at again for each connection, once a
 * second at most, so that it may be replaced.
 */
public class Pem private constructor(internal val text: String?, internal val file: String?) {
    public companion object {
        /** PEM text. */
        @JvmStatic public fun text(pem: String): Pem = Pem(pem, null)

        /** The path of a file of PEM text. */
        @JvmStatic public fun file(path: String): Pem = Pem(null, path)

        /** The path of a file of PEM text. */
        @JvmStatic public fun file(path: Path): Pem = Pem(null, path.toString())
    }
}

/** A certificate chain, the client's own first, and its private key. */
public class Identity(internal val certificates: Pem, internal val key: Pem)

/** How connections are protected. */
public enum class Security {
    /** Not at all. */
    INSECURE,

    /** The server shows who it is. */
    TLS,

    /** So does the client. */
    MTLS,
}

/** Options of a call. One object may serve any number of calls, while nobody changes it. */
public class CallOptions {
    /** Time limit. Default: the client's for unary calls, none for streams; [Duration.INFINITE]: none. */
    @get:JvmSynthetic
    @set:JvmSynthetic
    public var timeout: Duration? = null

    /** Metadata sent with the call. Keys are lower-case ASCII; only values of keys that end in `-bin` may be bytes. */
    public var metadata: Metadata = Metadata.EMPTY

    /** Priority class. Default [Priority.NORMAL]. */
    public var priority: Priority = Priority.NORMAL

    /**
     * Whether a unary call may be executed twice, so that it is tried again though a server may have seen it (gRFC A6). Default `false`,
     * or what [ConnectOptions.serviceConfig] says of the method. Streams are not tried again.
     */
    public var idempotent: Boolean = false

    /** What tells a unary call from every other. Default: none. */
    public var idempotencyKey: IdempotencyKey? = null

    /** [timeout], for Java. */
    public fun timeout(limit: java.time.Duration): CallOptions = apply { timeout = limit.toKotlinDuration() }

    /** [metadata], as a chain. */
    public fun metadata(metadata: Metadata): CallOptions = apply { this.metadata = metadata }

    /** One entry more in [metadata]. */
    public fun metadata(key: String, value: String): CallOptions = apply { metadata = metadata.with(key, value) }

    /** [priority], as a chain. */
    public fun priority(priority: Priority): CallOptions = apply { this.priority = priority }

    /** [idempotent], as a chain. */
    public fun idempotent(idempotent: Boolean): CallOptions = apply { this.idempotent = idempotent }

    /** [idempotencyKey], as a chain. */
    public fun idempotencyKey(key: IdempotencyKey?): CallOptions = apply { idempotencyKey = key }

    internal val timeoutMs: Long get() = Packed.milliseconds(timeout, "timeout")

    /** What a call is sent as, in one number. */
    internal val how: Int
        get() = priority.ordinal + (if (idempotent) 4 else 0) + (if (idempotencyKey === IdempotencyKey.DRAWN) 8 else 0)

    internal val rest: ByteArray?
        get() {
            val key = idempotencyKey?.bytes
            return if (key == null && metadata.isEmpty()) null else Packed().bytes(key).metadata(metadata).toArray()
        }

    internal companion object {
        val NONE = CallOptions()
    }
}

/** How important a call is beside others of its client. */
public enum class Priority {
    /** Before all others. */
    CRITICAL,

    /** As calls are. */
    NORMAL,

    /** After all others. */
    BULK,
}

/**
 * 1 to 64 bytes that tell a unary call from every other of its caller's and its method's, as an order's number does. It may be tried again
 * then like an idempotent one: a server that keeps keys runs it once and answers each time, with `valkyrie-replayed` in the metadata
 * of an answer that is not the first (PROTOCOL.md, W5-12). A key of another length, one that was used for another message and one for
 * a stream end the call with `INVALID_ARGUMENT`.
 */
public class IdempotencyKey private constructor(internal val bytes: ByteArray?) {
    public companion object {
        /** 128 random bits for each call. */
        @JvmField public val DRAWN: IdempotencyKey = IdempotencyKey(null)

        /** Text, as UTF-8. */
        @JvmStatic public fun of(text: String): IdempotencyKey = IdempotencyKey(text.utf8())

        /** Bytes. */
        @JvmStatic public fun of(bytes: ByteArray): IdempotencyKey = IdempotencyKey(bytes.clone())
    }
}
