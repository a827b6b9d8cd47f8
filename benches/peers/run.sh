#!/bin/bash
# Peer benchmark. ./run.sh [--quick] [--rounds N] [--only name,name] [--groups unary,stream,connect,conns,idle,ffi] [--prio none|nice|rt]
# Builds what the selected peers need, then measures them, interleaved. SKIP_BUILD=1 skips the build.
set -e
cd "$(dirname "$0")"
ulimit -n "$(ulimit -Hn)"
if [ -z "$SKIP_BUILD" ]; then
  ./setup.sh $(python3 driver/run.py --needs "$@")
fi
exec python3 driver/run.py "$@"
