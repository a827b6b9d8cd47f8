// Options of clients and calls.
import CValkyrie

#if canImport(Darwin)
import Darwin
#elseif canImport(Musl)
import Musl
#else
import Glibc
#endif

/// Certificates, revocation lists or a private key in PEM: the text itself, or the path of a file, which is looked at again
/// for each connection, once a second at most, so that it may be replaced.
public enum Pem: Sendable, ExpressibleByStringLiteral {
    case text(String)
    case file(String)

    public init(stringLiteral text: String) {
        self = .text(text)
    }
}

/// A certificate chain, the client's own first, and its private key.
public struct Identity: Sendable {
    public var certificates: Pem
    public var key: Pem

    public init(certificates: Pem, key: Pem) {
        self.certificates = certificates
        self.key = key
    }
}

/// Whom a client calls for. A token travels encrypted or within the machine only.
public enum Token: Sendable, ExpressibleByStringLiteral {
    /// Such as a JWT.
    case fixed(String)
    /// Called for each new connection, and for a newer token before the last one ends, while streams go on; never twice at
    /// once. What it throws ends the calls that wait with reason `CREDENTIALS_UNAVAILABLE` and its description, which must hold
    /// no secret; so does silence for `ConnectOptions.connectTimeout`. It is kept as long as the client: it must not keep that.
    case source(@Sendable () async throws -> String)

    public init(stringLiteral token: String) {
        self = .fixed(token)
    }
}

/// The least protection of connections.
public enum Security: Sendable {
    /// Connections need no protection.
    case insecure
    /// They are encrypted, and the server proves who it is.
    case tls
    /// So, and the client proves who it is by a certificate.
    case mtls
}

/// Options of `Client.connect`.
public struct ConnectOptions: Sendable {
    /// Time limit of unary calls that give none. Default: 5 s; `.unlimited`: none.
    public var timeout: Duration?
    /// Time limit of making a connection. Default: 5 s.
    public var connectTimeout: Duration?
    /// Whom to trust: the server's certificates must lead to one of these. `tls://`, `wss://` and `quic://` need it, or
    /// `systemRoots`.
    public var trustedCertificates: Pem?
    /// Whether to trust those that the system trusts, beside `trustedCertificates`. Default: `false`.
    public var systemRoots = false
    /// The authorities' revocation lists (CRL): a certificate that one of them names is refused.
    public var revocationLists: Pem?
    /// What is shown to a server that asks for a certificate.
    public var identity: Identity?
    /// The name that the server's certificate must be for. Default: the endpoint's host.
    public var serverName: String?
    /// Whether to speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can read
    /// or change them. Default: `false`.
    public var sealed = false
    /// The least protection of connections. Default: `.mtls` with an identity, `.tls` with certificates to trust, else
    /// `.insecure`.
    public var minSecurity: Security?
    /// Whom the client calls for.
    public var token: Token?
    /// What the client does about failures: retries and their budget, circuit breakers, throttling, balancing, and which
    /// methods are idempotent. JSON with the keys of docs/policies.md; the defaults there hold for those that it lacks. One that
    /// is wrong throws with reason `INVALID_CONFIGURATION`, and says line, key and what to write instead.
    public var serviceConfig: String?
    /// How long the server may be silent while calls are open until it is asked whether it is there. Default: 30 s, at least
    /// 10 s; zero or `.unlimited`: never. One that says nothing within `keepaliveTimeout` is gone: the connection ends with
    /// `CONNECTION_LOST`, and its calls are retried by their policy (gRFC A8). Other times throw with reason
    /// `INVALID_CONFIGURATION`.
    public var keepalive: Duration?
    /// How long its answer may take. Default: 10 s, at least 1 s.
    public var keepaliveTimeout: Duration?
    /// `keepalive` while no call is open, for networks that forget who is idle. Default: zero, never; at least 300 s.
    public var keepaliveIdle: Duration?

