#!/usr/bin/env bash
# setup.sh [--tools|--release]: installs everything that a build needs. Idempotent: what is present takes no time. --release
# is build-release.sh's, the only script that links an SPDK built with SPDK_OPTIMIZE.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == --release ]]; then
    shift
elif [[ ${SPDK_OPTIMIZE:-none} != none ]]; then
    die "SPDK_OPTIMIZE=$SPDK_OPTIMIZE is for scripts/build-release.sh alone: unset it"
fi

[[ -x ${HOME:-}/.cargo/bin/cargo ]] || command -v cargo >/dev/null ||
    die "cargo was not found: install a Rust toolchain (the version in Cargo.toml's rust-version, or later), for instance by rustup"

if [[ -n ${SPDK_CROSS:-} ]]; then
    source "$SCRIPTS/cross.sh"
    command -v rustup >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
    rustup target list --installed 2>/dev/null | grep -qx "$(cross_rust)" ||
        stage "Rust's library for $(cross_rust)" rustup target add "$(cross_rust)"
fi
call bash "$SCRIPTS/packages.sh"
call bash "$SCRIPTS/spdk.sh" "$@"
