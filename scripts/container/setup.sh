# Sourced. `opi-spdk setup` on this machine's kernel, killed at each of its steps. (Device binding is tested by
# scripts/test.sh --guest.)

# Runs in the container. Each round kills setup with SIGKILL when it enters a system call on a file, then continues it
# or rolls it back.
CUT_ROUNDS='
pages=$PAGES
aio=/proc/sys/fs/aio-max-nr
journal=/run/opi-spdk-setup
before=$(<$pages)
wanted=$((before + 16))
begin() {
    umount /dev/hugepages 2>/dev/null || true
    rmdir /dev/hugepages 2>/dev/null || true
    echo 65536 >$aio
}
is_as_it_was() {
    [[ $(<$pages) == $before && $(<$aio) == 65536 && ! -e /dev/hugepages && ! -e $journal.json ]] || {
        echo "not as it was: $(<$pages) pages, aio-max-nr $(<$aio)"; ls -d /dev/hugepages $journal.json; return 1; }
}
is_done() {
    [[ $(<$pages) == $wanted && $(<$aio) == 1048576 ]] && mountpoint -q /dev/hugepages ||
        { echo "not done: $(<$pages) pages, aio-max-nr $(<$aio)"; return 1; }
}
setup() { opi-spdk setup --hugepages node0=$wanted --limits; }
# cut SYSCALL FILE COUNT ARGUMENT...: kills setup at the COUNTth such call on the file.
cut() {
    local call=$1 file=$2 count=$3 status=0
    shift 3
    strace -f -qq -o /root/cut -P "$file" -e trace="$call" -e inject="$call:signal=KILL:when=$count" opi-spdk setup "$@" || status=$?
    [[ $status == 137 ]] || { echo "not cut at $call $file $count: status $status"; return 1; }
}
points=("openat $journal.lock 1" "write $pages 1" "mkdir /dev/hugepages 1" "write $aio 1")
for step in 1 2 3 4; do points+=("openat $journal.new $step" "fsync $journal.new $step" "/^rename $journal.new $step"); done
for point in "${points[@]}"; do
    for next in again undo; do
        echo "cut at $point, then $next"
        begin
        cut $point --hugepages node0=$wanted --limits
        if [[ $next == again ]]; then
            setup
            is_done
        fi
        opi-spdk setup --undo
        is_as_it_was
    done
done
points=("openat $journal.lock 1" "write $pages 1" "rmdir /dev/hugepages 1" "write $aio 1" "/^unlink $journal.json 1")
for step in 1 2 3 4; do points+=("openat $journal.new $step" "/^rename $journal.new $step"); done
for point in "${points[@]}"; do
    echo "undo cut at $point, then undo"
    begin
    setup
    cut $point --undo
    opi-spdk setup --undo
    is_as_it_was
done
'

without_root() {
    docker exec --user 65534 opi-spdk-test-setup bash -c '
        out=$(opi-spdk setup --hugepages 1000000 --limits 2>&1) && exit 1; echo "$out"
        out=$(opi-spdk setup --limits 2>&1) && exit 1; echo "$out"
        [[ $out == *"setup needs root"* ]] && opi-spdk setup --limits --dry-run'
}

# The disk that this machine runs from, as a container sees it: with the privileges that docs/operations.md has for setup, and
# with less. Only a dry run: it makes the same checks.
spares_disk_of_machine() {
    local less out
    for less in no yes; do
        local run=(docker run --rm --network none --cap-drop ALL --cap-add SYS_ADMIN --cap-add SYS_MODULE --cap-add SYS_PTRACE
            --security-opt apparmor=unconfined --security-opt systempaths=unconfined --volume /sys:/sys --volume /run:/run --volume /dev:/dev)
        [[ $less == yes ]] || run+=(--pid host --device-cgroup-rule 'b *:* r' --device-cgroup-rule 'c *:* rw')
        if out=$("${run[@]}" opi-spdk setup --dry-run --bind "$DISK" 2>&1); then return 1; fi
        echo "$out"
        [[ $out == *"$DISK is left alone: "*" is mounted at /"* ]]
    done
}

# The PCI address of the disk with the root of this machine, if it is on one.
disk_of_machine() {
    local device path
    device=$(findmnt -n -o SOURCE /)
    path=$(readlink -f "/sys/class/block/${device##*/}") || return 0
    grep -oE '[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]' <<<"$path" | tail -n 1 || true
}

setup_tests() {
    DISK=$(disk_of_machine)
    if [[ -n $DISK ]]; then
        check "setup: in a container it leaves the disk alone that the machine runs from" spares_disk_of_machine
    else
        skip "setup: in a container it leaves the disk alone that the machine runs from" "it is on no PCI device"
    fi
    machine_image
    check "setup: a machine" start_machine setup --network none
    check "setup: the package is installed" docker exec opi-spdk-test-setup bash -c 'dpkg -i /package/opi-spdk_*.deb && systemctl stop dev-hugepages.mount'
    check "setup: interrupted at each step it continues, and can be undone" docker exec --env PAGES="$PAGES" opi-spdk-test-setup bash -euo pipefail -c "$CUT_ROUNDS"
    check "setup: another user than root is refused, and --dry-run prints the steps" without_root
    docker rm -fv opi-spdk-test-setup >/dev/null
}
