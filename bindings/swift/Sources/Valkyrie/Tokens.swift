// Functions that make tokens.
import CValkyrie

/// The functions of every client, by number: the library may still ask while its client goes.
enum TokenSources {
    typealias Number = UInt
    typealias Source = @Sendable () async throws -> String

    private static let all = Locked<(last: Number, sources: [Number: Source])>((0, [:]))

    static func add(_ source: @escaping Source) -> Number {
        all.with { all in
            all.last += 1
            all.sources[all.last] = source
            return all.last
        }
    }

    static func remove(_ number: Number) {
        // What it keeps goes without the lock.
        let source = all.with { $0.sources.removeValue(forKey: number) }
        withExtendedLifetime(source) {}
    }

    /// On a thread of the library's.
    static let asked: valkyrie_token_source = { request, data in
        guard let source = all.with({ $0.sources[UInt(bitPattern: data)] }) else { return }
        Task {
            do {
                let token = try await source()
                _ = token.withBytes { valkyrie_token_provide(request, valkyrie_bytes($0), nil) }
            } catch {
                // Cut at a NUL, which no sentence has.
                _ = "\(error)".withCString { valkyrie_token_provide(request, valkyrie_bytes(), $0) }
            }
        }
    }
}
