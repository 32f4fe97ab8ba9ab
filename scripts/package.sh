#!/usr/bin/env bash
# package.sh [PROGRAM]: builds target/package/opi-spdk_VERSION_ARCH.deb from the program, or from a release build.
# Requires cargo-deb (cargo install cargo-deb).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

cargo deb --version &>/dev/null || die "cargo-deb is missing: cargo install cargo-deb"
program=${1:+$(realpath -- "$1")}
cd "$ROOT"
if [[ -z $program ]]; then
    call bash "$SCRIPTS/setup.sh"
    load_env
    stage "building opi-spdk" cargo build --release --locked
    program=$ROOT/target/release/opi-spdk
fi
out=$ROOT/target/package
rm -rf "$out"
mkdir -p "$out/man"
strip -o "$out/opi-spdk" "$program"
"$program" generate "$out/man"
gzip -9n "$out"/man/*.1
bash "$SCRIPTS/sbom.sh" >"$out/sbom.json"
cargo deb --no-build --no-strip --output "$out/"
