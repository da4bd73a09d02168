#!/bin/bash
# The long campaigns on values: random graphs and programs, changed bytes, and coverage-guided fuzzing.
#
#   [CASES=1000000] [SECONDS_EACH=1800] scripts/fuzz.sh
#
# CASES is how many graphs, programs and changed messages there are; SECONDS_EACH is how long each fuzzer runs.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${MSYS_TOOLS:-$HOME/.cache/msys-tools}
cases=${CASES:-1000000}
seconds=${SECONDS_EACH:-1800}
export PATH="$tools/bin:$PATH"

if ! command -v cargo-fuzz >/dev/null; then
  echo "compiling cargo-fuzz; this takes a minute, once"
  cargo install --quiet --locked --root "$tools" cargo-fuzz
fi

echo "== $cases changed messages of jobs, and as many of outcomes"
MSYS_CASES=$cases cargo test --locked --release --no-default-features --test hostile

echo "== $cases random graphs, and as many programs as if in place"
MSYS_SPEC_CASES=$cases scripts/busted.sh spec/values_property_spec.lua spec/in_place_property_spec.lua

mkdir -p fuzz/corpus/decode fuzz/corpus/splice
MSYS_CORPUS=$PWD/fuzz/corpus/decode cargo test --quiet --locked --no-default-features --test hostile a_corpus
luajit scripts/splice-corpus.lua fuzz/corpus/splice lua/msys/*.lua
for target in splice decode; do
  echo "== cargo fuzz: $target for $seconds s"
  # The toolchain is a stable one; only the fuzzers' flags need more.
  RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=8192 -detect_leaks=0 -print_final_stats=1
done
