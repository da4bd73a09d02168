#!/bin/sh
# apt-get for the other scripts.
#
#   scripts/apt.sh install <package>...     installs, as root or by sudo; without either it says what to install
#   scripts/apt.sh download <package>...    puts the .deb files into the current directory
#
# It waits while another package manager runs, and refreshes the package lists only if they turn out to be
# missing or stale.
set -eu

verb=$1
shift

root=none
if [ "$(id -u)" -eq 0 ]; then
  root=''
elif sudo -n true 2>/dev/null; then
  root=sudo
fi

if ! command -v apt-get >/dev/null || { [ "$verb" = install ] && [ "$root" = none ]; }; then
  {
    echo "msys needs these Debian packages (or what your system calls them): $*"
    echo "Install them as root, then try again:  apt-get install $*"
  } >&2
  exit 1
fi

refresh() {
  [ "$root" != none ] || return 1
  $root apt-get -q -o DPkg::Lock::Timeout=600 update
}

case $verb in
  install)
    # --no-remove: the packages luajit and luajit2 exclude each other. Refuse rather than uninstall the user's one.
    get() {
      $root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-remove --no-install-recommends \
        -o DPkg::Lock::Timeout=600 install "$@"
    }
    ;;
  download)
    # As root apt would fetch as the user _apt, who may not write here.
    get() { apt-get -q -o APT::Sandbox::User=root download "$@"; }
    ;;
  *)
    echo "usage: scripts/apt.sh install|download <package>..." >&2
    exit 2
    ;;
esac

get "$@" || {
  echo "apt.sh: that failed; trying again with fresh package lists"
  refresh && get "$@"
}
