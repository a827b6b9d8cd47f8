#!/bin/sh
# Prints what the protocol costs by itself, and us beside a raw echo, from one run. Machines are shared and noisy: read
# the ratios. `cargo xtask bench --peers` has what users would pick instead.
set -eu
cd "$(dirname "$0")/.."
cargo bench --quiet -p valkyrie-protocol --bench codec
exec cargo bench --quiet -p valkyrie-sdk --bench unary
