// grpc-java's asynchronous unary call. Messages are bytes, as ../proto/echo.proto has them, without the work of generated classes.
package bench

import io.grpc.CallOptions
import io.grpc.ManagedChannel
import io.grpc.MethodDescriptor
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder
import io.grpc.stub.ClientCalls
import io.grpc.stub.StreamObserver
import java.io.ByteArrayInputStream
import java.io.InputStream
import kotlin.coroutines.resume
import kotlin.coroutines.resumeWithException
import kotlin.coroutines.suspendCoroutine

/** `direct`: answers are handled on the thread that read them, and not by the channel's pool. */
class Grpc(host: String, port: Int, direct: Boolean) : Client {
    private val channel: ManagedChannel = NettyChannelBuilder.forAddress(host, port)
        .usePlaintext()
        .maxInboundMessageSize(64 shl 20)
        .apply { if (direct) directExecutor() }
        .build()

    override suspend fun echo(payload: ByteArray) = suspendCoroutine { continuation ->
        ClientCalls.asyncUnaryCall(channel.newCall(UNARY, CallOptions.DEFAULT), payload, object : StreamObserver<ByteArray> {
            private var answer = ByteArray(0)

            override fun onNext(value: ByteArray) {
                answer = value
            }

            override fun onError(error: Throwable) = continuation.resumeWithException(error)

            override fun onCompleted() = continuation.resume(answer.size)
        })
    }

    override suspend fun close() {
        channel.shutdownNow()
    }
}

private val UNARY: MethodDescriptor<ByteArray, ByteArray> = MethodDescriptor.newBuilder(Msg, Msg)
    .setType(MethodDescriptor.MethodType.UNARY)
    .setFullMethodName("bench.Echo/Unary")
    .build()

/** The message `Msg`: its one field, bytes. */
private object Msg : MethodDescriptor.Marshaller<ByteArray> {
    private const val TAG = 1 shl 3 or 2

    override fun stream(value: ByteArray): InputStream {
        val head = ByteArray(6)
        head[0] = TAG.toByte()
        var (at, length) = 1 to value.size
        while (length >= 0x80) {
            head[at++] = (length or 0x80).toByte()
            length = length ushr 7
        }
        head[at++] = length.toByte()
        return ByteArrayInputStream(head.copyOf(at + value.size).also { value.copyInto(it, at) })
    }

    override fun parse(stream: InputStream): ByteArray {
        val first = stream.read()
        if (first < 0) return ByteArray(0)
        check(first == TAG) { "field $first" }
        var (length, shift) = 0 to 0
        do {
            val byte = stream.read()
            length = length or (byte and 0x7f shl shift)
            shift += 7
        } while (byte and 0x80 != 0)
        return stream.readNBytes(length)
    }
}
