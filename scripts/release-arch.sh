#!/usr/bin/env bash
# release-arch.sh: prints the processor, as gcc names it, that images and packages for others are built for: SPDK_ARCH, or
# x86-64-v3 (AVX2: Haswell, Zen and newer), or armv8.2-a+crypto on ARM (the cores of BlueField-3 and newer).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/cross.sh"

if [[ -n ${SPDK_ARCH:-} ]]; then
    echo "$SPDK_ARCH"
elif [[ -n ${SPDK_CROSS:-} ]]; then
    cross_processor
else
    case $(uname -m) in
        x86_64) echo x86-64-v3 ;;
        aarch64) SPDK_CROSS=aarch64-linux-gnu cross_processor ;;
        *) die "there is no default processor for $(uname -m): set SPDK_ARCH" ;;
    esac
fi
