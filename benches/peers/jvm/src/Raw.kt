// Raw framing on one thread and a blocking socket: each answer that was read is followed by the next request, and whatever was read
// at once is answered by one write. No library does with less.
package bench

import java.net.InetSocketAddress
import java.net.StandardSocketOptions
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.SocketChannel

class Raw(host: String, port: Int) : Client {
    private val socket = SocketChannel.open(InetSocketAddress(host, port)).apply { setOption(StandardSocketOptions.TCP_NODELAY, true) }
    private val input = buffer(2 shl 20).flip()

    override suspend fun echo(payload: ByteArray): Int {
        val output = buffer(HEAD + payload.size)
        request(output, 0, payload)
        write(output)
        return answer().also { skip(it) }
    }

    override suspend fun load(payload: ByteArray, inFlight: Int, seconds: Double): Samples {
        val end = System.nanoTime() + (seconds * 1e9).toLong()
        val (samples, began) = Samples() to LongArray(inFlight)
        val output = buffer(inFlight * (HEAD + payload.size))
        repeat(inFlight) { slot ->
            began[slot] = System.nanoTime()
            request(output, slot, payload)
        }
        var left = inFlight
        while (left > 0) {
            write(output)
            output.clear()
            do {
                val length = answer()
                val slot = input.getInt(input.position() - 8)
                check(length == payload.size) { "short reply" }
                skip(length)
                val now = System.nanoTime()
                samples.add(now - began[slot])
                if (now < end) {
                    began[slot] = now
                    request(output, slot, payload)
                } else {
                    left--
                }
            } while (left > 0 && input.remaining() >= HEAD + payload.size)
        }
        return samples
    }

    override suspend fun close() = socket.close()

    private fun request(output: ByteBuffer, slot: Int, payload: ByteArray) {
        output.putInt(payload.size).putInt(slot).putInt(0).put(payload)
    }

    private fun write(output: ByteBuffer) {
        output.flip()
        while (output.hasRemaining()) socket.write(output)
    }

    /** Reads the next answer's head: its length. */
    private fun answer(): Int {
        fill(HEAD)
        val length = input.getInt(input.position())
        input.position(input.position() + HEAD)
        return length
    }

    private fun skip(length: Int) {
        fill(length)
        input.position(input.position() + length)
    }

    private fun fill(length: Int) {
        if (input.remaining() >= length) return
        val head = minOf(input.position(), HEAD)
        // What stands before is the head of the answer that is read.
        val kept = input.position() - head
        input.position(kept)
        input.compact()
        while (input.position() < head + length) check(socket.read(input) >= 0) { "the server closed the connection" }
        input.flip()
        input.position(head)
    }

    private fun buffer(length: Int): ByteBuffer = ByteBuffer.allocateDirect(length).order(ByteOrder.LITTLE_ENDIAN)

    private companion object {
        const val HEAD = 12
    }
}