    /// Every option at its default, but those that are given.
    public init(
        timeout: Duration? = nil, connectTimeout: Duration? = nil, trustedCertificates: Pem? = nil,
        systemRoots: Bool = false, revocationLists: Pem? = nil, identity: Identity? = nil, serverName: String? = nil,
        sealed: Bool = false, minSecurity: Security? = nil, token: Token? = nil, serviceConfig: String? = nil,
        keepalive: Duration? = nil, keepaliveTimeout: Duration? = nil, keepaliveIdle: Duration? = nil
    ) {
        self.timeout = timeout
        self.connectTimeout = connectTimeout
        self.trustedCertificates = trustedCertificates
        self.systemRoots = systemRoots
        self.revocationLists = revocationLists
        self.identity = identity
        self.serverName = serverName
        self.sealed = sealed
        self.minSecurity = minSecurity
        self.token = token
        self.serviceConfig = serviceConfig
        self.keepalive = keepalive
        self.keepaliveTimeout = keepaliveTimeout
        self.keepaliveIdle = keepaliveIdle
    }

    /// Lends the options to C; `source` is the number of the token's function.
    func withOptions<R>(_ source: TokenSources.Number?, _ body: (UnsafePointer<valkyrie_client_options>) throws -> R) throws -> R {
        let texts = Texts()
        var out = valkyrie_client_options()
        out.struct_size = UInt32(MemoryLayout<valkyrie_client_options>.size)
        out.timeout_ms = try timeLimit(timeout, "timeout")
        out.connect_timeout_ms = try timeLimit(connectTimeout, "connectTimeout")
        out.trusted_certificates = try texts.keep(trustedCertificates, "trustedCertificates")
        out.revocation_lists = try texts.keep(revocationLists, "revocationLists")
        out.identity_certificates = try texts.keep(identity?.certificates, "identity.certificates")
        out.identity_key = try texts.keep(identity?.key, "identity.key")
        out.server_name = try texts.keep(serverName, "serverName")
        out.system_roots = systemRoots ? 1 : 0
        out.sealed = sealed ? 1 : 0
        out.min_security =
            switch minSecurity {
            case nil: UInt32(VALKYRIE_SECURITY_DEFAULT)
            case .insecure: UInt32(VALKYRIE_SECURITY_INSECURE)
            case .tls: UInt32(VALKYRIE_SECURITY_TLS)
            case .mtls: UInt32(VALKYRIE_SECURITY_MTLS)
            }
        if case .fixed(let token) = token {
            out.token = try texts.keep(token, "token")
        }
        if let source {
            out.token_source = TokenSources.asked
            out.token_user_data = UnsafeMutableRawPointer(bitPattern: source)
        }
        out.service_config = try texts.keep(serviceConfig, "serviceConfig")
        let silence = try keepalive?.milliseconds("keepalive")
        out.keepalive_ms = silence.map { $0 == 0 ? UInt64.max : $0 } ?? 0
        out.keepalive_timeout_ms = try timeLimit(keepaliveTimeout, "keepaliveTimeout")
        let idle = try keepaliveIdle?.milliseconds("keepaliveIdle") ?? 0
        out.keepalive_idle_ms = idle == UInt64.max ? 0 : idle
        return try withExtendedLifetime(texts) { try body(&out) }
    }
}

/// Priority class of a call.
public enum Priority: Sendable {
    /// Ahead of everything else.
    case critical
    case normal
    /// Behind everything else, with a small share always.
    case bulk
}

/// 1 to 64 bytes, text as UTF-8, that tell a unary call from every other of its caller's and its method's, as an order's number
/// does. It may be tried again then like an idempotent one: a server that keeps keys runs it once and answers each time, with
/// `valkyrie-replayed` in the metadata of an answer that is not the first (PROTOCOL.md, W5-12). A key of another length, one that
/// was used for another message and one for a stream throw with code `.invalidArgument`.
public enum IdempotencyKey: Sendable, ExpressibleByStringLiteral {
    case text(String)
    case bytes([UInt8])
    /// 128 random bits, new for each call.
    case drawn

