// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "peer",
    platforms: [.macOS(.v13)],
    dependencies: [.package(path: "../../../target/package/valkyrie-swift")],
    targets: [
        .executableTarget(name: "peer", dependencies: [.product(name: "Valkyrie", package: "valkyrie-swift")])
    ]
)
