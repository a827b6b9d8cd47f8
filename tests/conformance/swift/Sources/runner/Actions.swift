// One function per action of ../../../README.md. It knows nothing of a single case.
import Foundation
import Valkyrie

/// What a program of Swift cannot say, as the action asks.
private let refused = "the compiler refuses it"

extension Case {
    func run() async throws -> String {
        switch string("action") {
        case "request": try await request()
        case "unary": try await check(call())
        case "twice": try await twice()
        case "stream_with_key": try await check(receiveAll(client.open(method, options: options)).1)
        case "server_stream": try await serverStream()
        case "client_stream": try await clientStream()
        case "bidi": try await bidi()
        case "cancel_before": try await cancelBefore()
        case "cancel_during": try await cancelDuring()
        case "cancel_times": return try await cancelTimes()
        case "cancel_after": try await cancelAfter()
        case "cancel_stream": try await cancelStream()
        case "leave_stream": try await leaveStream()
        case "in_flight": try await inFlight()
        case "go_away": try await goAway()
        case "connect": try await connect()
        case "connect_with": try await connectWith()
        case "failover": try await failover()
        case "script": return try await script()
        case "configured": try await configured()
        case "credentials": return try await credentials()
        case "bad_metadata": return try await badMetadata()
        case "wrong_type": return refused
        case "connectivity": return try await connectivity()
        case "breaker_changes": try await breakerChanges()
        case "reconfigured": try await reconfigured()
        case "isolate": try await isolate()
        case "metrics": try await metrics()
        case "keepalive": try await keepalive()
        case "call_closed": try await callClosed()
        case "double_close": try await doubleClose()
        case "after_shutdown": try await afterShutdown()
        case let action: throw Mismatch("unknown action \(action ?? "")")
        }
        return ""
    }

    private func request() async throws {
        do {
            let reply =
                if let text = text("text") { try await client.request(text) } else { try await client.request(message) }
            try await check(Got(reply))
        } catch let error as StatusError {
            try await check(Got(failed: error))
        }
    }

    /// Two calls with the same options; a server says which of the answers is not the first of its key.
    private func twice() async throws {
        let (first, again) = (try await call(), text("then_message"))
        let then = try await outcome {
            try await client.callWithResponse(method, again.map { Array($0.utf8) } ?? message, options: options)
        }
        if let code = string("then_code"), code != then.code { throw Mismatch("the second call: \(then.shown)") }
        if let reply = string("then_reply"), reply != utf8(then.message) {
            throw Mismatch("the second reply: \(utf8(then.message))")
        }
        let replayed = [first, then].map { $0.metadata["valkyrie-replayed"]?.text == "true" }
        guard !replayed[0] && replayed[1] == (int("replayed") == 1) else { throw Mismatch("replayed: \(replayed)") }
        try await check(first)
    }

    private func serverStream() async throws {
        let stream = try client.stream(method, text("text") ?? "", options: options)
        let (received, got) = try await receiveAll(stream) { $0 == pattern($1) }
        guard received == count else { throw Mismatch("expected \(count) messages, got \(received), then \(got.shown)") }
        try await check(got)
    }

    private func clientStream() async throws {
        let stream = try client.open(method, options: options)
        do {
            for i in 0..<count { try await stream.send(pattern(i)) }
            try await stream.halfClose()
        } catch is StatusError {
            // The call may be over already; receiving says how it ended.
        }
        var reply: [UInt8] = []
        var (received, got) = try await receiveAll(stream) { message, _ in
            reply = message
            return true
        }
        guard got.code != "OK" || received == 1 else { throw Mismatch("expected one reply, got \(received)") }
        got.message = reply
        try await check(got)
    }

    private func bidi() async throws {
        let stream = try client.open(method, options: options)
        func receive(_ i: Int) async throws {
            guard try await stream.receive() == pattern(i) else { throw Mismatch("message \(i) is not the one sent") }
        }
        let lockstep = int("lockstep") == 1
        for i in 0..<count {
            try await stream.send(pattern(i))
            if lockstep { try await receive(i) }
        }
        try await stream.halfClose()
        if !lockstep {
            for i in 0..<count { try await receive(i) }
        }
        let (received, got) = try await receiveAll(stream)
        guard received == 0 else { throw Mismatch("a message after the last") }
        try await check(got)
    }

