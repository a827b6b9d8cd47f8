package dev.valkyrie

import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds

/** What a client's circuit breaker of one server and one method does. */
public class Breaker internal constructor(
    /** The server's endpoint. */
    public val server: String,
    /** Calls of which method; `null` for all, while the whole server is isolated. */
    public val method: String?,
    /** Whether it lets calls pass. */
    public val state: BreakerState,
    /** How long it has done so; `null` while it has never done anything else. */
    @get:JvmSynthetic
    public val age: Duration?,
    /** An open one's: after how long it lets trial calls pass. */
    @get:JvmSynthetic
    public val opensFor: Duration?,
    /** Calls that it remembers, 10 s of them unless the service config says otherwise. */
    public val calls: Long,
    /** Those of them that failed. */
    public val failures: Long,
    /** How often its state has changed. */
    public val changes: Long,
) {
    internal companion object {
        /** The breakers in the JSON of `bindings/bridge/src/report.rs`. */
        fun of(json: String): List<Breaker> =
            Json(json).list().map { facts ->
                Breaker(
                    server = facts["server"].orEmpty(),
                    method = facts["method"],
                    state = BreakerState.valueOf(facts["state"].orEmpty().uppercase()),
                    age = facts["age_ms"]?.toLong()?.milliseconds,
                    opensFor = facts["opens_for_ms"]?.toLong()?.milliseconds,
                    calls = facts["calls"]?.toLong() ?: 0,
                    failures = facts["failures"]?.toLong() ?: 0,
                    changes = facts["changes"]?.toLong() ?: 0,
                )
            }
    }
}

/** What a breaker does. */
public enum class BreakerState {
    /** Calls pass. */
    CLOSED,

    /** No call passes. */
    OPEN,

    /** Some trial calls pass. */
    HALF_OPEN,

    /** No call passes until [Client.restore]. */
    ISOLATED,
}

/** Reads a list of flat objects; their numbers as text, and nothing for what is null. */
private class Json(private val text: String) {
    private var at = 0

    fun list(): List<Map<String, String>> = buildList { each(']') { add(flat()) } }

    private fun flat(): Map<String, String> = buildMap {
        each('}') {
            val key = string()
            at++
            value()?.let { put(key, it) }
        }
    }

    private inline fun each(end: Char, item: () -> Unit) {
        at++
        while (text[at] != end) {
            item()
            if (text[at] == ',') at++
        }
        at++
    }

    private fun value(): String? {
        if (text[at] == '"') return string()
        val begin = at
        while (text[at] !in ",}") at++
        return text.substring(begin, at).takeIf { it != "null" }
    }

    private fun string() = buildString {
        at++
        while (text[at] != '"') {
            if (text[at] != '\\') {
                append(text[at++])
            } else if (text[at + 1] == 'u') {
                append(text.substring(at + 2, at + 6).toInt(16).toChar())
                at += 6
            } else {
                append(text[at + 1])
                at += 2
            }
        }
        at++
    }
}
