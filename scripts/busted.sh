#!/bin/bash
# Runs the specs against build/lib under a chosen LuaJIT:
#
#   [LUAJIT=<binary>] [LUAJIT_FLAGS=-joff] scripts/busted.sh [busted's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! LUAJIT=$(command -v "${LUAJIT:-luajit}"); then
  echo "busted.sh: no such LuaJIT; run 'make setup', or set LUAJIT to the path of one" >&2
  exit 1
fi
if [ ! -e build/lib/msys/native.so ]; then
  echo "busted.sh: there is no build/lib/msys/native.so; run 'make build' first" >&2
  exit 1
fi

# Exported and absolute for the specs that start a LuaJIT of their own, from any directory.
export LUAJIT LUAJIT_FLAGS=${LUAJIT_FLAGS:-}
export LUA_PATH="$PWD/lua/?.lua;$PWD/lua/?/init.lua;${LUA_PATH:-;}"
export LUA_CPATH="$PWD/build/lib/?.so;${LUA_CPATH:-;}"

# --ignore-lua: the interpreter is chosen here, not by .busted.
# shellcheck disable=SC2086 # flags are words
exec "$LUAJIT" $LUAJIT_FLAGS scripts/busted.lua --ignore-lua "$@"
