#!/bin/bash
# Installs msys as its users do, and uses it from there: `luarocks make` into an empty tree, then the binary rock packed
# from that into a second one, where no Rust is to be had.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
luajit=$(command -v "${LUAJIT:-luajit}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Every module of lua/, as names: the rockspec lists them by hand.
modules=$(cd lua && find . -name '*.lua' | sed -e 's|^\./||' -e 's|\.lua$||' -e 's|/init$||' -e 's|/|.|g' | sort)

# Runs scripts/test-rock.lua in a bare environment, from a directory with no msys in it, with the tree $1 alone.
use() {
  # shellcheck disable=SC2086 # a list of words
  (cd / && env -i PATH="$PATH" HOME="$scratch" \
    LUA_PATH="$1/share/lua/5.1/?.lua;$1/share/lua/5.1/?/init.lua;;" LUA_CPATH="$1/lib/lua/5.1/?.so;;" \
    "$luajit" "$source/scripts/test-rock.lua" "$1" $modules)
}

rocks() {
  luarocks --lua-version 5.1 "$@"
}

echo "test-rock: luarocks make"
rocks make --tree "$scratch/made" msys-dev-1.rockspec
use "$scratch/made"

echo "test-rock: the binary rock, without Rust"
mkdir "$scratch/norust"
for tool in cargo rustc; do
  # Found before any real one, so that neither is there to anybody who asks.
  printf '#!/bin/sh\necho "%s: called where there is no Rust" >&2\nexit 127\n' $tool >"$scratch/norust/$tool"
  chmod +x "$scratch/norust/$tool"
done
export PATH="$scratch/norust:/usr/local/bin:/usr/bin:/bin"
cd "$scratch"
rocks pack --tree "$scratch/made" msys
rocks install --tree "$scratch/unpacked" msys-dev-1.*.rock
use "$scratch/unpacked"
