package dev.valkyrie

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardCopyOption

/** Finds and loads the native part, once for each class loader: the JVM gives a file to one of them only. */
internal object Library {
    private const val PROPERTY = "valkyrie.library.path"
    private const val VARIABLE = "VALKYRIE_LIBRARY"

    /** The layout of `bindings/bridge/src/layout.rs` that [Batch] reads. */
    private const val LAYOUT = 2

    private val BUILD =
        "Build the crate valkyrie-jni on this machine, and name the library by -D$PROPERTY=FILE or $VARIABLE=FILE"

    /** As the folders in the jar are named: `linux-x86-64`. */
    private val platform: String by lazy {
        val system = System.getProperty("os.name").lowercase()
        val os =
            when {
                system.startsWith("mac") -> "darwin"
                system.startsWith("windows") -> "win32"
                else -> system.replace(' ', '-')
            }
        val arch =
            when (val arch = System.getProperty("os.arch")) {
                "amd64", "x86_64" -> "x86-64"
                "arm64" -> "aarch64"
                else -> arch
            }
        "$os-$arch"
    }

    fun load() {
        val name = System.mapLibraryName("valkyrie_jni")
        val named =
            System.getProperty(PROPERTY)?.let { "-D$PROPERTY" to it }
                ?: System.getenv(VARIABLE)?.takeIf { it.isNotEmpty() }?.let { VARIABLE to it }
        if (named != null) {
            val file = File(named.second).let { if (it.isDirectory) File(it, name) else it }.absoluteFile
            loadNamed(file.toPath(), "${named.first} says $file")
        } else {
            loadPacked("$platform/$name")
        }
    }

    /** Whether the parts fit together. Asked once it is loaded, from where the first call comes. */
    fun check() {
        val ours = Library::class.java.getResource("version")?.readText()?.trim()
        val built = Native.version().decodeToString()
        if (built.substringBefore(' ') != ours) {
            throw UnsatisfiedLinkError("dev.valkyrie is $ours and its native part is $built: take both from the same build")
        }
        val layout = Native.layoutVersion()
        if (layout != LAYOUT) {
            throw UnsatisfiedLinkError(
                "dev.valkyrie reads completions in layout $LAYOUT and its native part writes layout $layout: take both from the " +
                    "same build",
            )
        }
    }

    private fun loadNamed(file: Path, said: String) {
        if (!Files.isRegularFile(file)) throw UnsatisfiedLinkError("$said, and there is no such file")
        try {
            System.load(file.toString())
        } catch (error: UnsatisfiedLinkError) {
            // The JVM has no other name for this than the message. A copy is another file, with its own state.
            if (error.message?.contains("already loaded in another classloader") != true) throw missing(said, error)
            Files.newInputStream(file).use { loadCopy(it, said) }
        }
    }

    private fun loadPacked(resource: String) {
        val packed = Library::class.java.getResourceAsStream("/$resource")
            ?: throw UnsatisfiedLinkError(
                "the class path has no $resource, the native part of dev.valkyrie for this platform: take the jar that is built for it. $BUILD",
            )
        packed.use { loadCopy(it, "the class path has $resource") }
    }

    /** The copy goes as soon as it is loaded, where the system lets go of a name, and with the JVM elsewhere. */
    private fun loadCopy(from: InputStream, said: String) {
        val copy =
            try {
                Files.createTempFile("valkyrie_jni", ".lib").also { Files.copy(from, it, StandardCopyOption.REPLACE_EXISTING) }
            } catch (error: IOException) {
                throw missing("$said, and it cannot be copied to ${System.getProperty("java.io.tmpdir")} (-Djava.io.tmpdir)", error)
            }
        try {
            System.load(copy.toString())
        } catch (error: UnsatisfiedLinkError) {
            throw missing("$said, and its copy $copy cannot be loaded", error)
        } finally {
            try {
                Files.delete(copy)
            } catch (_: IOException) {
                copy.toFile().deleteOnExit()
            }
        }
    }

    private fun missing(said: String, cause: Throwable) =
        UnsatisfiedLinkError("$said: ${cause.message}. $BUILD").apply { initCause(cause) }
}
