#!/bin/bash
# Runs a row in nginx: bench/peers/nginx.sh <row> [a command to start nginx with, such as taskset -c 0]
#
# nginx and its Lua module are unpacked into build/nginx on first use: installed, they would bring another LuaJIT.
set -euo pipefail
cd "$(dirname "$0")/../.."
home=$PWD/build/nginx
row=$1
shift

if [ ! -d "$home" ]; then
  rm -rf "$home.new"
  mkdir -p "$home.new"
  (
    apt=$PWD/scripts/apt.sh
    cd "$home.new"
    "$apt" download nginx libnginx-mod-http-lua libnginx-mod-http-ndk libluajit2-5.1-2 libpcre3 lua-resty-core lua-resty-lrucache
    for package in *.deb; do
      dpkg -x "$package" .
    done
    rm -- *.deb
  ) >&2
  mv "$home.new" "$home"
fi
[ "$row" != setup ] || exit 0

run=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; rm -rf "$run"' EXIT
mkdir -p "$run/logs"
library=$(find "$home" -name 'libluajit-5.1.so.2' -o -name 'libpcre.so.3' | xargs -n 1 dirname | paste -sd:)
sed -e "s|@MODULES@|$home/usr/lib/nginx/modules|; s|@RUN@|$run|; s|@ROOT@|$PWD|; s|@SHARE@|$home/usr/share/lua/5.1|" \
  bench/peers/nginx/nginx.conf >"$run/nginx.conf"
LD_LIBRARY_PATH=$library "$@" "$home/usr/sbin/nginx" -p "$run" -c "$run/nginx.conf" 2>"$run/log" &
pid=$!
for _ in $(seq 100); do
  [ ! -S "$run/socket" ] || break
  sleep 0.05
done
if ! curl -sf --unix-socket "$run/socket" "http://localhost/$row"; then
  cat "$run/log" >&2
  exit 1
fi
