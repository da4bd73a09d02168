#!/bin/sh
# Builds the native module into build/lib/msys/native.so, where the specs and the rockspec take it from.
# Called by `make build` and by LuaRocks, so that both build alike.
set -eu
cd "$(dirname "$0")/.."

scripts/need-cargo.sh

# --target-dir: the library is where the next lines look for it, whatever CARGO_TARGET_DIR says.
cargo build --release --locked --target-dir target

# LuaRocks installs a library under its own file name, so it is native.so from here on. A rename, because a process
# that has the old file mapped must keep it: writing into a mapped library crashes whoever runs it.
mkdir -p build/lib/msys
cp target/release/libmsys.so build/lib/msys/native.so.new
mv -f build/lib/msys/native.so.new build/lib/msys/native.so
