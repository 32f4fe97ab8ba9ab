#!/usr/bin/env bash
# spdk-build.sh SOURCE FIO OUT: builds SPDK in the tree SOURCE (which it modifies), and creates OUT:
#
#   prefix/   headers and static libraries of SPDK and DPDK, with those that `make install` leaves out
#   bin/      SPDK's own target and its test tools, and the plugins for the fio whose source is in FIO
#   scripts/rpc.py, python/    SPDK's JSON-RPC client
#
# SPDK_SANITIZE=1 makes the prefix alone, built with AddressSanitizer and UndefinedBehaviorSanitizer (whose
# findings trap, as its runtime is not linked); SPDK_SANITIZE=assert the same with SPDK's assertions.
# SPDK_CROSS=aarch64-linux-gnu makes the prefix alone, for another machine (scripts/cross.sh).
# SPDK_OPTIMIZE=lto makes the prefix alone, for link-time optimization (scripts/spdk-optimize.sh).
# What is not a comment in this file is part of the cache's key: a change of it means a new build.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
SOURCE=$1 FIO=$2 OUT=$3

OPTIONS=(
    --disable-unit-tests --disable-tests --disable-examples --disable-apps
    --without-fsdev --without-nvme-cuse
    --with-uring --with-vfio-user --with-rdma
    --target-arch="${SPDK_ARCH:-native}"
)
case ${SPDK_SANITIZE:-} in
    1) OPTIONS+=(--enable-asan --enable-ubsan) ;;
    assert) OPTIONS+=(--enable-asan --enable-ubsan --enable-debug) ;;
esac
[[ -z ${SPDK_CROSS:-} ]] || OPTIONS+=(--cross-prefix="$SPDK_CROSS")
TOOLS=(app/spdk_tgt app/spdk_nvme_perf app/spdk_nvme_identify app/spdk_dd examples/bdev/bdevperf)
PLUGINS=(app/fio/nvme app/fio/bdev)

# drop FILE WORD...: removes directories or modules from the lists in a makefile.
drop() {
    local file=$1 word
    shift
    for word; do
        sed -i -E "s/(^|[[:space:]])$word([[:space:]]|\$)/\1\2/g" "$file"
    done
}

# Leaves out what we have no use for, above all the blobstore with lvol and ftl on it. bdev_crypto is
# taken without --with-crypto, which would bring DPDK's cryptodev drivers: the software accel module
# does AES-XTS by isa-l-crypto. Python's part is copied, as installing it needs a tool Debian lacks.
trim() {
    drop lib/Makefile blob ftl lvol trace_parser ut_mock
    drop module/Makefile blob
    drop module/bdev/Makefile ftl gpt lvol passthru raid split zone_block
    drop mk/spdk.modules.mk blob blob_bdev bdev_lvol lvol bdev_ftl ftl bdev_gpt bdev_passthru bdev_raid \
        bdev_split bdev_zone_block
    drop Makefile python
    sed -i 's/^DIRS-$(CONFIG_CRYPTO) += crypto/DIRS-y += crypto/' module/bdev/Makefile
    sed -i '0,/^BLOCKDEV_MODULES_LIST = /s//&bdev_crypto /' mk/spdk.modules.mk
}

# This file of Debian's tree logs under a component that nothing registers, so no target would link.
mend() {
    local file=lib/nvmf/subsystem_rbd_resrv.c line='SPDK_LOG_REGISTER_COMPONENT(reservation)'
    [[ ! -f $file ]] || grep -rqF "$line" lib/nvmf || echo "$line" >>"$file"
}

# What opi-spdk links has the changes of spdk/changes/. SPDK's own programs, built before, have not:
# they are what it is compared with, and peers like those in the field.
change() { python3 "$SCRIPTS/spdk-changes.py" .; }

# Settings for a build with sanitizers that SPDK's options do not include.
sanitize() {
    sed -i 's/-fsanitize=undefined$/& -fsanitize-undefined-trap-on-error/' mk/spdk.common.mk
    sed -i 's/^VFIO_USER_CFG_OPTS = /&-Db_sanitize=address -Db_lundef=false /' vfiouserbuild/Makefile
}

