#!/usr/bin/env bash
# guest-qemu.sh IMAGE ARGUMENT...: runs the QEMU 11.1 of a guest image in its own root directory, with this machine's
# /dev, /proc and /tmp so that sockets have the same path for both. The mounts are private to this process, which QEMU
# replaces, and end with it.

set -Eeuo pipefail

if [[ ${1:-} != --inside ]]; then
    exec unshare --mount --propagation private bash "${BASH_SOURCE[0]}" --inside "$@"
fi
root=$2/root
shift 2
for dir in dev proc sys tmp; do mount --rbind "/$dir" "$root/$dir"; done
exec chroot "$root" qemu-system-x86_64 "$@"
