#!/usr/bin/env bash
# build-release.sh: builds target/release/opi-spdk as images and packages hold it: for the processors of
# scripts/release-arch.sh. SPDK_OPTIMIZE=lto builds it with link-time optimization of SPDK (scripts/spdk-optimize.sh), in
# one more build of SPDK; the default is none, as scripts/run.sh builds it.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ -z ${SPDK_CROSS:-} ]] || die "SPDK_CROSS is set: this builds for machines like this one alone; see scripts/cross.sh"
SPDK_ARCH=$(bash "$SCRIPTS/release-arch.sh")
export SPDK_ARCH SPDK_OPTIMIZE=${SPDK_OPTIMIZE:-none}
call bash "$SCRIPTS/setup.sh" --release
load_env
cd "$ROOT"
options=()
# gcc's intermediate code needs a linker that takes gcc's plugin: Rust's default on x86-64 does not.
[[ $SPDK_OPTIMIZE == none ]] || options=(-Clink-arg=-fuse-ld=bfd -Clink-arg=-flto=auto)
stage "building opi-spdk for $SPDK_ARCH" \
    cargo rustc --release --locked --package opi-spdk --bin opi-spdk -- "${options[@]}"
