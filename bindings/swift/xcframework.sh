#!/bin/sh
# Makes the package for Apple's systems in target/xcframework/valkyrie-swift: these sources, and the C library as an
# XCFramework in the place of the system's. Needs macOS with Xcode, and Rust with rustup. Not run anywhere yet.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ "$(uname)" != Darwin ]; then
    echo "xcframework.sh: an XCFramework is made on macOS, and this is $(uname)" >&2
    exit 2
fi
cd "$here/../.."
built=target/xcframework
package=$built/valkyrie-swift
rm -rf "$built"
mkdir -p "$built/headers" "$built/macos" "$built/ios" "$built/ios-sim" "$package"

for triple in aarch64-apple-darwin x86_64-apple-darwin aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios; do
    rustup target add "$triple"
    cargo build --release --locked -p valkyrie-c --target "$triple"
done
# One library for each system: its processors are slices of it.
library() { printf 'target/%s/release/libvalkyrie.a' "$1"; }
lipo -create "$(library aarch64-apple-darwin)" "$(library x86_64-apple-darwin)" -output "$built/macos/libvalkyrie.a"
lipo -create "$(library aarch64-apple-ios-sim)" "$(library x86_64-apple-ios)" -output "$built/ios-sim/libvalkyrie.a"
cp "$(library aarch64-apple-ios)" "$built/ios/libvalkyrie.a"

cp c/include/valkyrie/valkyrie.h "$here/Sources/CValkyrie/shim.h" "$built/headers"
# The library comes with the framework: there is none to link by name.
sed '/^ *link /d' "$here/Sources/CValkyrie/module.modulemap" > "$built/headers/module.modulemap"
xcodebuild -create-xcframework \
    -library "$built/macos/libvalkyrie.a" -headers "$built/headers" \
    -library "$built/ios/libvalkyrie.a" -headers "$built/headers" \
    -library "$built/ios-sim/libvalkyrie.a" -headers "$built/headers" \
    -output "$package/CValkyrie.xcframework"

mkdir "$package/Sources"
cp -R "$here/Sources/Valkyrie" "$here/Sources/ValkyrieFoundation" "$package/Sources"
cp -R "$here/Tests" "$here/README.md" LICENSE-APACHE LICENSE-MIT "$package"
sed -e 's|\.systemLibrary(name: "CValkyrie", pkgConfig: "valkyrie")|.binaryTarget(name: "CValkyrie", path: "CValkyrie.xcframework")|' \
    -e '/as pkg-config.s valkyrie\.pc describes it/s|, as.*|.|' "$here/Package.swift" > "$package/Package.swift"
echo "$package"
