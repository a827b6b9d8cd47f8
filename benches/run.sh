#!/bin/sh
# Prints us beside a peer, from one run. Machines are shared and noisy: read the ratios.
set -eu
cd "$(dirname "$0")/.."
exec cargo bench --quiet -p valkyrie-sdk --bench unary
