#!/bin/bash
# Peer benchmark. ./run.sh [--quick] [--rounds N] [--only name,name] [--lang rust,c,py,node,jvm,swift,web] [--groups unary,stream,connect,conns,idle,ffi] [--prio none|nice|rt]
# ./run.sh --copies: how often each language copies a message, instead of how fast it is.
# Builds what the selected peers need, then measures them, interleaved. A peer whose tools are missing is named and left out. SKIP_BUILD=1 skips the build.
set -e
cd "$(dirname "$0")"
ulimit -n "$(ulimit -Hn)"
node=$PWD/../../target/node/bin # where `cargo xtask setup` puts Node when the system's is too old
if [ -d "$node" ]; then PATH=$node:$PATH; fi
program=driver/run.py
if [ "$1" = --copies ]; then
  program=driver/copies.py
  set -- --only rust-valkyrie,c-valkyrie,py-valkyrie,node-valkyrie,jvm-valkyrie,swift-valkyrie
fi
missing=
if [ -z "$SKIP_BUILD" ]; then
  needs=$(python3 driver/run.py --needs "$@")
  missing=$(./setup.sh $needs)
fi
if [ $program = driver/copies.py ]; then
  if [ -n "$missing" ]; then printf 'cannot count every language, for want of: %s\n' "$missing"; fi
  exec python3 $program
fi
exec python3 $program --without "$missing" "$@"
