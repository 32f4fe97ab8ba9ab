# To be sourced after common.sh: what cargo needs for builds with sanitizers.

# use_sanitizers MODE: from here on cargo builds with AddressSanitizer in our Rust code, that of our
# dependencies and our C shim, on an SPDK, DPDK and libvfio-user that have it too, with
# UndefinedBehaviorSanitizer (MODE 1), and with SPDK's assertions (MODE assert). Rust's standard library stays
# as it is. A program that a sanitizer ends fails its test, which then shows the report.
#
# One runtime serves all: Rust's, which understands gcc's objects, as both have the same version of its
# interface. SPDK_SANITIZED names the prefix of such an SPDK; else it is made, into the cache. To be called
# after load_env, whose test tools stay plain.
use_sanitizers() {
    if [[ -z ${SPDK_SANITIZED:-} ]]; then
        (unset SPDK_PREFIX && SPDK_SANITIZE=$1 call bash "$SCRIPTS/spdk.sh")
        SPDK_SANITIZED=$(unset SPDK_PREFIX && source "$SCRIPTS/spdk-cache.sh" && SPDK_SANITIZE=$1 spdk_build_dir)/prefix
    fi
    export SPDK_PREFIX=$SPDK_SANITIZED PKG_CONFIG_PATH=$SPDK_SANITIZED/lib/pkgconfig
    # AddressSanitizer comes with every toolchain, only the option that turns it on is not stable.
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address --cfg asan' CFLAGS='-fsanitize=address -fno-omit-frame-pointer'
    # With a target named, build scripts and procedural macros, which run in the compiler, are left alone.
    CARGO_BUILD_TARGET=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    export CARGO_BUILD_TARGET CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/sanitize-$1
    export CARGO_INCREMENTAL=0
    # A test that ends a target by a signal looks at its status. Leaks are told by the counts of
    # descriptors and memory: SPDK keeps much until its process ends. 64 MiB in quarantine are minutes of work.
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:quarantine_size_mb=64:detect_stack_use_after_return=0}
}
