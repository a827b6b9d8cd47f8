package dev.valkyrie.tests

import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import kotlin.time.Duration
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class LoadTest {
    /** VALKYRIE_SOAK makes it ten times as many. */
    private val calls = if (System.getenv("VALKYRIE_SOAK") == null) 100_000 else 1_000_000

    private fun descriptors() = File("/proc/self/fd").list()?.size ?: 0

    /** Beside a logger, which always waits. */
    private val before = inFlight()

    private fun nothingLeft() {
        // Completions of what was cancelled may still be on their way.
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(30)
        while (inFlight() != before && System.nanoTime() < end) Thread.onSpinWait()
        assertEquals(before, inFlight())
    }

    @Test
    fun `64 threads call at once, each its own answers`() {
        val threads = Executors.newFixedThreadPool(64)
        Client.connectBlocking(Server.tcp).use { client ->
            val wrong = AtomicInteger()
            val done = List(64) { thread ->
                threads.submit {
                    repeat(200) {
                        if (client.callBlocking("/echo", "$thread $it".encodeToByteArray()).decodeToString() != "$thread $it") {
                            wrong.incrementAndGet()
                        }
                    }
                }
            }
            done.forEach { it.get(60, TimeUnit.SECONDS) }
            assertEquals(0, wrong.get())
        }
        threads.shutdown()
    }

    @Test
    fun `many calls leave nothing behind`() = runBlocking {
        val client = Client.connect(Server.tcp)
        val before = descriptors()
        coroutineScope {
            repeat(64) { launch(Dispatchers.Default) { repeat(calls / 64) { client.request("$it") } } }
        }
        nothingLeft()
        assertTrue(descriptors() <= before + 4, "${descriptors()} descriptors, $before before")
        client.close()
    }

    @Test
    fun `a storm of cancels leaves nothing behind`() = runBlocking {
        val client = Client.connect(Server.tcp)
        val options = CallOptions().apply { timeout = Duration.INFINITE }
        val hanging = List(5_000) { client.callAsync("/test/hang", "kotlin-storm".encodeToByteArray(), options) }
        // Those fill the connection.
        val watch = Client.connect(Server.tcp)
        watch.call("/test/hang_stats", "kotlin-storm", CallOptions().metadata("until", "started"))
        hanging.forEach { it.cancel(true) }
        nothingLeft()
        // Every stream that the connection may have is free.
        assertEquals(1024, List(1024) { async { client.request("$it") } }.awaitAll().size)
        watch.close()
        client.close()
    }

    @Test
    fun `clients and streams that nobody closes are collected`() = runBlocking {
        val before = descriptors()
        repeat(200) {
            val client = Client.connect(Server.tcp)
            client.open("/echo").send("x")
        }
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60)
        while (descriptors() > before + 20 && System.nanoTime() < end) {
            System.gc()
            Thread.yield()
        }
        assertTrue(descriptors() <= before + 20, "${descriptors()} descriptors, $before before")
    }
}