# SPDK's make cannot cross-build the parts that use meson (DPDK and libvfio-user), but meson itself can.
cross() {
    local file=$SOURCE/cross
    cat >"$file" <<EOF
[binaries]
c = '$SPDK_CROSS-gcc'
cpp = '$SPDK_CROSS-g++'
ar = '$SPDK_CROSS-gcc-ar'
strip = '$SPDK_CROSS-strip'
pkgconfig = 'pkg-config'
[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'armv8-a'
endian = 'little'
[properties]
platform = 'generic'
EOF
    sed -i "/Automatic DPDK cross build/,+1c DPDK_OPTS += --cross-file $file" dpdkbuild/Makefile
    sed -i "s|^VFIO_USER_CFG_OPTS = |&--cross-file $file |" vfiouserbuild/Makefile
    (($(grep -lF -e "--cross-file $file" dpdkbuild/Makefile vfiouserbuild/Makefile | wc -l) == 2)) ||
        die "SPDK's makefiles have no place for meson's --cross-file where it is expected"
}

configure_spdk() {
    trim
    mend
    [[ -z ${SPDK_CROSS:-} ]] || cross
    [[ -z ${SPDK_SANITIZE:-} ]] || sanitize
    ./configure --prefix="$OUT/prefix" "${OPTIONS[@]}"
}

make_spdk() { make -j"$(nproc)"; }

install_spdk() {
    make -j"$(nproc)" install
    local prefix=$OUT/prefix module
    cp build/libvfio-user/usr/local/lib/libvfio-user.a "$prefix/lib/"
    cp -r include/spdk_internal include/opi "$prefix/include/"
    for module in aio crypto delay error malloc null nvme uring virtio; do
        mkdir -p "$prefix/include/spdk_module/bdev/$module"
        cp module/bdev/"$module"/*.h "$prefix/include/spdk_module/bdev/$module/"
    done

    # Static libraries only, and relocatable pkg-config files.
    rm -f "$prefix"/lib/*.so* "$prefix"/lib/*.la
    rm -rf "$prefix"/{bin,share,lib/dpdk}
    sed -i -E 's|\S+/lib(isal\|isal_crypto)\.a|-l\1|g' "$prefix/lib/pkgconfig/spdk_syslibs.pc"
    sed -i "s|$prefix|\${pcfiledir}/../..|g" "$prefix"/lib/pkgconfig/*.pc
    ! grep -F "$SOURCE" "$prefix"/lib/pkgconfig/*.pc
}

make_tools() {
    local dir
    (cd "$FIO" && ./configure)
    for dir in "${TOOLS[@]}"; do make -C "$dir"; done
    for dir in "${PLUGINS[@]}"; do make -C "$dir" CONFIG_FIO_PLUGIN=y CONFIG_FIO_SOURCE_DIR="$FIO"; done
    mkdir -p "$OUT"/{bin,scripts,python}
    cp build/bin/spdk_* build/examples/bdevperf build/fio/spdk_* "$OUT/bin/"
    cp scripts/rpc.py "$OUT/scripts/"
    make -C python spdk/version.py
    cp -r python/spdk "$OUT/python/"
}

# DPDK's meson needs the Python of Debian's python3-pyelftools.
export PATH=/usr/bin:$PATH
unset AR CC CFLAGS CXX CXXFLAGS DESTDIR LD LDFLAGS MAKEFLAGS
if [[ -n ${SPDK_CROSS:-} ]]; then
    export CC=$SPDK_CROSS-gcc CXX=$SPDK_CROSS-g++
    export PKG_CONFIG_LIBDIR=/usr/lib/$SPDK_CROSS/pkgconfig:/usr/share/pkgconfig
fi

[[ -z ${SPDK_OPTIMIZE:-} ]] || source "$SCRIPTS/spdk-optimize.sh"
cd "$SOURCE"
step "configuring SPDK" configure_spdk
if [[ -z ${SPDK_SANITIZE:-}${SPDK_CROSS:-} ]]; then
    step "building SPDK's and DPDK's libraries" make_spdk
    step "building SPDK's target, test tools and fio plugins" make_tools
fi
step "applying the changes of spdk/changes/" change
step "building the libraries with them" make_spdk
step "installing the libraries into the cache" install_spdk
