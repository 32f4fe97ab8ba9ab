#!/usr/bin/env bash
# guest-image.sh: makes what the guest tests boot, and prints the directory that it is in:
#
#   vmlinuz, initrd   Linux 6.12 and a system in memory: busybox, nvme-cli, fio (guest-initrd.sh completes it)
#   root/             a small Debian with QEMU 11.1, as vfio-user-pci came with 10.1 (guest-qemu.sh runs it)
#
# All of it is Debian's. What is not a comment in this file is part of the cache's key.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/apt-source.sh"

RELEASE=trixie   # of the kernel and the tools; QEMU is from its backports
NEWER=forky      # of nvme-cli, for libnvme 1.16: TLS keys of older ones were not accepted
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
PROGRAMS=(usr/bin/fio usr/bin/keyctl usr/bin/kmod usr/sbin/nvme usr/sbin/tlshd usr/sbin/mke2fs)
MODULES=(ext4 nvme nvme-tcp sd_mod tls uio_pci_generic vfio_iommu_type1 vfio-pci virtio_blk virtio_net virtio_scsi)
MODULE_DIRS=(arch/x86/crypto crypto lib/crypto)

image_dir() {
    local hash
    hash=$(sed 's/^ *#.*//' "$SCRIPTS/guest-image.sh" | sha256sum)
    echo "$CACHE/guest-${hash:0:12}"
}

# in_root COMMAND...: runs it in the Debian that is being made.
in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$ROOTFS" "$@"; }

make_root() {
    local site option
    site=$(need_debian_site)
    debootstrap --variant=minbase --keyring=$KEYRING --include=busybox-static,e2fsprogs,fio,keyutils,kmod,ktls-utils $RELEASE "$ROOTFS" "$site"
    rm -rf "$ROOTFS"/etc/apt/sources.list*
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' $NEWER >"$ROOTFS/etc/apt/preferences.d/newer"
    # Once more, with indices that may be past their time (their signatures are still checked).
    for option in '' check-valid-until=no; do
        for suite in $RELEASE $RELEASE-backports $NEWER; do
            echo "deb [signed-by=$KEYRING $option] $site $suite main"
        done >"$ROOTFS/etc/apt/sources.list"
        ! in_root apt-get -q -oAPT::Update::Error-Mode=any update || break
    done
    in_root apt-get -q -y --no-install-recommends install -t $RELEASE-backports qemu-system-x86
    in_root apt-get -q -y --no-install-recommends install -t $NEWER nvme-cli
    in_root qemu-system-x86_64 --version
}

# The kernel's package is unpacked, not installed: it would make an initrd of its own.
make_kernel() {
    local package
    package=$(in_root apt-cache depends linux-image-amd64/$RELEASE | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    in_root sh -c "cd /tmp && apt-get -q -oAPT::Sandbox::User=root download $package"
    dpkg-deb -x "$ROOTFS"/tmp/linux-image-*.deb "$KERNEL"
    rm "$ROOTFS"/tmp/linux-image-*.deb
    cp "$KERNEL"/boot/vmlinuz-* "$OUT/vmlinuz"
}

# copy_modules VERSION: those that are named and what they need, for the initrd.
copy_modules() {
    local version=$1 from=$KERNEL/usr/lib/modules/$1 to=$INITRD/usr/lib/modules/$1 dir file
    ln -s usr/lib "$KERNEL/lib"
    depmod -b "$KERNEL" "$version"
    {
        modprobe -a -d "$KERNEL" -S "$version" --show-depends "${MODULES[@]}" | awk '$1 == "insmod" { print $2 }'
        for dir in "${MODULE_DIRS[@]}"; do find "$from/kernel/$dir" -name '*.ko*'; done
    } | while read -r file; do
        file=$(realpath "$file")
        install -D -m 644 "$file" "$to/${file#"$(realpath "$from")"/}"
    done
    cp "$from"/modules.{builtin,builtin.modinfo,order} "$to/"
    depmod -b "$INITRD" "$version"
}

copy_programs() {
    local program library
    for program in "${PROGRAMS[@]}"; do
        install -D "$ROOTFS/$program" "$INITRD/$program"
        in_root ldd "/$program" | grep -o '/[^ ]*' | while read -r library; do
            install -D "$ROOTFS/$library" "$INITRD/usr/${library#/usr/}"
        done
    done
    install "$ROOTFS/usr/bin/busybox" "$INITRD/usr/bin/busybox"
    ln -s kmod "$INITRD/usr/bin/modprobe"
}

make_initrd() {
    mkdir -p "$INITRD"/{dev,proc,sys,etc/nvme,usr/{bin,sbin,lib,lib64}}
    ln -s usr/{bin,sbin,lib,lib64} "$INITRD/"
    copy_modules "$(cd "$KERNEL/usr/lib/modules" && echo *)"
    copy_programs
    cp "$ROOTFS/etc/tlshd.conf" "$INITRD/etc/"
    (cd "$INITRD" && find . | cpio -o -H newc --quiet) >"$OUT/initrd"
}

dir=$(image_dir)
if [[ ! -d $dir ]]; then
    bash "$SCRIPTS/packages.sh" cpio debootstrap kmod
    lock
fi
if [[ ! -d $dir ]]; then
    ((EUID == 0)) || die "only root can make a guest image (debootstrap and chroot need it)"
    rm -rf "$CACHE"/building-guest-*
    work=$(mktemp -d "$CACHE/building-guest-XXXXXX")
    SCRATCH+=("$work")
    OUT=$work/out ROOTFS=$work/out/root KERNEL=$work/kernel INITRD=$work/initrd
    mkdir "$OUT" "$KERNEL" "$INITRD"
    step "guest image: a Debian $RELEASE with QEMU" make_root
    step "guest image: the kernel" make_kernel
    step "guest image: the system in memory" make_initrd
    mv -T "$OUT" "$dir"
fi
echo "$dir"
