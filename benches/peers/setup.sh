#!/bin/bash
# Builds peers. ./setup.sh WORD…, with the words that `driver/run.py --needs` prints: rust:NAME c:NAME python node ffi-py ffi-node nats packages
# What is missing is taken from Debian when we are root, and else named.
set -e
cd "$(dirname "$0")"
rust=() c=() debian=()
for word in "$@"; do
  case $word in
    rust:*) rust+=(-p "peer-${word#rust:}") ;;
    c:*) c+=("${word#c:}") ;;
  esac
done
need() { command -v "$1" >/dev/null || debian+=("$2"); }
header() { [ -n "$(echo "#include <$1>" | gcc -E -x c${3:-} - 2>/dev/null)" ] || debian+=("$2"); }
need openssl openssl
for word in "$@"; do
  case $word in
    rust:tonic | rust:connect) need protoc protobuf-compiler ;;
    rust:capnp) need capnp capnproto ;;
    c:grpc) need protoc protobuf-compiler; need grpc_cpp_plugin protobuf-compiler-grpc; header grpcpp/grpcpp.h libgrpc++-dev ++ ;;
    c:nng) header nng/nng.h libnng-dev ;;
    c:zmq) header zmq.h libzmq3-dev ;;
    nats) need nats-server nats-server ;;
  esac
done
if [ ${#debian[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends "${debian[@]}" >/dev/null
  else
    echo "these peers need what Debian calls: ${debian[*]}" >&2
    exit 1
  fi
fi
[ -f certs/srv.pem ] || ./mkcerts.sh
case " $* " in
  *" packages "*) (cd ../.. && cargo xtask package --only "package: compile,package: python,package: node,package: c") >/dev/null ;;
esac
[ ${#rust[@]} = 0 ] || (cd rust && cargo build --release -j2 -q "${rust[@]}")
[ ${#c[@]} = 0 ] || make -s -C c "${c[@]}"
for word in "$@"; do
  case $word in
    python)
      if [ ! -d python/venv ]; then python3 -m venv python/venv && python/venv/bin/pip install -q -r python/requirements.txt; fi
      [ -f python/echo_pb2.py ] || (cd python && venv/bin/python -m grpc_tools.protoc -I../proto --python_out=. --grpc_python_out=. ../proto/echo.proto)
      ;;
    node) [ -d node/node_modules ] || (cd node && npm ci --silent) ;;
    ffi-py) (cd ffi/py && PYO3_PYTHON="$PWD/../../python/venv/bin/python" cargo build --release -j2 -q && cp -f target/release/libffi_py.so ffi_py.so) ;;
    ffi-node) (cd ffi/node && cargo build --release -j2 -q && cp -f target/release/libffi_node.so ffi_node.node) ;;
  esac
done
