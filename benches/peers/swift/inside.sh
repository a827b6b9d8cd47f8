#!/bin/sh
# Runs a command where Swift is: here, or in the Debian that `cargo xtask setup` made (VALKYRIE_SWIFT_ROOT), as root.
set -eu
repo=$(cd "$(dirname "$0")/../../.." && pwd)
export HOME="$repo/target/swift/home" PKG_CONFIG_PATH="$repo/target/package/valkyrie-swift/c/lib/pkgconfig"
mkdir -p "$HOME"
if swift --version >/dev/null 2>&1; then exec "$@"; fi
exec unshare -m sh "$repo/xtask/swift-inside.sh" "${VALKYRIE_SWIFT_ROOT:-/var/cache/valkyrie/swift-trixie}" "${TMPDIR:-/tmp}" "$repo" -- "$@"
