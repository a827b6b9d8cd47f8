package dev.valkyrie

import java.util.concurrent.CompletableFuture

/** What is the library's and no client's. */
public object Valkyrie {
    /** Version of the package and a hash of the core it is built from: `0.1.0 (core 1a2b3c4d)`. */
    @JvmStatic
    public val version: String by lazy { Native.version().decodeToString() }

    private var logger: Logger? = null
    private var thread: Thread? = null

    /**
     * Gives what happens to connections to [logger]: those that cannot be made or are lost ([LogLevel.WARN]), those that are made and those
     * whose server goes away ([LogLevel.INFO]), and those that end here ([LogLevel.DEBUG]); [level] is the least grave one. `null`,
     * as at first, is nobody: an error reaches whoever awaits the call, and a library that prints unasked is in the way. What is
     * logged before a logger is there is lost, and of what it is too slow for the last 1,024 records stay. It runs on a thread of its
     * own, a daemon; what it throws goes to that thread's handler of uncaught exceptions.
     */
    @JvmStatic
    @JvmOverloads
    @Synchronized
    public fun setLogger(logger: Logger?, level: LogLevel = LogLevel.WARN) {
        if (logger == null && thread == null) return
        this.logger = logger
        Native.log(if (logger == null) 0 else level.ordinal + 1)
        if (thread == null) {
            thread = Thread(null, ::log, "valkyrie-log", 0, false).apply {
                isDaemon = true
                contextClassLoader = null
                start()
            }
        }
    }

    private fun log() {
        while (true) {
            val next = CompletableFuture<Any>()
            Operations.add(Native.logged(), next::complete)
            // It is ended, and nothing is lost, where the level says that nothing is wanted.
            val records = (next.get() as? Records)?.records ?: continue
            for (record in records) {
                try {
                    synchronized(this) { logger }?.log(record)
                } catch (error: Throwable) {
                    val thread = Thread.currentThread()
                    thread.uncaughtExceptionHandler?.uncaughtException(thread, error)
                }
            }
        }
    }
}

/** Is given what happens. */
public fun interface Logger {
    /** Something happened. */
    public fun log(record: LogRecord)
}

/** How grave a record is. */
public enum class LogLevel {
    /** Something is broken. */
    ERROR,

    /** A connection cannot be made, or is lost. */
    WARN,

    /** A connection is made, or its server goes away. */
    INFO,

    /** A connection ends here. */
    DEBUG,
}

/** What happened. */
public class LogRecord internal constructor(
    /** How grave it is. */
    public val level: LogLevel,
    /** What it is about: `valkyrie.connection`. */
    public val target: String,
    /** What to tell people. */
    public val message: String,
    /** Particulars: `endpoint`, `reason`. */
    public val fields: Map<String, String>,
) {
    override fun toString(): String = "$level $target: $message $fields"
}
