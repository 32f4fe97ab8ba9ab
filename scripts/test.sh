#!/usr/bin/env bash
# test.sh [--fast|--asan|--assert|--two-reactors|--guest|--container|--crash] [ARGUMENT...]: sets everything up,
# builds, and runs the tests, the fast ones first.
#
#   --fast       only unit tests and documentation tests, without a running target
#   --asan       the tests of the doors, and some others, with AddressSanitizer and UndefinedBehaviorSanitizer in
#                SPDK, DPDK, libvfio-user and ours; a report fails the test. ARGUMENT... names other tests instead
#   --assert     the same, also with SPDK's assertions
#   --two-reactors  the named tests, on targets with two reactors where the default is one; a second target shares
#                core 1 with the first
#   --guest      only the long tests, in virtual machines with a real Linux; installs QEMU and makes a guest image.
#                ARGUMENT... is passed to the test program
#   --container  only the tests of the package, the image and the compose file, on a container engine of their own;
#                ARGUMENT is the program to use (default: a debug build), after --image if the image is to be built
#                by the Dockerfile, from scratch
#   --crash      only the test that kills the program under load and compares what is left, in 200 rounds
#   ARGUMENT...  instead of all tests: one `cargo test --workspace ARGUMENT...`, such as
#                `scripts/test.sh --test nvme_tcp -- digest`
#
# PROPTEST_CASES=500 has each property test run so many cases; those of the state run a few by default.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/sanitizers.sh"

[[ ${1:-} != --container ]] || exec bash "$SCRIPTS/container-test.sh" "${@:2}"

fast= sanitize= guest= crash=
case ${1:-} in
    --fast) fast=1 && shift ;;
    --asan) sanitize=1 && shift ;;
    --assert) sanitize=assert && shift ;;
    --two-reactors) export TEST_REACTORS=2 && shift ;;
    --guest) guest=1 && shift ;;
    --crash) crash=1 && shift ;;
esac
# QEMU does not emulate AVX-512, which a build for this machine may use, so guests need another build of SPDK and ours.
[[ -z $guest ]] || export SPDK_ARCH=${SPDK_ARCH:-haswell} CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/guest

# Tests of --asan and --assert: the doors, data over each way in and out, the safe API over SPDK, and bad input.
SANITIZED_TESTS=(door_nvme_tcp door_fabrics door_peer door_vhost_user door_vfio_user door_management
    tls hosts dataplane mailbox target remote vhost contract bad_input)

call bash "$SCRIPTS/setup.sh" --tools
load_env
# The tests' guests need hugepages in addition to the target's.
[[ -n $fast ]] || HUGEPAGES=${HUGEPAGES:-1536} bash "$SCRIPTS/hugepages.sh" || true
cd "$ROOT"
# The page is tested in a browser.
[[ -n $fast$guest$crash$sanitize ]] || call bash "$SCRIPTS/packages.sh" chromium
[[ -z $sanitize ]] || use_sanitizers "$sanitize"

if [[ -n $guest ]]; then
    call bash "$SCRIPTS/packages.sh" qemu-system-x86
    OPI_SPDK_GUEST=$(bash "$SCRIPTS/guest-image.sh")
    export OPI_SPDK_GUEST
    stage "tests in virtual machines" \
        cargo test --locked --test guest --no-fail-fast -- --ignored --test-threads=1 "$@"
    exit
fi
if [[ -n $crash ]]; then
    export CRASH_ROUNDS=${CRASH_ROUNDS:-200}
    stage "$CRASH_ROUNDS ends by kill -9" cargo test --locked --test crash -- --nocapture "$@"
    exit
fi
if [[ -n $sanitize ]]; then
    (($#)) || set -- "${SANITIZED_TESTS[@]}"
    stage "end-to-end tests with sanitizers, $# files of them" \
        cargo test --locked --workspace "${@/#/--test=}" --no-fail-fast
    exit
fi
if (($#)); then
    stage "tests: $*" cargo test --locked --workspace "$@"
    exit
fi
stage "unit tests" cargo test --locked --workspace --lib --bins --no-fail-fast
stage "models of what threads share" env RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --locked --package spdk-control --lib --release
stage "documentation tests" cargo test --locked --workspace --doc --no-fail-fast
[[ -z $fast ]] || exit 0
stage "end-to-end tests on the real engine" cargo test --locked --workspace --test '*' --no-fail-fast
[[ -z ${TEST_REACTORS:-} ]] || exit 0
stage "the contract, calls side by side and I/O, on two reactors" \
    env TEST_REACTORS=2 cargo test --locked --test concurrency --test contract --test dataplane --no-fail-fast
