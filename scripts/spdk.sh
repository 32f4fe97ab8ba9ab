#!/usr/bin/env bash
# spdk.sh [--tools]: makes sure that SPDK is available, building it into the cache if necessary.
#
#   SPDK_PREFIX   an installed SPDK, which is used without building; with --tools, and without test tools in
#                 its bin/ or in SPDK_TOOLS, a build is made for the tools alone
#   SPDK_SRC      a source tree to build instead of Debian's (it is copied, not changed)
#   SPDK_ARCH     the processor to build for, as gcc names it (default: this machine's)
#   SPDK_CROSS    aarch64-linux-gnu: a prefix for another machine, without tools (scripts/cross.sh)
#   SPDK_OPTIMIZE lto: a prefix for link-time optimization (scripts/spdk-optimize.sh), without tools; none
#   SPDK_SANITIZE 1 or assert: a prefix with sanitizers (scripts/spdk-build.sh), without tools

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/spdk-cache.sh"

check_prefix() {
    local header=$SPDK_PREFIX/include/spdk/version.h pc=$SPDK_PREFIX/lib/pkgconfig/spdk_event.pc number
    [[ -r $header && -r $pc ]] || die "SPDK_PREFIX=$SPDK_PREFIX is not an installed SPDK: $header and $pc must exist"
    number=$(awk '$1 == "#define" && $2 ~ /^SPDK_VERSION_M(AJ|IN)OR$/ { v[$2] = $3 }
        END { printf "%d.%02d", v["SPDK_VERSION_MAJOR"], v["SPDK_VERSION_MINOR"] }' "$header")
    [[ $number == "$SPDK_VERSION" ]] || die "SPDK_PREFIX=$SPDK_PREFIX holds SPDK $number; $SPDK_VERSION is needed"
}

build() {
    local dir=$1 work
    work=$(mktemp -d "$CACHE/building-XXXXXX")
    SCRATCH+=("$work")
    step "copying SPDK's source" copy_spdk_source "$work/spdk"
    [[ -n ${SPDK_SANITIZE:-}${SPDK_CROSS:-}${SPDK_OPTIMIZE:-} ]] || step "getting the source of the fio that is installed" \
        apt_source "$work/fio" "$(. /etc/os-release && echo "$VERSION_CODENAME")" "fio=$(fio_version)"
    call bash "$SCRIPTS/spdk-build.sh" "$work/spdk" "$(echo "$work"/fio/fio-*/)" "$work/out"
    mv -T "$work/out" "$dir"
    say "SPDK is ready in $dir"
}

if [[ -n ${SPDK_PREFIX:-} ]]; then
    check_prefix
    [[ -z ${SPDK_OPTIMIZE:-} ]] ||
        die "SPDK_OPTIMIZE=$SPDK_OPTIMIZE has no effect on SPDK_PREFIX=$SPDK_PREFIX, which is built already: unset one of them"
    [[ ${1:-} == --tools && -z ${SPDK_TOOLS:-} && ! -x $SPDK_PREFIX/bin/spdk_nvme_perf ]] || exit 0
fi
[[ -z ${SPDK_SRC:-} ]] || check_spdk_version "$SPDK_SRC" "SPDK_SRC=$SPDK_SRC"

if [[ -n ${SPDK_CROSS:-} ]]; then
    SPDK_ARCH=$(spdk_arch)
    export SPDK_ARCH
fi
dir=$(spdk_build_dir)
[[ ! -d $dir ]] || exit 0
lock
[[ ! -d $dir ]] || exit 0
rm -rf "$CACHE"/building-* # left by a run that was killed; the lock excludes other runs
[[ -n ${SPDK_SRC:-} ]] || fetch_spdk_source
build "$dir"