    public init(stringLiteral text: String) {
        self = .text(text)
    }
}

/// Options of a call.
public struct CallOptions: Sendable {
    /// Time limit. Default: the client's for unary calls, none for streams; `.unlimited`: none.
    public var timeout: Duration?
    /// Metadata that is sent with the call, at most 128 entries.
    public var metadata: Metadata
    /// Priority class. Default: `.normal`.
    public var priority: Priority
    /// Whether a unary call may be executed twice, so that it is tried again though a server may have seen it (gRFC A6).
    /// Default: `false`, or what `ConnectOptions.serviceConfig` says of the method. Streams are not tried again.
    public var idempotent: Bool
    /// Default: none.
    public var idempotencyKey: IdempotencyKey?

    /// Every option at its default, but those that are given.
    public init(
        timeout: Duration? = nil, metadata: Metadata = Metadata(), priority: Priority = .normal, idempotent: Bool = false,
        idempotencyKey: IdempotencyKey? = nil
    ) {
        self.timeout = timeout
        self.metadata = metadata
        self.priority = priority
        self.idempotent = idempotent
        self.idempotencyKey = idempotencyKey
    }

    /// Lends the options to C.
    func withOptions<R>(_ body: (UnsafePointer<valkyrie_call_options>) throws -> R) throws -> R {
        var out = valkyrie_call_options()
        out.struct_size = UInt32(MemoryLayout<valkyrie_call_options>.size)
        out.priority =
            switch priority {
            case .normal: UInt32(VALKYRIE_PRIORITY_NORMAL)
            case .critical: UInt32(VALKYRIE_PRIORITY_CRITICAL)
            case .bulk: UInt32(VALKYRIE_PRIORITY_BULK)
            }
        out.timeout_ms = try timeLimit(timeout, "timeout")
        out.idempotent = idempotent ? 1 : 0
        var key: [UInt8] = []
        switch idempotencyKey {
        case nil: break
        case .drawn: out.draw_idempotency_key = 1
        case .text(let text): key = Array(text.utf8)
        case .bytes(let bytes): key = bytes
        }
        let given = idempotencyKey != nil && out.draw_idempotency_key == 0
        let length = UInt(key.count)
        // No bytes are a key too, which the core refuses: only NULL is none.
        if given && key.isEmpty { key = [0] }
        return try key.withUnsafeBufferPointer { key in
            if given { out.idempotency_key = valkyrie_bytes(data: key.baseAddress, len: length) }
            return try metadata.withEntries { entries in
                out.metadata = entries.baseAddress
                out.metadata_len = UInt(entries.count)
                return try body(&out)
            }
        }
    }
}

/// 0 is the library's default; a time of zero is the shortest.
private func timeLimit(_ time: Duration?, _ name: String) throws -> UInt64 {
    guard let time else { return 0 }
    return max(try time.milliseconds(name), 1)
}

/// Texts that C reads until this is gone.
private final class Texts {
    private var kept: [UnsafeMutablePointer<CChar>] = []

    deinit {
        kept.forEach { free($0) }
    }

    func keep(_ text: String?, _ name: String) throws -> UnsafePointer<CChar>? {
        guard let text else { return nil }
        guard let copy = try withText(text, name, { strdup($0) }) else {
            throw StatusError(.resourceExhausted, "TOO_MANY_OBJECTS", "no memory for \(name)")
        }
        kept.append(copy)
        return UnsafePointer(copy)
    }

    func keep(_ pem: Pem?, _ name: String) throws -> UnsafePointer<CChar>? {
        switch pem {
        case nil: return nil
        case .file(let path): return try keep("file:" + path, name)
        case .text(let text):
            guard !text.hasPrefix("file:") else {
                throw StatusError(.invalidArgument, "INVALID_ARGUMENT", "\(name) is no PEM; write .file(path) for a file")
            }
            return try keep(text, name)
        }
    }
}
