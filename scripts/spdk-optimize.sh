# Sourced by spdk-build.sh, in place of its last steps: SPDK_OPTIMIZE=lto builds the prefix alone, with the changes, for
# link-time optimization: the archives hold gcc's intermediate code, which scripts/build-release.sh links.

[[ $SPDK_OPTIMIZE == lto ]] || die "SPDK_OPTIMIZE=$SPDK_OPTIMIZE is not known; 'lto' and 'none' are"

OPTIONS+=(--enable-lto)

# SPDK's option does not cover libvfio-user. Of DPDK the data path calls little, and that through pointers: it stays as it is.
optimize() {
    sed -i '/Db_lto=true/d' dpdkbuild/Makefile
    sed -i 's|^VFIO_USER_CFG_OPTS = |&-Db_lto=true |' vfiouserbuild/Makefile
    grep -q 'Db_lto=true' vfiouserbuild/Makefile || die "libvfio-user's makefile has its options elsewhere"
    configure_spdk
}

cd "$SOURCE"
step "configuring SPDK for optimization ($SPDK_OPTIMIZE)" optimize
step "applying the changes of spdk/changes/" change
step "building SPDK's and DPDK's libraries" make_spdk
step "installing the libraries into the cache" install_spdk
exit
