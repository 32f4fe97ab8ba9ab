#!/usr/bin/env bash
# packages.sh [PACKAGE...]: installs the required (or named) Debian packages that are missing.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

PACKAGES=(
    # to build SPDK, DPDK, isa-l and libvfio-user
    build-essential autoconf automake libtool nasm meson ninja-build pkgconf
    python3 python3-pyelftools xz-utils procps
    libaio-dev libcmocka-dev libibverbs-dev libjson-c-dev libkeyutils-dev libnuma-dev librdmacm-dev
    libssl-dev liburing-dev uuid-dev
    # for the Rust bindings
    clang libclang-dev
    # to load the target, and to call it
    fio curl
    # the configuration that SPDK's OpenSSL requires; names of PCI devices, for the inventory
    openssl pci.ids
    # to check units
    systemd
)
((!$#)) || PACKAGES=("$@")
if [[ -n ${SPDK_CROSS:-} ]]; then
    source "$SCRIPTS/cross.sh"
    mapfile -t PACKAGES < <(cross_packages "${PACKAGES[@]}")
fi

install_packages() {
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
}

# Updates the package index only if an installation fails, after completing an installation that was interrupted.
install_or_update() {
    export DEBIAN_FRONTEND=noninteractive
    install_packages "$@" || {
        dpkg --configure -a || true
        apt-get update
        install_packages "$@"
    }
}

if ! command -v apt-get >/dev/null; then
    [[ -n ${SPDK_PREFIX:-} ]] || die "this set-up needs Debian 12; elsewhere set SPDK_PREFIX to an installed SPDK, and have the counterparts of: ${PACKAGES[*]}"
    say "not a Debian machine: the counterparts of these packages are taken for granted: ${PACKAGES[*]}"
    exit 0
fi

missing=()
for package in "${PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0
((EUID == 0)) || die "these Debian packages are missing, and only root may install them: apt-get install ${missing[*]}"

lock
if [[ -n ${SPDK_CROSS:-} ]] && ! dpkg --print-foreign-architectures | grep -qx "$(cross_debian)"; then
    dpkg --add-architecture "$(cross_debian)"
    step "the index of packages for $(cross_debian)" apt-get update
fi
step "installing ${#missing[@]} Debian packages" install_or_update "${missing[@]}"
