#!/bin/bash
# Peer benchmark. ./run.sh [--quick] [--rounds N] [--only name,name] [--lang rust,c,py,node] [--groups unary,stream,connect,conns,idle,ffi] [--prio none|nice|rt]
# Builds what the selected peers need, then measures them, interleaved. A peer whose tools are missing is named and left out. SKIP_BUILD=1 skips the build.
set -e
cd "$(dirname "$0")"
ulimit -n "$(ulimit -Hn)"
node=$PWD/../../target/node/bin # where `cargo xtask setup` puts Node when the system's is too old
if [ -d "$node" ]; then PATH=$node:$PATH; fi
missing=
if [ -z "$SKIP_BUILD" ]; then
  needs=$(python3 driver/run.py --needs "$@")
  missing=$(./setup.sh $needs)
fi
exec python3 driver/run.py --without "$missing" "$@"
