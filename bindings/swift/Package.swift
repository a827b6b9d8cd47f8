// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "valkyrie-swift",
    platforms: [.macOS(.v13), .iOS(.v16), .tvOS(.v16), .watchOS(.v9)],
    products: [
        .library(name: "Valkyrie", targets: ["Valkyrie"]),
        .library(name: "ValkyrieFoundation", targets: ["ValkyrieFoundation"]),
    ],
    targets: [
        // The C library, as pkg-config's valkyrie.pc describes it.
        .systemLibrary(name: "CValkyrie", pkgConfig: "valkyrie"),
        .target(name: "Valkyrie", dependencies: ["CValkyrie"]),
        .target(name: "ValkyrieFoundation", dependencies: ["Valkyrie"]),
        .testTarget(name: "ValkyrieTests", dependencies: ["CValkyrie", "Valkyrie", "ValkyrieFoundation"]),
    ]
)
