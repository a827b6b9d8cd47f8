package dev.valkyrie.tests

import dev.valkyrie.CallOptions
import dev.valkyrie.Client
import java.io.File
import java.net.URLClassLoader
import java.util.jar.JarFile
import kotlin.system.exitProcess
import kotlin.time.Duration
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test

private const val PROGRAMS = "dev.valkyrie.tests.Programs"

class ProcessTest {
    private val jar = File(Client::class.java.protectionDomain.codeSource.location.toURI())

    /** The native part by itself. */
    private val library: File by lazy {
        JarFile(jar).use { packed ->
            val entry = packed.entries().asSequence().first { it.name.endsWith(System.mapLibraryName("valkyrie_jni")) }
            File.createTempFile("native", ".lib").apply {
                deleteOnExit()
                packed.getInputStream(entry).use { from -> outputStream().use(from::copyTo) }
            }
        }
    }

    @Test
    fun `a JVM ends while calls are in flight`() {
        for (how in listOf("return", "exit", "uncaught")) {
            val ended = java(PROGRAMS, how, Server.tcp)
            assertTrue(ended.said.contains("1000 in flight"), ended.said)
            assertEquals(if (how == "exit") 3 else if (how == "uncaught") 1 else 0, ended.code, ended.said)
            assertTrue("SIGSEGV" !in ended.said && "SIGABRT" !in ended.said)
        }
    }

    @Test
    fun `a JVM without memory for answers goes on when it has some`() {
        val ended = java(PROGRAMS, "memory", Server.tcp, flags = listOf("-XX:+UseSerialGC", "-Xmx48m"))
        assertTrue(ended.said.contains("some failed, and then it went on"), ended.said)
        assertEquals(0, ended.code, ended.said)
    }

    @Test
    fun `two class loaders have a library each`() {
        val ended = java(PROGRAMS, "loaders", Server.tcp)
        assertEquals("two loaders\n" to 0, ended.said to ended.code)
        val named = java(PROGRAMS, "loaders", Server.tcp, flags = listOf("-Dvalkyrie.library.path=$library"))
        assertEquals("two loaders\n" to 0, named.said to named.code)
    }

    @Test
    fun `a library that cannot be loaded says what was tried`() {
        fun said(vararg flags: String) = java(PROGRAMS, "return", "echo://core", flags = flags.toList()).said
        assertTrue(said("-Dvalkyrie.library.path=/no/such").contains("-Dvalkyrie.library.path says /no/such, and there is no such file"))
        assertTrue(said("-Dos.arch=abacus").contains("the class path has no linux-abacus/"))
        assertTrue(said("-Djava.io.tmpdir=/no/such").contains("cannot be copied to /no/such"))
        val text = File.createTempFile("native", ".lib").apply {
            deleteOnExit()
            writeText("not a library")
        }
        val refused = said("-Dvalkyrie.library.path=$text")
        assertTrue(refused.contains("-Dvalkyrie.library.path says $text: ") && refused.contains("Build the crate valkyrie-jni"), refused)
    }

    @Test
    fun `what is not used starts no thread`() {
        val ended = java(PROGRAMS, "idle")
        assertEquals("0 threads\n" to 0, ended.said to ended.code)
        assumeTrue(jar.name.endsWith(".jar"))
    }
}

/** Programs that run in a JVM of their own. */
object Programs {
    @JvmStatic
    fun main(arguments: Array<String>) {
        when (arguments[0]) {
            "loaders" -> loaders(arguments[1])
            "memory" -> memory(arguments[1])
            "idle" -> {
                Class.forName("dev.valkyrie.Client")
                println("${Thread.getAllStackTraces().keys.count { it.name.startsWith("valkyrie") }} threads")
            }
            else -> inFlight(arguments[0], arguments[1])
        }
    }

    private fun inFlight(how: String, endpoint: String) {
        val client = Client.connectBlocking(endpoint)
        val forever = CallOptions().apply { timeout = Duration.INFINITE }
        repeat(1000) { client.callAsync("/test/hang", ByteArray(0), forever) }
        client.callBlocking("/echo", ByteArray(0))
        println("1000 in flight")
        if (how == "exit") exitProcess(3)
        check(how != "uncaught") { "on purpose" }
    }

    private fun memory(endpoint: String) {
        Client.connectBlocking(endpoint).use { client ->
            val message = ByteArray(2 shl 20)
            val patient = CallOptions().apply { timeout = Duration.INFINITE }
            // Each keeps its answer, and there is no room for all of them.
            var calls = List(32) { client.callAsync("/echo", message, patient).handle { reply, error -> reply to error } }
            val failed = calls.count { it.get().second != null }
            calls = emptyList()
            check(client.callBlocking("/echo", byteArrayOf(7), patient).contentEquals(byteArrayOf(7)))
            println(if (failed > 0) "some failed, and then it went on" else "none failed")
        }
    }

    private fun loaders(endpoint: String) {
        val needed = listOf("dev.valkyrie.Client", "kotlin.Unit", "kotlinx.coroutines.Job")
        val urls = needed.map { Class.forName(it).protectionDomain.codeSource.location }.toTypedArray()
        val clients = List(2) {
            val type = URLClassLoader(urls, ClassLoader.getPlatformClassLoader()).loadClass("dev.valkyrie.Client")
            type to type.getMethod("connectBlocking", String::class.java).invoke(null, endpoint) as AutoCloseable
        }
        check(clients[0].first !== clients[1].first)
        for ((type, client) in clients) {
            val call = type.getMethod("callBlocking", String::class.java, ByteArray::class.java)
            check((call.invoke(client, "/echo", byteArrayOf(7)) as ByteArray).contentEquals(byteArrayOf(7)))
        }
        clients.forEach { it.second.close() }
        println("two loaders")
    }
}
