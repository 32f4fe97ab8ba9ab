#!/usr/bin/env bash
# setup.sh [--tools]: all that a build needs, from nothing; what is there already takes no time.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ -x ${HOME:-}/.cargo/bin/cargo ]] || command -v cargo >/dev/null ||
    die "cargo was not found: install a Rust toolchain (the version in Cargo.toml's rust-version, or later), for instance by rustup"

call bash "$SCRIPTS/packages.sh"
call bash "$SCRIPTS/spdk.sh" "$@"
