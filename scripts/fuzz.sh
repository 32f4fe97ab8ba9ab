#!/usr/bin/env bash
# fuzz.sh [DOOR [SECONDS [SEED]]]: sets all up, builds, and runs the fuzzer of a door (default: all) against
# the program, for so long each (default: 60). A finding is made smaller and written to a file, which
# `cargo test --test fuzz -- --door DOOR --replay FILE` runs again.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

call bash "$SCRIPTS/setup.sh" --tools
load_env
HUGEPAGES=${HUGEPAGES:-1536} bash "$SCRIPTS/hugepages.sh" || true
cd "$ROOT"
options=(--seconds "${2:-60}" --seed "${3:-1}")
[[ ${1:-all} == all ]] || options+=(--door "$1")
stage "fuzzing ${1:-all doors}" cargo test --locked --test fuzz -- "${options[@]}"
