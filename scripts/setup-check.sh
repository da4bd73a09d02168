#!/bin/bash
# Installs what `make check` needs and this machine lacks, in pinned versions, so that everybody gets the same verdict.
#
# Debian's packages go where they go; the rest into one directory, shared by all clones, since two of the tools exist
# only as source and take minutes to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${MSYS_TOOLS:-$HOME/.cache/msys-tools}
mkdir -p "$tools/bin"

# Is $1 there, and does it call itself version $2?
have() {
  "$tools/bin/$1" --version 2>/dev/null | grep -qwF "$2"
}

# A wheel with a binary inside: its command $1, from the package of the same name in version $2.
from_pypi() {
  have "$1" "$2" && return
  echo "installing $1 $2"
  [ -x "$tools/python/bin/pip" ] || python3 -m venv "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check "$1==$2"
  ln -sf "$tools/python/bin/$1" "$tools/bin/$1"
}

# $1 $2, from the package $3, which ships binaries as optional dependencies.
from_npm() {
  have "$1" "$2" && return
  echo "installing $1 $2"
  npm install --silent --no-save --prefix "$tools/npm" "$3@$2"
  ln -sf "$tools/npm/node_modules/.bin/$1" "$tools/bin/$1"
}

# $1 $2, compiled.
from_crates() {
  have "$1" "$2" && return
  echo "compiling $1 $2; this takes some minutes, once"
  cargo install --quiet --locked --root "$tools" "$1@$2"
}

scripts/need-cargo.sh
missing=''
command -v shellcheck >/dev/null || missing="$missing shellcheck"
command -v luacheck >/dev/null || missing="$missing lua-check"
command -v npm >/dev/null || missing="$missing npm"
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
  echo "installing:$missing"
  # shellcheck disable=SC2086 # a list of words
  scripts/apt.sh install $missing
fi
cargo fmt --version >/dev/null
cargo clippy --version >/dev/null

from_pypi typos 1.52.0
from_pypi taplo 0.9.3
from_npm stylua 2.5.2 @johnnymorganz/stylua-bin
from_crates emmylua_check 0.25.1
from_crates cargo-deny 0.20.2
