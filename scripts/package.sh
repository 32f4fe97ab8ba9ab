#!/usr/bin/env bash
# package.sh [PROGRAM]: builds target/package/opi-spdk_VERSION_ARCH.deb from the program, or from that of
# scripts/build-release.sh, which first builds SPDK for the processors of scripts/release-arch.sh if the cache has none.
# Requires cargo-deb (cargo install cargo-deb). With SPDK_CROSS (scripts/cross.sh) the program is for another machine, and an
# emulator runs it for the manual pages (qemu-user-static).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

cargo deb --version &>/dev/null || die "cargo-deb is missing: cargo install cargo-deb"
program=${1:+$(realpath -- "$1")}
cd "$ROOT"
if [[ -z $program ]]; then
    SPDK_ARCH=$(bash "$SCRIPTS/release-arch.sh")
    export SPDK_ARCH SPDK_OPTIMIZE=${SPDK_OPTIMIZE:-none}
    call bash "$SCRIPTS/build-release.sh"
    load_env
    source "$SCRIPTS/spdk-source.sh"
    check_spdk_tree || [[ -n ${SPDK_SRC:-} ]] ||
        die "a package for others needs the SPDK that was tested: SPDK_SRC names a tree of your own choice"
    program=${CARGO_TARGET_DIR:-$ROOT/target}/release/opi-spdk
    # Doctor's status is about this machine.
    { "$program" doctor -o json || true; } | grep -F " for $SPDK_ARCH\"" >/dev/null || die "$program is not built for $SPDK_ARCH"
fi
out=$ROOT/target/package
rm -rf "$out"
mkdir -p "$out/man"
options=()
if [[ -n ${SPDK_CROSS:-} ]]; then
    source "$SCRIPTS/cross.sh"
    options=(--target "$(cross_rust)")
fi
"${SPDK_CROSS:+$SPDK_CROSS-}strip" -o "$out/opi-spdk" "$program"
"$program" generate "$out/man"
gzip -9n "$out"/man/*.1
bash "$SCRIPTS/sbom.sh" >"$out/sbom.json"
bash "$SCRIPTS/sbom.sh" --notices >"$out/THIRD-PARTY"
cargo deb --no-build --no-strip "${options[@]}" --output "$out/"
