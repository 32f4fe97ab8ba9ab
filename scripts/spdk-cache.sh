# Sourced. The build of SPDK that this checkout uses, and its directory.

source "$SCRIPTS/spdk-source.sh"
source "$SCRIPTS/cross.sh"

# Variables printed by an earlier env.sh are no choice of the user: the matching build may have changed since.
[[ ${SPDK_PREFIX:-} != "$CACHE"/* ]] || unset SPDK_PREFIX SPDK_TOOLS SPDK_RPC
[[ ${SPDK_OPTIMIZE:-} != none ]] || unset SPDK_OPTIMIZE

# The processor that the build is for: its code may not run on older processors.
spdk_arch() {
    [[ -z ${SPDK_ARCH:-} ]] || { echo "$SPDK_ARCH" && return; }
    [[ -z ${SPDK_CROSS:-} ]] || { cross_processor && return; }
    gcc -march=native -Q --help=target | awk '$1 == "-march=" && !n++ { print $2 }'
}

# The version of the installed fio, which its plugins must match.
fio_version() { dpkg-query -W -f '${source:Version}' fio; }

# Prints the directory of the build: version, processor, and a hash of all inputs.
spdk_build_dir() {
    local version=$SPDK_VERSION hash
    [[ -z ${SPDK_SRC:-} ]] || version=$(<"$SPDK_SRC/VERSION")
    hash=$({
        sed -e '/SPDK_OPTIMIZE/d' -e 's/^ *#.*//' "$SCRIPTS/spdk-build.sh" "$SCRIPTS/spdk-changes.py"
        # Of a change its name and what it changes, not what it says of itself.
        find "$ROOT/spdk/changes" -name '*.change' -printf '%f\n' | sort
        find "$ROOT/spdk/changes" -name '*.change' | sort | xargs -r sed -s -n -e '/^optional:/p' -e '/^---$/,$p'
        find "$ROOT/spdk/changes" -name '*.h' | sort | xargs -r cat
        fio_version
        spdk_source_id
        [[ -z ${SPDK_SANITIZE:-} ]] || echo "sanitize=$SPDK_SANITIZE"
        [[ -z ${SPDK_CROSS:-} ]] || echo "cross=$SPDK_CROSS"
        [[ -z ${SPDK_OPTIMIZE:-} ]] || { echo "optimize=$SPDK_OPTIMIZE" && sed 's/^ *#.*//' "$SCRIPTS/spdk-optimize.sh"; }
    } | sha256sum)
    echo "$CACHE/spdk-$version-$(spdk_arch)-${hash:0:12}"
}
