#!/usr/bin/env bash
# bench.sh [OPTION...]: sets all up, builds, and measures opi-spdk beside SPDK's own target and beside
# a gRPC server that does nothing. `bench.sh --help` tells the options; without any it takes some fifteen
# minutes, and wants a machine that does nothing else. Results: target/bench/bench.md and bench.json.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

call bash "$SCRIPTS/setup.sh" --tools
load_env
cd "$ROOT"
stage "building opi-spdk and the bench" cargo bench --locked --bench compare --no-run

# Without hugepages the bench runs too, with less, and says so in its tables.
# Two targets stand side by side.
[[ " $* " == *" --no-huge "* ]] || HUGEPAGES=${HUGEPAGES:-1280} bash "$SCRIPTS/hugepages.sh" || true
exec cargo bench --locked --quiet --bench compare -- "$@"
