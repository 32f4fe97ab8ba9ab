# Sourced. Cross builds for another machine. SPDK_CROSS is its GNU triplet:
#
#   export SPDK_CROSS=aarch64-linux-gnu      BlueField and other ARM servers
#   scripts/setup.sh && eval "$(scripts/env.sh)" && cargo build --release --locked
#
# The program is then target/aarch64-unknown-linux-gnu/release/opi-spdk. Without SPDK_CROSS nothing here is used.

# cross_word N: the name of the machine in Debian (0) and Rust (1), and its processor (2).
cross_word() {
    case $SPDK_CROSS in
        aarch64-linux-gnu) local names=(arm64 aarch64-unknown-linux-gnu armv8.2-a+crypto) ;;
        *) die "SPDK_CROSS=$SPDK_CROSS is no machine that this builds for; aarch64-linux-gnu is" ;;
    esac
    echo "${names[$1]}"
}
cross_debian() { cross_word 0; }
cross_rust() { cross_word 1; }
# The cores of BlueField-3 and newer; SPDK_ARCH overrides it.
cross_processor() { cross_word 2; }

# Prints the variables for cargo; PREFIX is the prefix of SPDK for that machine.
cross_env() {
    local prefix=$1 rust
    rust=$(cross_rust)
    print SPDK_CROSS "$SPDK_CROSS"
    print CARGO_BUILD_TARGET "$rust"
    rust=${rust//-/_}
    print "CARGO_TARGET_${rust^^}_LINKER" "$SPDK_CROSS-gcc"
    print PKG_CONFIG_ALLOW_CROSS 1
    print PKG_CONFIG_LIBDIR "$prefix/lib/pkgconfig:/usr/lib/$SPDK_CROSS/pkgconfig:/usr/share/pkgconfig"
}

# cross_packages PACKAGE...: replaces the linked packages by those for the other machine, and adds its compilers.
cross_packages() {
    local debian package
    debian=$(cross_debian)
    echo "crossbuild-essential-$debian"
    for package; do
        case $package in
            libclang-dev) echo "$package" ;;
            *-dev) echo "$package:$debian" ;;
            *) echo "$package" ;;
        esac
    done
}