    private func cancelBefore() async throws {
        let call = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await self.call()
        }
        try await check(call.value)
    }

    private func cancelDuring() async throws {
        let call = Task { try await self.call() }
        _ = try await hang("started")
        call.cancel()
        try await check(call.value)
    }

    private func cancelTimes() async throws -> String {
        var took: [Int] = []
        for number in 0..<count {
            let round = with(token: "\(token)-\(number)")
            let call = Task { try await round.call() }
            _ = try await round.hang("started")
            let since = Int(Date().timeIntervalSince1970 * 1e6)
            call.cancel()
            try await round.check(call.value)
            took.append(max(try await round.hang("dropped") - since, 0))
        }
        took.sort()
        return "\(took[took.count / 2]) µs, \(took.last ?? 0) at worst"
    }

    private func cancelAfter() async throws {
        let first = Task { try await self.call() }
        try await check(first.value)
        first.cancel()
        try await check(call())
    }

    private func cancelStream() async throws {
        let stream = try client.open(method, options: options)
        try await stream.send(message)
        _ = try await hang("started")
        stream.cancel()
        try await check(receiveAll(stream).1)
    }

    private func leaveStream() async throws {
        var left = count
        for try await _ in try client.stream(method, message, options: options) {
            left -= 1
            if left == 0 { break }
        }
        guard left == 0 else { throw Mismatch("the stream ended \(left) messages early") }
        try await check(outcome { try await client.callWithResponse("/echo", "x") })
    }

    private func inFlight() async throws {
        let (method, options) = (method, options)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for i in 0..<count {
                group.addTask {
                    let reply = try await self.client.call(method, "\(i)", options: options)
                    guard utf8(reply) == "\(i)" else { throw Mismatch("reply \(i) is \(utf8(reply))") }
                }
            }
            try await group.waitForAll()
        }
    }

    private func goAway() async throws {
        let own = try await freshServer()
        let stream = try own.stream(method, message, options: options)
        for i in 0..<count {
            guard try await stream.receive() != nil else { throw Mismatch("the stream ended after \(i) messages") }
        }
        _ = try? await own.call("/test/shutdown", string("how") ?? "")
        let (received, got) = try await receiveAll(stream, from: count)
        if let total = int("total"), received != total {
            throw Mismatch("expected \(total) messages, got \(received), then \(got.shown)")
        }
        try await check(got)
        let after = try await outcome { try await own.callWithResponse("/echo", "x") }
        guard after.code == string("then_code") else { throw Mismatch("then: \(after.shown)") }
        try await own.close()
    }

    private func connect() async throws {
        try await check(outcome {
            let client = try await Client.connect(text("endpoint") ?? "", options: settings.options)
            return try await client.callWithResponse("/echo", "x")
        })
    }

    /// As the case says, and in no other way.
    private func connectWith() async throws {
        let pem = { (key: String) in self.string(key).map { Pem.file($0) } }
        var options = ConnectOptions(
            trustedCertificates: pem("trusted"), revocationLists: pem("revoked"), serverName: string("server_name"),
            sealed: int("sealed") == 1)
        if let certificates = pem("identity"), let key = pem("key") {
            options.identity = Identity(certificates: certificates, key: key)
        }
        options.minSecurity =
            switch string("min_security") {
            case "insecure": .insecure
            case "tls": .tls
            case "mtls": .mtls
            default: nil
            }
        try await check(outcome {
            let client = try await Client.connect(string("endpoint") ?? "", options: options)
            let response = try await client.callWithResponse("/echo", "x")
            try await client.close()
            return response
        })
    }

    /// One of several servers is killed among many calls, 50 at a time, that may be executed twice.
    private func failover() async throws {
        let own = try await Client.connect(string("endpoint") ?? "", options: settings.options)
        var failures: [String] = []
        for first in stride(from: 0, to: count, by: 50) {
            let dies = first == count / 4 / 50 * 50
            try await withThrowingTaskGroup(of: String?.self) { group in
                if dies {
                    group.addTask {
                        _ = try? await own.call("/test/die", "")
                        return nil
                    }
                }
                for number in first..<first + 50 {
                    group.addTask {
                        let got = try await outcome {
                            try await own.callWithResponse("/echo", "\(number)", options: CallOptions(idempotent: true))
                        }
                        return utf8(got.message) == "\(number)" ? nil : "call \(number): \(got.shown) \(got.timeline)"
                    }
                }
                for try await failure in group {
                    if let failure { failures.append(failure) }
                }
            }
        }
        try await own.close()
        guard failures.isEmpty else { throw Mismatch("\(failures.count) of \(count) failed: \(failures[0])") }
    }

    /// The outcomes of its calls, and the core's trace of them.
    private func script() async throws -> String {
        let options = ConnectOptions(serviceConfig: string("service_config"))
        let own = try await Client.connect(string("endpoint") ?? "", options: options)
        var trace = ""
        for step in (string("steps") ?? "").split(separator: ";") {
            var words = step.split(separator: " ").map(String.init)
            var (count, together) = (1, false)
            if let last = words.first?.last, last == "x" || last == "&" {
                count = Int(words.removeFirst().dropLast()) ?? 1
                together = last == "&"
            }
            let method = words.removeFirst()
            let timeout = words.first { $0.hasPrefix("timeout=") }.flatMap { Int($0.dropFirst(8)) }
            let options = CallOptions(
                timeout: timeout.map { .milliseconds($0) }, idempotent: words.contains("idempotent"))
            var outcomes: [Got] = []
            if together {
                _ = try await own.call("/script/together/\(count)", "")
                var calls: [Task<Got, any Error>] = []
                for _ in 0..<count {
                    // Tasks begin in no order of their own.
                    let empty = Told()
                    calls.append(Task { try await outcome { try await own.callWithResponse(method, empty, options: options) } })
                    while !empty.taken.change({ $0 }) { await Task.yield() }
                }
                for call in calls { outcomes.append(try await call.value) }
            } else {
                for _ in 0..<count {
                    outcomes.append(try await outcome { try await own.callWithResponse(method, "", options: options) })
                }
            }
            for got in method.hasPrefix("/script/") ? [] : outcomes {
                trace += "\(got.code) \(got.code == "OK" ? utf8(got.message) : got.reason)\n"
                if !got.timeline.isEmpty {
                    trace += "  \(got.timeline.replacingOccurrences(of: "\n", with: "\n  "))\n"
                }
            }
        }
        trace += utf8(try await own.call("/script/trace", ""))
        try await own.close()
        return trace
    }

    private func configured() async throws {
        try await check(outcome {
            let own = try await connected { $0.serviceConfig = string("service_config") }
            do {
                let response = try await own.callWithResponse(method, message, options: options)
                try await own.close()
                return response
            } catch {
                try await own.close()
                throw error
            }
        })
    }

    private func credentials() async throws -> String {
        let (token, source, wanted) = (string("token"), string("source"), int("asked") ?? 0)
        var method = method
        if let hex = string("method_hex") {
            guard let text = String(bytes: bytes(hex: hex), encoding: .utf8) else { return "no text is these bytes" }
            method = text
        }
        let fixed = text("endpoint")
        let (asked, logged) = (Shared(0), Shared(""))
        var options = fixed == nil ? settings.options : ConnectOptions()
        options.connectTimeout = int("connect_timeout_ms").map { .milliseconds($0) }
        options.token =
            switch source {
            case nil: token.map { .fixed($0) }
            case let source?:
                .source {
                    let count = asked.change { $0 += 1; return $0 }
                    if source == "silent" { try await Task.sleep(for: .seconds(3600)) }
                    if source == "fails" || (source == "once" && count > 1) { throw Mismatch("no token today") }
                    return token ?? ""
                }
            }
        let server = "\(scheme) \(string("server") ?? "credentials")"
        let endpoint: String
        if let fixed { endpoint = fixed } else { endpoint = utf8(try await client.call("/test/private", server)) }
        setLogger({ record in
            logged.change { $0 += "\(record.level) \(record.target) \(record.message) \(record.fields)\n" }
        }, level: .debug)
        var own: Client?
        let hold = int("hold") == 1
        let got = try await outcome {
            let client = try await Client.connect(endpoint, options: options)
            own = client
            let stream = try client.open("/echo")
            defer { stream.cancel() }
            if hold {
                _ = try await stream.receive()
                throw Mismatch("the stream ended well")
            }
            for _ in 1..<max(count, 1) { _ = try await client.call(method, "") }
            while asked.change({ $0 }) < wanted {
                try await stream.send("x")
                guard try await stream.receive() != nil else { throw Mismatch("the stream ended meanwhile") }
                _ = try await client.call(method, "")
            }
            return try await client.callWithResponse(method, "")
        }
        try await own?.close()
        // A task of its own carries records to the logger.
        for _ in 0..<1000 where got.code == "OK" && !logged.change({ $0 }).contains("connected to") {
            try await Task.sleep(for: .milliseconds(5))
        }
        setLogger(nil)
        let all = logged.change { $0 }
        if let token, "\(got) \(all)".contains(token) { throw Mismatch("the token is shown") }
        if got.code == "OK" && !all.contains("connected to") { throw Mismatch("nothing is logged: \(all)") }
        try await check(got)
        return ""
    }

    private func badMetadata() async throws -> String {
        do {
            _ = try await client.call("/echo", "x", options: options)
        } catch let error as StatusError where error.code == .invalidArgument {
            return error.message
        }
        throw Mismatch("the metadata was taken")
    }

    /// Ready, another while the server goes, and the end.
    private func connectivity() async throws -> String {
        let own = try await freshServer()
        var changes = own.connectivityChanges.makeAsyncIterator()
        guard await changes.next() == .ready, own.connectivity == .ready else { throw Mismatch("connected, and not ready") }
        let how = string("how") ?? ""
        async let going = try? own.call("/test/shutdown", how)
        let without = await changes.next()
        _ = await going
        async let closing: Void = own.close()
        var last: Connectivity?
        while let state = await changes.next() { last = state }
        try await closing
        guard last == .shutdown, own.connectivity == .shutdown else { throw Mismatch("closed, and \(String(describing: last))") }
        return "\(without?.rawValue ?? "") in between"
    }

    /// Nothing yet, a breaker that changes by itself, and the end.
    private func breakerChanges() async throws {
        let own = try await connected { $0.serviceConfig = string("service_config") }
        var changes = own.breakerChanges.makeAsyncIterator()
        let before = try await changes.next()
        for _ in 0..<count {
            _ = try await outcome { try await own.callWithResponse(method, message, options: options) }
        }
        let states = try await changes.next()?.filter { $0.method == method }.map(\.state.rawValue)
        try await own.close()
        let further = try await changes.next()
        guard before?.isEmpty == true, further == nil, states == [string("state") ?? ""] else {
            throw Mismatch("before \(before?.count ?? -1), \(states ?? []), then \(further?.count ?? -1)")
        }
    }

    private func reconfigured() async throws {
        let own = try await connected { $0.serviceConfig = string("service_config") }
        let first = try await outcome { try await own.callWithResponse(method, message, options: options) }
        guard first.code == string("first_code") else { throw Mismatch("the first call: \(first.shown)") }
        let then = try await outcome {
            try own.setServiceConfig(string("then_config") ?? "")
            return try await own.callWithResponse(method, message, options: options)
        }
        try await own.close()
        try await check(then)
    }

    /// Of the server as a whole, and of one of its methods.
    private func isolate() async throws {
        let own = try await connected()
        let (method, other) = (method, "/test/sleep")
        var seen: [String] = []
        func reason(_ method: String) async throws {
            let got = try await outcome { try await own.callWithResponse(method, "1") }
            seen.append(got.code == "OK" ? "OK" : got.reason)
        }
        try await reason(method)
        let server = try own.breakers().first?.server ?? ""
        try own.isolate(server)
        try await reason(method)
        try await reason(other)
        let isolated = try own.breakers().contains { $0.method == nil && $0.state == .isolated }
        try own.restore(server)
        try await reason(method)
        try own.isolate(server, method: method)
        try await reason(method)
        try await reason(other)
        try own.restore(server, method: method)
        try await reason(method)
        let restored = try own.breakers().allSatisfy { $0.state == .closed }
        guard isolated, restored, seen.joined(separator: " ") == string("reasons") else {
            throw Mismatch("isolated \(isolated), restored \(restored), \(seen)")
        }
        let stranger: Got
        do {
            try own.isolate("tcp://192.0.2.1:1")
            stranger = Got([])
        } catch {
            stranger = try Got(failed: error)
        }
        try await own.close()
        try await check(stranger)
    }

    private func metrics() async throws {
        let own = try await connected()
        for _ in 0..<count {
            _ = try await outcome { try await own.callWithResponse(method, message, options: options) }
        }
        let (text, line) = (try own.metrics(), string("line") ?? "")
        try await own.close()
        guard text.split(separator: "\n").contains(Substring(line)) else { throw Mismatch("no \(line) in \(text)") }
    }

    private func keepalive() async throws {
        try await check(outcome {
            let own = try await connected {
                $0.keepalive = int("keepalive_ms").map { .milliseconds($0) }
                $0.keepaliveTimeout = int("keepalive_timeout_ms").map { .milliseconds($0) }
                $0.keepaliveIdle = int("keepalive_idle_ms").map { .milliseconds($0) }
            }
            let response = try await own.callWithResponse("/echo", "x")
            try await own.close()
            return response
        })
    }

    private func callClosed() async throws {
        let own = try await connected()
        try await own.close()
        try await check(outcome { try await own.callWithResponse(method, message, options: options) })
    }

    private func doubleClose() async throws {
        let own = try await connected()
        try await own.close()
        try await own.close()
    }

    private func afterShutdown() async throws {
        let own = try await freshServer()
        _ = try await own.call("/echo", "x")
        _ = try? await own.call("/test/shutdown", "now")
        for _ in 0..<100 {
            let got = try await outcome { try await own.callWithResponse(method, message, options: options) }
            if got.code == "OK" { continue }
            try await check(got)
            return try await own.close()
        }
        throw Mismatch("100 calls succeeded")
    }
}

/// No bytes, and whether a call has begun with them.
private struct Told: Message, Sendable {
    let taken = Shared(false)

    func withBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        defer { taken.change { $0 = true } }
        return try body(UnsafeRawBufferPointer(start: nil, count: 0))
    }
}

/// A value that several tasks change.
final class Shared<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) {
        self.value = value
    }

    @discardableResult
    func change<R>(_ body: (inout Value) -> R) -> R {
        lock.withLock { body(&value) }
    }
}
