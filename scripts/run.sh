#!/usr/bin/env bash
# run.sh [OPTION...]: sets everything up, builds, and runs opi-spdk with these options; without --config, with
# examples/lab.toml.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# given OPTION ARGUMENT...: whether the option is among the arguments, as `--option` or `--option=value`.
given() {
    local option=$1 argument
    shift
    for argument; do [[ $argument != "$option" && $argument != "$option="* ]] || return 0; done
    return 1
}

call bash "$SCRIPTS/setup.sh"
load_env
cd "$ROOT"
stage "building opi-spdk" cargo build --release --locked

options=()
given --config "$@" || options+=(--config "$ROOT/examples/lab.toml")
given --no-huge "$@" || bash "$SCRIPTS/hugepages.sh" || options+=(--no-huge)
exec "${CARGO_TARGET_DIR:-$ROOT/target}/release/opi-spdk" "${options[@]}" "$@"
