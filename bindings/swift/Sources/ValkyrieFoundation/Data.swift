// Foundation's Data in the place of arrays.
import Foundation
import Valkyrie

extension Data: Message {
    public func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try withUnsafeBytes(body)
    }
}

extension Response {
    /// The message where it is, without a copy: the library frees it with the last reference.
    public var data: Data {
        received.withBytes { bytes in
            guard let start = bytes.baseAddress, bytes.count > 0 else { return Data() }
            let kept = Unmanaged.passRetained(received)
            return Data(
                bytesNoCopy: UnsafeMutableRawPointer(mutating: start), count: bytes.count,
                deallocator: .custom { _, _ in kept.release() })
        }
    }
}

extension Client {
    /// A unary call whose answer is not copied. As `call` else.
    public func data(_ method: String, _ message: some Message, options: CallOptions? = nil) async throws -> Data {
        try await callWithResponse(method, message, options: options).data
    }
}
