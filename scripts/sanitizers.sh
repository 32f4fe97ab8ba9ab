# To be sourced after common.sh: what cargo needs for builds with AddressSanitizer.

# From here on cargo builds with AddressSanitizer: our Rust code, that of our dependencies, and our C
# shim. SPDK and Rust's standard library stay as they are, but all of them allocate, free and copy
# through the sanitizer, which also reports what leaked. A program that it ends fails its test, which
# then shows the report. (Where ptrace is forbidden, set ASAN_OPTIONS=detect_leaks=0.)
use_asan() {
    # It comes with every toolchain, only the option that turns it on is not stable.
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address --cfg asan' CFLAGS='-fsanitize=address -fno-omit-frame-pointer'
    # With a target named, build scripts and procedural macros, which run in the compiler, are left alone.
    CARGO_BUILD_TARGET=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    export CARGO_BUILD_TARGET CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/${1:-asan}
    export CARGO_INCREMENTAL=0
}

# use_sanitizers MODE: the same, and SPDK, DPDK and libvfio-user too, with UndefinedBehaviorSanitizer
# (MODE 1), and with SPDK's assertions (MODE assert). One runtime serves all: Rust's, which understands
# gcc's objects, as both have the same version of its interface. SPDK_SANITIZED names the prefix of such
# a build; else it is made, into the cache. To be called after load_env, whose test tools stay plain.
use_sanitizers() {
    if [[ -z ${SPDK_SANITIZED:-} ]]; then
        (unset SPDK_PREFIX && SPDK_SANITIZE=$1 call bash "$SCRIPTS/spdk.sh")
        SPDK_SANITIZED=$(unset SPDK_PREFIX && source "$SCRIPTS/spdk-cache.sh" && SPDK_SANITIZE=$1 spdk_build_dir)/prefix
    fi
    export SPDK_PREFIX=$SPDK_SANITIZED PKG_CONFIG_PATH=$SPDK_SANITIZED/lib/pkgconfig
    use_asan "sanitize-$1"
    # A test that ends a target by a signal looks at its status. Leaks are told by the counts of
    # descriptors and memory: SPDK keeps much until its process ends. 64 MiB in quarantine are minutes of work.
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:quarantine_size_mb=64:detect_stack_use_after_return=0}
}
