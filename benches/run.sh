#!/bin/sh
# Prints what the protocol costs by itself, us beside a raw echo, critical calls beside bulk, and the memory of a connection
# at rest, from one run. Machines are shared and noisy: read the ratios. `cargo xtask bench --peers` has what users would pick instead.
set -eu
cd "$(dirname "$0")/.."
cargo bench --quiet -p valkyrie-protocol --bench codec
cargo bench --quiet -p valkyrie-sdk --bench unary
cargo bench --quiet -p valkyrie-sdk --bench contention
cargo bench --quiet -p valkyrie-sdk --bench priority
exec cargo bench --quiet -p valkyrie-server --bench idle
