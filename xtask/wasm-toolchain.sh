#!/usr/bin/env bash
# Makes a rustc able to build for wasm32-unknown-unknown, and prints RUSTC=<path> when it is not the one on PATH.
# Idempotent: about a third of a second when there is nothing to do.
#   1. a rustc that already has the target's std    nothing to do
#   2. `rustup target add`                          the way for most people
#   3. Debian's rustc-web and its std sources       unpacked into a folder of our own, std built there once
# Step 3 is for machines that reach package registries and nothing else. It downloads 138 MB, uses 560 MB of disk and
# about 100 s of processor time, needs no root when the package lists are fresh, and touches nothing under /usr.
#
# VALKYRIE_WASM_NO_RUSTUP=1  leaves step 2 out
# VALKYRIE_WASM_PREFIX       where step 3 unpacks (default: ~/.cache/valkyrie-wasm)
set -euo pipefail

target=wasm32-unknown-unknown
host=x86_64-unknown-linux-gnu
prefix=${VALKYRIE_WASM_PREFIX:-${XDG_CACHE_HOME:-$HOME/.cache}/valkyrie-wasm}
debian_rustc=$prefix/rustc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "wasm-toolchain: $*" >&2; }
die() { say "$*"; exit 1; }

# Asking for the target's std is not enough: only a link proves that the linker is there too.
works() {
    cat >"$work/probe.rs" <<'RUST'
#[unsafe(no_mangle)]
pub extern "C" fn probe(n: u32) -> usize { (0..n).map(|i| i.to_string()).collect::<String>().len() }
RUST
    "$1" --edition 2024 --target $target --crate-type cdylib -O -o "$work/probe.wasm" "$work/probe.rs" >/dev/null 2>&1
}

# The answer is captured before it is searched: under pipefail, a reader that leaves early makes a good answer a failure.
apt_has() {
    local answer
    answer=$(apt-cache policy "$1" 2>/dev/null) || return 1
    [[ $answer =~ Candidate:\ [0-9] ]]
}

# The first dependency of package $1 whose name matches $2.
apt_dependency() {
    apt-cache depends "$1" | awk -v pattern="$2" '!found && $1 ~ /Depends:/ && $2 ~ pattern { print $2; found = 1 }'
}

if works rustc; then
    say "$(rustc -V) already builds for $target"
    exit 0
fi

if [ -z "${VALKYRIE_WASM_NO_RUSTUP:-}" ] && command -v rustup >/dev/null; then
    if timeout 120 rustup target add $target >&2 && works rustc; then
        say "rustup added $target"
        exit 0
    fi
    say "rustup could not add $target; trying Debian's packages"
fi

if [ -x "$debian_rustc" ] && works "$debian_rustc"; then
    say "$("$debian_rustc" -V) in $prefix"
    echo "RUSTC=$debian_rustc"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || die "no rustup and no Debian packages for $(uname -sm): add $target yourself"
command -v apt-get >/dev/null && command -v dpkg >/dev/null || die "no apt-get here: run \`rustup target add $target\`"
if ! apt_has rustc-web && [ "$(id -u)" = 0 ]; then
    apt-get update -q >&2
fi
apt_has rustc-web || die "Debian offers no rustc-web here (it is in bookworm-security; run \`apt-get update\`)"

std=$(apt_dependency libstd-rust-web-dev '^libstd-rust-web-[0-9]')
llvm=$(apt_dependency "$std" '^libllvm')
llvm_version=${llvm#libllvm}
[ -n "$std" ] && [ -n "$llvm_version" ] || die "rustc-web depends on packages that this script does not know"

rm -rf "$prefix"
mkdir -p "$prefix/debs" "$prefix/debian"
(cd "$prefix/debs" && apt-get download -q rustc-web libstd-rust-web-dev "$std" "$llvm" "lld-$llvm_version" rust-web-src >&2)
say "downloaded $(du -sm "$prefix/debs" | cut -f1) MB"
for package in "$prefix"/debs/*.deb; do
    dpkg -x "$package" "$prefix/debian"
done
rm -rf "$prefix/debs"

usr=$prefix/debian/usr
libraries=$usr/lib/x86_64-linux-gnu
cat >"$debian_rustc" <<SH
#!/bin/sh
LD_LIBRARY_PATH=$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec $usr/bin/rustc "\$@"
SH
chmod +x "$debian_rustc"
# rustc-web has no linker where rustc looks for it.
mkdir -p "$usr/lib/rustlib/$host/bin"
ln -sf "../../../llvm-$llvm_version/bin/lld" "$usr/lib/rustlib/$host/bin/rust-lld"

say "building std with $("$debian_rustc" -V)"
mkdir -p "$work/std/src"
: >"$work/std/src/lib.rs"
printf '[package]\nname = "valkyrie-std-probe"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$work/std/Cargo.toml"
# Bitcode must be embedded: cargo leaves it out by default, and then a build with LTO on this std fails.
# The sources' folder is renamed in its two spellings, and so is cargo's, which has the crates that std uses, so that no
# path of this machine ends up in a module.
sources=$usr/lib/rustlib/src/rust
remap="--remap-path-prefix=$sources=/rustc/std --remap-path-prefix=$(readlink -f "$sources")=/rustc/std"
remap+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
(
    cd "$work/std"
    # Settings of an outer cargo are for its own build.
    env -u CARGO_BUILD_TARGET -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WRAPPER \
        RUSTC="$debian_rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$work/target" RUSTFLAGS="-Cembed-bitcode=yes $remap" \
        cargo build --quiet --release -Zbuild-std=std,panic_abort,test --target $target >&2
)
installed=$usr/lib/rustlib/$target/lib
mkdir -p "$installed"
find "$work/target/$target/release/deps" -name 'lib*.rlib' ! -name 'libvalkyrie_std_probe*' -exec cp {} "$installed/" \;
rm -rf "$usr"/src/*/{compiler,src} "$usr/share"

works "$debian_rustc" || die "the std that was built does not link"
say "ready: $("$debian_rustc" -V), $(du -sm "$prefix" | cut -f1) MB in $prefix"
echo "RUSTC=$debian_rustc"
