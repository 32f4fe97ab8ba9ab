#!/usr/bin/env bash
# Reserves hugepages for SPDK: at least HUGEPAGES of 2 MiB (default 1024), mounted on /dev/hugepages. Never reduces
# their number. Exit status 0 if SPDK can use them, otherwise 1 with the reason.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

WANTED=${HUGEPAGES:-1024}
MOUNT=/dev/hugepages
POOL=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

without() {
    say "no hugepages: $*. vhost-user and vfio-user (PCIe) exports need them; the rest works without."
    exit 1
}

[[ $WANTED =~ ^[0-9]+$ ]] || die "HUGEPAGES='$WANTED' must be a number of 2 MiB pages"
[[ -r $POOL ]] || without "the kernel offers none of 2 MiB"

(($(<$POOL) >= WANTED)) || { echo "$WANTED" >$POOL; } 2>/dev/null || say "only root may reserve hugepages"
total=$(<$POOL)
((total > 0 && total * 2 >= WANTED)) || without "there are $total of $WANTED pages of 2 MiB"
((total >= WANTED)) || say "only $total of $WANTED hugepages: memory is short or fragmented"

if [[ $(findmnt -n -o FSTYPE --target $MOUNT 2>/dev/null) != hugetlbfs ]]; then
    mkdir -p $MOUNT 2>/dev/null && mount -t hugetlbfs -o pagesize=2M nodev $MOUNT 2>/dev/null ||
        without "hugetlbfs cannot be mounted on $MOUNT"
fi
[[ -w $MOUNT ]] || without "$MOUNT is not writable for this user"
