#!/bin/bash
# Builds peers. ./setup.sh WORD…, the words that `driver/run.py --needs` prints:
# rust:NAME c:NAME python node ffi-py ffi-node jvm swift nats certs package:LANGUAGE (Valkyrie's own, by `cargo xtask package`).
# Missing tools come from Debian when we are root. A word whose tools are still missing is left out and printed with
# their Debian names, one line each, as `driver/run.py --without` takes them. What fails to build ends the script.
set -e
cd "$(dirname "$0")"
exec 3>&1 >&2
has() { command -v "$1" >/dev/null || echo "$2"; }
header() { echo "#include <$1>" | gcc -E -x "${3:-c}" - >/dev/null 2>&1 || echo "$2"; }
lacks() {
  case $1 in
    rust:*) has gcc gcc ;;&
    rust:tonic | rust:connect) has protoc protobuf-compiler ;;
    rust:capnp) has capnp capnproto ;;
    c:*) has gcc gcc; has make make ;;&
    c:valkyrie) has pkg-config pkg-config ;;
    c:grpc) has g++ g++; has pkg-config pkg-config; has protoc protobuf-compiler; has grpc_cpp_plugin protobuf-compiler-grpc; header grpcpp/grpcpp.h libgrpc++-dev c++ ;;
    c:nng) header nng/nng.h libnng-dev ;;
    c:zmq) header zmq.h libzmq3-dev ;;
    python | ffi-py | package:python) python3 -c "import venv, ensurepip" 2>/dev/null || echo python3-venv ;;
    node | ffi-node | package:node) has node nodejs; has npm npm ;;
    package:web) has node nodejs; has npm npm; has chromium chromium ;;
    jvm | package:kotlin) has javac openjdk-17-jdk-headless; has mvn maven ;;
    nats) PATH=$PATH:/usr/sbin has nats-server nats-server ;;
    certs) has openssl openssl ;;
  esac
}
debian=$(for word in "$@"; do lacks "$word"; done | sort -u)
if [ -n "$debian" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || true # old lists may still do
  for package in $debian; do apt-get install -y --no-install-recommends "$package" >/dev/null || true; done
fi
rust=() c=() packages="" words=()
for word in "$@"; do
  missing=$(lacks "$word" | sort -u | paste -sd' ')
  if [ -n "$missing" ]; then echo "$word $missing" >&3; continue; fi
  words+=("$word")
  case $word in
    rust:*) rust+=(-p "peer-${word#rust:}") ;;
    c:*) c+=("${word#c:}") ;;
    package:python) packages+=",setup: python tools,package: python" ;;
    package:web) packages+=",setup: npm tools,setup: wasm toolchain,package: web" ;;
    package:swift) packages+=",setup: swift,package: swift" ;;
    package:*) packages+=",package: ${word#package:}" ;;
  esac
done
if [ -n "$packages" ]; then
  mkdir -p results
  (cd ../.. && cargo xtask package --only "package: compile$packages") >results/packages.log || { tail -n 20 results/packages.log; exit 1; }
fi
[ ${#rust[@]} = 0 ] || (cd rust && cargo build --release -j2 -q "${rust[@]}")
[ ${#c[@]} = 0 ] || make -s -C c "${c[@]}"
for word in "${words[@]}"; do
  case $word in
    certs) [ -f certs/srv.pem ] || ./mkcerts.sh ;;
    python)
      if [ ! -d python/venv ]; then python3 -m venv python/venv && python/venv/bin/pip install -q -r python/requirements.txt; fi
      [ -f python/echo_pb2.py ] || (cd python && venv/bin/python -m grpc_tools.protoc -I../proto --python_out=. --grpc_python_out=. ../proto/echo.proto)
      ;;
    jvm) (cd jvm && mvn -B -q compile dependency:copy-dependencies -DoutputDirectory=target/lib) ;;
    swift) swift/inside.sh swift build -c release -j 2 --package-path "$PWD/swift" --scratch-path "$PWD/../../target/swift/build/peer" ;;
    node) [ -d node/node_modules ] || (cd node && npm ci --silent) ;;
  esac
done
for word in "${words[@]}"; do
  case $word in
    ffi-py) (cd ffi/py && PYO3_PYTHON="$PWD/../../python/venv/bin/python" cargo build --release -j2 -q && cp -f target/release/libffi_py.so ffi_py.so) ;;
    ffi-node) (cd ffi/node && cargo build --release -j2 -q && cp -f target/release/libffi_node.so ffi_node.node) ;;
  esac
done
