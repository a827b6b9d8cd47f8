package dev.valkyrie

import kotlin.time.Duration

/** How a call ended when it did not end with OK. */
public class StatusException internal constructor(message: String, private val facts: Facts) : RuntimeException(message) {
    /** The status code; [Code.UNKNOWN] for a number without a name. */
    public val code: Code get() = facts.code

    /** Number of the status code. */
    public val number: Int get() = facts.number

    /** Stable reason, finer than the code: `CONNECTION_LOST`. `NONE` when the application made the status. PROTOCOL.md has them all. */
    public val reason: String get() = facts.reason

    /** Whose fault it is. */
    public val errorClass: ErrorClass get() = facts.errorClass

    /** Typed details from the server. */
    public val details: List<Detail> get() = facts.details

    /** How long the server asks to wait before another attempt; [Duration.INFINITE]: never. */
    @get:JvmSynthetic
    public val pushback: Duration? get() = facts.pushback

    /** [pushback] for Java, in milliseconds: -1 without one, [Long.MAX_VALUE]: never. */
    public val pushbackMillis: Long get() = facts.pushback?.inWholeMilliseconds ?: -1

    /** What became of the call's attempts, a line for each; empty when none was made. */
    public val timeline: String get() = facts.timeline

    /** Metadata that came before the status. */
    public val metadata: Metadata get() = facts.metadata

    /** Trailers that came with the status. */
    public val trailers: Metadata get() = facts.trailers

    /** Whether another attempt may help. */
    public val isRetryable: Boolean get() = code == Code.UNAVAILABLE

    override fun toString(): String = "${javaClass.name}: $code ($reason): $message"

    internal fun failure() = Failure(message.orEmpty(), facts)

    internal class Facts(
        val code: Code,
        val number: Int,
        val reason: String,
        val errorClass: ErrorClass,
        val details: List<Detail>,
        val pushback: Duration?,
        val timeline: String,
        val metadata: Metadata,
        val trailers: Metadata,
    )

    private companion object {
        private const val serialVersionUID = 1L
    }
}

/** A typed detail of a status. */
public class Detail internal constructor(
    /** Name of its type. */
    public val type: String,
    /** What it is. */
    public val value: ByteArray,
)

/** Whose fault an error is. */
public enum class ErrorClass {
    /** The server's application says so. */
    APPLICATION,

    /** The caller's: the same call will fail again. */
    CALLER,

    /** Of who calls, or what it may. */
    AUTH,

    /** It may work at another time. */
    TRANSIENT,

    /** The server's. */
    SERVER,

    /** One side does not keep to the protocol. */
    PROTOCOL,
    ;

    internal companion object {
        fun of(name: String): ErrorClass = entries.find { it.name.equals(name, ignoreCase = true) } ?: APPLICATION
    }
}

/** The status codes, which are gRPC's; a code's number is its ordinal. */
public enum class Code {
    /** Not an error. */
    OK,

    /** The caller gave the call up. */
    CANCELLED,

    /** An error without a better code, or a code without a name. */
    UNKNOWN,

    /** The call says something that cannot be. */
    INVALID_ARGUMENT,

    /** The time limit passed. */
    DEADLINE_EXCEEDED,

    /** What is asked for is not there. */
    NOT_FOUND,

    /** What is to be made is there. */
    ALREADY_EXISTS,

    /** Whoever calls may not. */
    PERMISSION_DENIED,

    /** A quota, a queue or a memory is full. */
    RESOURCE_EXHAUSTED,

    /** The system is not in the state that the call needs. */
    FAILED_PRECONDITION,

    /** Something else came in between. */
    ABORTED,

    /** Past the end of something. */
    OUT_OF_RANGE,

    /** There is no such method. */
    UNIMPLEMENTED,

    /** Something that should hold does not. */
    INTERNAL,

    /** The server cannot be reached just now. */
    UNAVAILABLE,

    /** Data is lost. */
    DATA_LOSS,

    /** Nobody knows who calls. */
    UNAUTHENTICATED,
    ;

    /** The code's number. */
    public val number: Int get() = ordinal

    internal companion object {
        fun of(number: Int): Code = entries.getOrElse(number) { UNKNOWN }
    }
}
