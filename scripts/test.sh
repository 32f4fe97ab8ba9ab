#!/usr/bin/env bash
# test.sh [--fast] [ARGUMENT...]: sets all up, builds, and runs the tests, the quick ones first.
#
#   --fast       only unit tests and documentation tests, none on a running target
#   ARGUMENT...  instead of all tests: one `cargo test --workspace ARGUMENT...`, such as
#                `scripts/test.sh --test nvme_tcp -- digest`

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

fast=
[[ ${1:-} != --fast ]] || { fast=1 && shift; }

bash "$SCRIPTS/setup.sh" --tools
load_env
[[ -n $fast ]] || bash "$SCRIPTS/hugepages.sh" || true
cd "$ROOT"

if (($#)); then
    stage "tests: $*" cargo test --locked --workspace "$@"
    exit
fi
stage "unit tests" cargo test --locked --workspace --lib --bins --no-fail-fast
stage "documentation tests" cargo test --locked --workspace --doc --no-fail-fast
[[ -z $fast ]] || exit 0
stage "end-to-end tests on the real engine" cargo test --locked --workspace --test '*' --no-fail-fast
