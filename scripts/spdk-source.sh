# Sourced. The source of SPDK: Debian has no SPDK package of this version, but its source package `ceph` contains the
# whole tree with all submodules.

source "$SCRIPTS/apt-source.sh"

SPDK_VERSION=26.01
# spdk_tree_hash of the tree that this was tested with. Debian's source package may come with another one of this version.
SPDK_TREE_TESTED=f3c4befd45f37003e50170ea3c4cbf1d4be81afab5bc2a3b49437d0e6a0c962b
SPDK_IN_CEPH=src/nvmeof/gateway/spdk
[[ -z ${SPDK_SRC:-} ]] || SPDK_SRC=$(realpath -m -- "$SPDK_SRC")

# check_spdk_version DIR ORIGIN: checks that the source tree DIR has the required version.
check_spdk_version() {
    local version=none
    [[ ! -r $1/VERSION ]] || version=$(<"$1/VERSION")
    [[ $version == "$SPDK_VERSION"* ]] ||
        die "SPDK $SPDK_VERSION is needed, but $2 holds version '$version'; set SPDK_SRC to a source tree of it, or SPDK_PREFIX to where it is installed"
}

# spdk_tree_hash DIR: SHA-256 over the SHA-256 and the names of all files of a source tree.
spdk_tree_hash() {
    (cd -- "$1" && find . -type f ! -path './.git/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
}

# check_spdk_tree: whether SPDK_SRC, or Debian's source, is the tree that was tested.
check_spdk_tree() {
    local dir=${SPDK_SRC:-$CACHE/source/spdk-$SPDK_VERSION} found
    found=$(spdk_tree_hash "$dir")
    [[ $found == "$SPDK_TREE_TESTED" ]] || {
        say "$dir is not the tree that was tested: its hash is $found, that of the tested one $SPDK_TREE_TESTED"
        return 1
    }
}

# spdk_source_id: an ID of the source's content. Debian's source is identified by its version alone.
spdk_source_id() {
    [[ -n ${SPDK_SRC:-} ]] || return 0
    (
        cd -- "$SPDK_SRC"
        find . \( -name .git -o -path './build' -o -path './dpdk/build*' \) -prune -o \
            -type f \( -name '*.[chS]' -o -name '*.asm' -o -path './*/Makefile' -o -path './mk/spdk*' \) \
            ! -path ./include/spdk/config.h ! -path ./include/spdk/version.h ! -path './isa-l*/Makefile' -print0 |
            sort -z | xargs -0 sha256sum
    )
}

extract_ceph() {
    local depth=${SPDK_IN_CEPH//[^\/]/}
    mkdir "$1/spdk"
    tar -x -I 'xz -d -T0' -f "$1"/ceph_*.orig.tar.xz -C "$1/spdk" --wildcards --no-wildcards-match-slash \
        --strip-components=$((${#depth} + 2)) "*/$SPDK_IN_CEPH"
}

# fetch_spdk_source: creates $CACHE/source/spdk-VERSION atomically. Call it with the lock held.
fetch_spdk_source() {
    local dir=$CACHE/source/spdk-$SPDK_VERSION work
    [[ ! -d $dir ]] || return 0
    work=$(mktemp -d "$CACHE/building-XXXXXX")
    SCRATCH+=("$work")
    step "getting SPDK's source (Debian's source package 'ceph', about 250 MB)" \
        apt_source "$work" sid --download-only --tar-only ceph
    step "extracting SPDK's source" extract_ceph "$work"
    check_spdk_version "$work/spdk" "the source package $(cd "$work" && echo ceph_*.orig.tar.xz)"
    mkdir -p "$CACHE/source"
    mv -T "$work/spdk" "$dir"
    rm -rf "$work"
    check_spdk_tree || true
}

# copy_spdk_source DIR: makes a tree to build in, from SPDK_SRC or from Debian, without artifacts of an earlier build
# in SPDK_SRC.
copy_spdk_source() {
    local from=${SPDK_SRC:-$CACHE/source/spdk-$SPDK_VERSION}
    mkdir "$1"
    tar -c -C "$from" --exclude=.git --exclude=./build --exclude='./dpdk/build' --exclude='./dpdk/build-tmp' \
        --exclude='*.o' --exclude='*.lo' --exclude='*.a' --exclude='*.d' . | tar -x -C "$1"
    rm -f "$1"/mk/{config,cc}.mk "$1"/include/spdk/config.h
}
