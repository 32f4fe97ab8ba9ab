#!/usr/bin/env bash
# bench.sh [OPTION...]: sets everything up, builds, and compares opi-spdk with SPDK's own target and with a gRPC server
# that does nothing. `bench.sh --help` lists the options; without any it takes about half an hour, and requires an
# otherwise idle machine. Results: target/bench/bench.md, bench.json and a chart, bench.svg.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

call bash "$SCRIPTS/setup.sh" --tools
load_env
cd "$ROOT"
stage "building opi-spdk and the bench" cargo bench --locked --bench compare --no-run

# Without hugepages the bench runs with fewer scenarios, and says so in its tables. Two targets run side by side.
[[ " $* " == *" --no-huge "* ]] || HUGEPAGES=${HUGEPAGES:-1280} bash "$SCRIPTS/hugepages.sh" || true
exec cargo bench --locked --quiet --bench compare -- "$@"
