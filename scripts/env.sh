#!/usr/bin/env bash
# Prints the environment for cargo, tests and benchmarks: eval "$(scripts/env.sh)"
#
#   SPDK_PREFIX   the SPDK to link        SPDK_TOOLS   its target, test tools and fio plugins
#   SPDK_RPC      its JSON-RPC client     PKG_CONFIG_PATH   how the linking side finds it
#
# With SPDK_CROSS, also the variables that cargo needs to build for another machine (scripts/cross.sh).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/spdk-cache.sh"

built=$(spdk_build_dir)
prefix=$(realpath -m -- "${SPDK_PREFIX:-$built/prefix}")
[[ -d $prefix ]] || die "SPDK is not built yet ($prefix is missing); run scripts/setup.sh"

if [[ -z ${SPDK_TOOLS:-} ]]; then
    SPDK_TOOLS=$built/bin
    [[ -z ${SPDK_PREFIX:-} || ! -x $SPDK_PREFIX/bin/spdk_nvme_perf ]] || SPDK_TOOLS=$SPDK_PREFIX/bin
fi

print() { printf 'export %s=%q\n' "$1" "$2"; }
print SPDK_PREFIX "$prefix"
[[ -z ${SPDK_SRC:-} ]] || print SPDK_SRC "$SPDK_SRC"
print SPDK_TOOLS "$SPDK_TOOLS"
print SPDK_RPC "${SPDK_RPC:-$built/scripts/rpc.py}"
[[ -z ${SPDK_CROSS:-} ]] || cross_env "$prefix"
path=$prefix/lib/pkgconfig
case ${PKG_CONFIG_PATH:-} in
    '') ;;
    "$path" | "$path":*) path=$PKG_CONFIG_PATH ;;
    *) path+=:$PKG_CONFIG_PATH ;;
esac
print PKG_CONFIG_PATH "$path"
[[ $PATH == *"$HOME/.cargo/bin"* || ! -d $HOME/.cargo/bin ]] || print PATH "$PATH:$HOME/.cargo/bin"
