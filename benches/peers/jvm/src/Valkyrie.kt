package bench

import dev.valkyrie.Client as Connection

class Valkyrie private constructor(private val client: Connection) : Client {
    override suspend fun echo(payload: ByteArray) = client.call("/echo", payload).size

    override suspend fun close() = client.shutdown()

    companion object {
        suspend fun connect(host: String, port: Int) = Valkyrie(Connection.connect("tcp://$host:$port"))
    }
}
