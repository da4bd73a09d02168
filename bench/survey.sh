#!/bin/bash
# The survey of a copy of a folder (default: the sources of Rust's crates), in one VM and in pools, in turn. `make bench`.
set -euo pipefail
cd "$(dirname "$0")/.."

from=${1:-${CARGO_HOME:-$HOME/.cargo}/registry/src}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$from" "$copy/tree"

seconds() {
  luajit examples/survey.lua "$copy/tree" "$@" 2>&1 >"$copy/report$*" | sed -n 's/.*survey: \([0-9.]*\) s.*/\1/p'
}

seconds --inline >/dev/null # the files are cached from here on
for _ in 1 2 3 4 5; do
  inline=$(seconds --inline)
  pools=$(seconds)
  echo "$inline s inline, $pools s in pools: $(awk "BEGIN { printf \"%.2f\", $inline / $pools }") times as fast"
  cmp "$copy/report--inline" "$copy/report"
done
