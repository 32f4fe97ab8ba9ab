#!/usr/bin/env bash
# test.sh [--fast|--guest] [ARGUMENT...]: sets all up, builds, and runs the tests, the quick ones first.
#
#   --fast       only unit tests and documentation tests, none on a running target
#   --guest      instead of all others the long ones, in virtual machines with a real Linux; installs QEMU
#                and makes a guest image. ARGUMENT... are then those of the test program.
#   ARGUMENT...  instead of all tests: one `cargo test --workspace ARGUMENT...`, such as
#                `scripts/test.sh --test nvme_tcp -- digest`

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

fast= guest=
case ${1:-} in
    --fast) fast=1 && shift ;;
    --guest) guest=1 && shift ;;
esac
# QEMU emulates no AVX-512, which a build for this machine may use: another SPDK, and another build on it.
[[ -z $guest ]] || export SPDK_ARCH=${SPDK_ARCH:-haswell} CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/guest

bash "$SCRIPTS/setup.sh" --tools
load_env
[[ -n $fast ]] || bash "$SCRIPTS/hugepages.sh" || true
cd "$ROOT"

if [[ -n $guest ]]; then
    bash "$SCRIPTS/packages.sh" qemu-system-x86
    OPI_SPDK_GUEST=$(bash "$SCRIPTS/guest-image.sh")
    export OPI_SPDK_GUEST
    stage "tests in virtual machines" \
        cargo test --locked --test guest --no-fail-fast -- --ignored --test-threads=1 "$@"
    exit
fi
if (($#)); then
    stage "tests: $*" cargo test --locked --workspace "$@"
    exit
fi
stage "unit tests" cargo test --locked --workspace --lib --bins --no-fail-fast
stage "documentation tests" cargo test --locked --workspace --doc --no-fail-fast
[[ -z $fast ]] || exit 0
stage "end-to-end tests on the real engine" cargo test --locked --workspace --test '*' --no-fail-fast
