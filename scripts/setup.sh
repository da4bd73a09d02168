#!/bin/sh
# Installs what building and testing need and this machine lacks: LuaJIT, LuaRocks and busted.
# Rust is looked for, not installed.
set -eu
cd "$(dirname "$0")/.."

scripts/need-cargo.sh

# As packages the two LuaJITs exclude each other: stay with OpenResty's where a program here, nginx say, uses it.
package=luajit
! dpkg -s libluajit2-5.1-2 >/dev/null 2>&1 || package=luajit2

# By what is there rather than by package, so that a LuaJIT or a busted from elsewhere counts too.
missing=''
command -v luajit >/dev/null || missing="$missing $package"
# For the Rust tests that make a VM: mlua finds the library by pkg-config.
command -v pkg-config >/dev/null || missing="$missing pkg-config"
pkg-config --exists luajit 2>/dev/null || missing="$missing lib$package-5.1-dev"
command -v luarocks >/dev/null || missing="$missing luarocks"
luajit -e 'require "busted"' >/dev/null 2>&1 || missing="$missing lua-busted"

if [ -n "$missing" ]; then
  echo "installing:$missing"
  # shellcheck disable=SC2086 # a list of words
  scripts/apt.sh install $missing
fi
