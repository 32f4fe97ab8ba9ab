# Sourced after common.sh. Settings of cargo for builds with sanitizers.

# use_sanitizers MODE: from now on cargo builds with AddressSanitizer in our Rust code, our dependencies and our C
# shim, and with an SPDK, DPDK and libvfio-user that have AddressSanitizer and UndefinedBehaviorSanitizer (MODE 1), and
# SPDK's assertions (MODE assert). Rust's standard library is not instrumented. A program ended by a sanitizer fails
# its test, which then shows the report.
#
# All code shares one runtime: Rust's, which is compatible with gcc's objects since both have the same version of its
# interface. SPDK_SANITIZED names the prefix of such an SPDK; otherwise it is built into the cache. Call it after
# load_env, whose test tools are not instrumented.
use_sanitizers() {
    if [[ -z ${SPDK_SANITIZED:-} ]]; then
        (unset SPDK_PREFIX && SPDK_SANITIZE=$1 call bash "$SCRIPTS/spdk.sh")
        SPDK_SANITIZED=$(unset SPDK_PREFIX && source "$SCRIPTS/spdk-cache.sh" && SPDK_SANITIZE=$1 spdk_build_dir)/prefix
    fi
    export SPDK_PREFIX=$SPDK_SANITIZED PKG_CONFIG_PATH=$SPDK_SANITIZED/lib/pkgconfig
    # Every toolchain has AddressSanitizer; only the option that enables it is unstable.
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address --cfg asan' CFLAGS='-fsanitize=address -fno-omit-frame-pointer'
    # With an explicit target, build scripts and procedural macros, which run in the compiler, are not instrumented.
    CARGO_BUILD_TARGET=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    export CARGO_BUILD_TARGET CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/sanitize-$1
    export CARGO_INCREMENTAL=0
    # Tests check the status of a target that they kill by signal. Leaks are detected by counting descriptors and
    # memory, since SPDK frees much only at exit. A quarantine of 64 MiB covers minutes of work.
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:quarantine_size_mb=64:detect_stack_use_after_return=0}
}
