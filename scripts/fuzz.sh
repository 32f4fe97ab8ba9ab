#!/usr/bin/env bash
# fuzz.sh [--sanitize|--assert] [DOOR [SECONDS [SEED]]]: sets everything up, builds, and runs the fuzzer of a door
# (default: all) against the program, for this time each (default: 60). A finding is minimized and written to a file,
# which `cargo test --test fuzz -- --door DOOR --replay FILE` runs again.
#
#   --sanitize   with AddressSanitizer and UndefinedBehaviorSanitizer in SPDK, DPDK, libvfio-user and ours
#   --assert     the same with SPDK's assertions
#   DOOR         host, peer, vhost-user, vfio-user, tls, or all

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/sanitizers.sh"

mode=
case ${1:-} in
    --sanitize) mode=1 && shift ;;
    --assert) mode=assert && shift ;;
esac

call bash "$SCRIPTS/setup.sh" --tools
load_env
HUGEPAGES=${HUGEPAGES:-1536} bash "$SCRIPTS/hugepages.sh" || true
[[ -z $mode ]] || use_sanitizers "$mode"
cd "$ROOT"
options=(--seconds "${2:-60}" --seed "${3:-1}")
[[ ${1:-all} == all ]] || options+=(--door "$1")
stage "fuzzing ${1:-all doors}" cargo test --locked --test fuzz -- "${options[@]}"
