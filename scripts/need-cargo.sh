#!/bin/sh
# Stops with a clear message where there is no Rust. Installing a toolchain is the owner's choice, not a script's.
command -v cargo >/dev/null || {
  echo "msys is built with Rust, and there is no cargo on the PATH: install it with rustup, or add ~/.cargo/bin." >&2
  exit 1
}
