#!/bin/bash
# Prints the path of OpenResty's LuaJIT (Debian's luajit2), fetching it on first use.
#
# As packages luajit2 and luajit exclude each other, so this one is only unpacked, into build/luajit2.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/build/luajit2

if [ ! -x "$home/bin/luajit" ]; then
  # Made aside and renamed: an interrupted run leaves nothing that looks complete.
  rm -rf "$home" "$home.new"
  mkdir -p "$home.new/bin"
  (
    apt=$PWD/scripts/apt.sh
    cd "$home.new"
    "$apt" download luajit2 libluajit2-5.1-common
    for package in *.deb; do
      dpkg -x "$package" root
    done
    rm -- *.deb
  ) >&2

  # The binary is linked statically. It looks for its jit/*.lua where the installed LuaJIT has others, hence the
  # path in front. `exec -a` makes it see this wrapper as its name, for a script that starts arg[-1] again.
  cat >"$home.new/bin/luajit" <<'WRAPPER'
#!/bin/bash
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")/root/usr
jit=("$root"/share/luajit-*)
export LUA_PATH="${jit[0]}/?.lua;${LUA_PATH:-;}"
exec -a "$0" "$root/bin/luajit" "$@"
WRAPPER
  chmod +x "$home.new/bin/luajit"
  mv "$home.new" "$home"
fi

echo "$home/bin/luajit"
