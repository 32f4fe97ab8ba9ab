# To be sourced: the package under systemd as process 1: start, reload, watchdog, upgrade, stop, removal.

# start_machine NAME ARGUMENT...: a container with systemd that stands for a machine. It has what --privileged would give,
# but for CAP_SYS_RESOURCE, which an engine inside a container may not have to give.
start_machine() {
    local name=opi-spdk-test-$1
    shift
    docker rm -f "$name" &>/dev/null || true
    docker run -d --name "$name" --cap-add ALL --cap-drop SYS_RESOURCE --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --security-opt systempaths=unconfined --device-cgroup-rule 'a *:* rwm' \
        --cgroupns private --tmpfs /run --tmpfs /run/lock -v "$ROOT/target/package:/package:ro" "$@" opi-spdk-machine >/dev/null
    eventually 60 docker exec "$name" systemctl is-system-running --quiet || {
        docker logs "$name"
        docker exec "$name" systemctl --no-pager --failed
        return 1
    }
}

# machine_journals: the newest lines of the service's journal on each machine that runs.
machine_journals() {
    local name
    for name in $(docker ps --format '{{.Names}}' --filter name=opi-spdk-test- --filter ancestor=opi-spdk-machine 2>/dev/null); do
        echo "--- journal of $name"
        docker exec "$name" journalctl --no-pager --lines 40 --unit opi-spdk --unit opi-spdk-setup 2>&1 || true
    done
}

end_machines() {
    local id
    for id in $(docker ps -q --filter ancestor=opi-spdk-machine 2>/dev/null); do
        # Hugepages and limits are the kernel's, and so this machine's too.
        docker exec "$id" opi-spdk setup --undo &>/dev/null || true
    done
    docker ps -aq --filter ancestor=opi-spdk-machine 2>/dev/null | xargs -r docker rm -fv &>/dev/null || true
}

machine_image() {
    step "image of a machine with systemd" \
        docker build --network host -t opi-spdk-machine -f scripts/container/machine.Dockerfile target/package
}

PAGES=/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages

m() { docker exec opi-spdk-test-systemd "$@"; }
# A command that is negated by ! does not end a script, by not it does. No grep -q behind a pipe: it ends before the one that
# writes, whose signal is then the status of both.
in_m() { m env PAGES=$PAGES bash -euo pipefail -c "not() { ! \"\$@\"; }; $1"; }
property() { m systemctl show -P "$1" opi-spdk.service; }

# newer_package: the package as a later version: another program file, unit and default configuration.
newer_package() {
    local tree
    tree=$(mktemp -d "$WORK/newer-XXXXXX")
    SCRATCH+=("$tree")
    dpkg-deb -R target/package/opi-spdk_*.deb "$tree"
    sed -i 's/^Version: .*/Version: 99.0-1/' "$tree/DEBIAN/control"
    echo >>"$tree/usr/bin/opi-spdk"
    echo '# Of the next version.' >>"$tree/etc/opi-spdk/opi-spdk.toml"
    sed -i 's/^Description=.*/Description=Of the next version/' "$tree"/*/lib/systemd/system/opi-spdk.service
    (cd "$tree" && find usr -type f -exec md5sum {} +) >"$tree/DEBIAN/md5sums"
    mkdir -p target/package/newer
    dpkg-deb --root-owner-group -b "$tree" target/package/newer/opi-spdk.deb
}

# The unit and the setup unit as they are shipped, with hugepages; of the configuration only the size of memory and the audit
# log differ. What needs most of the sandbox: a disk for virtual machines, and a volume on a block device.
starts_as_shipped() {
    in_m 'cp -p /etc/opi-spdk/opi-spdk.toml /etc/default/opi-spdk-setup /root/
        sed -i "s/^mem-mib = .*/mem-mib = 512/" /etc/opi-spdk/opi-spdk.toml
        echo "audit-log = \"/var/log/opi-spdk/audit.log\"" >>/etc/opi-spdk/opi-spdk.toml
        free=$(awk "/^HugePages_Free/ {print \$2}" /proc/meminfo)
        echo SETUP_OPTIONS=\"--hugepages node0=$(($(<$PAGES) + (free < 320 ? 320 - free : 0))) --limits\" >/etc/default/opi-spdk-setup
        systemctl start opi-spdk
        opi-spdk health
        not eval "journalctl --no-pager --unit opi-spdk | grep ERROR"
        pid=$(systemctl show -P MainPID opi-spdk)
        # CHOWN, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE, SYS_NICE.
        grep -x "CapBnd:[[:space:]]*000000000080040b" /proc/$pid/status
        not nsenter -t $pid -m sh -c "echo 1 >/proc/sys/fs/aio-max-nr"
        # The program has hugepages mapped.
        grep --max-count 1 /dev/hugepages /proc/$pid/maps
        mknod /dev/loop-control c 10 237 && loop=$(losetup --find) && echo "$loop" >/root/loop
        test -e "$loop" || mknod "$loop" b 7 "${loop#/dev/loop}"
        truncate -s 64M /root/disk && losetup "$loop" /root/disk
        place=(pcie_id.port_id=0 pcie_id.physical_function=0 pcie_id.virtual_function=0)
        opi-spdk create AioVolume device filename="$loop"
        opi-spdk create VirtioBlk disk "${place[@]}" volume_name_ref=device
        opi-spdk create NvmeSubsystem one spec.nqn=nqn.2016-06.io.spdk:one
        opi-spdk create NvmeController one/pcie spec.trtype=NVME_TRANSPORT_TYPE_PCIE "${place[@]/#/spec.}"
        test -S /run/opi-spdk/disk -a -S /run/opi-spdk/one/cntrl
        [[ $(stat -c "%a" /var/log/opi-spdk /var/log/opi-spdk/audit.log | xargs) == "750 600" ]]
        grep VirtioBlk /var/log/opi-spdk/audit.log'
}

# By the shipped rule: the program goes on in the new file, and the chain of both is whole.
rotates_the_audit_log() {
    in_m 'cd /var/log/opi-spdk
        logrotate --force /etc/logrotate.d/opi-spdk
        timeout 15 sh -c "until grep begins audit.log; do sleep 0.1; done"
        opi-spdk delete VirtioBlk disk
        opi-spdk audit verify audit.log.1 audit.log
        grep DeleteVirtioBlk audit.log && not grep DeleteVirtioBlk audit.log.1
        [[ $(stat -c %a audit.log) == 600 && $(systemctl show -P NRestarts opi-spdk) == 0 ]]
        logrotate --force /etc/logrotate.d/opi-spdk
        zcat audit.log.2.gz | opi-spdk audit verify - audit.log.1 audit.log'
}

# Also after a failure of starts_as_shipped.
stops_as_shipped() {
    in_m 'systemctl stop opi-spdk opi-spdk-setup
        test ! -e /root/loop || losetup --detach "$(</root/loop)" || true
        opi-spdk setup --undo && test ! -e /run/opi-spdk-setup.json
        rm -rf /root/disk /var/lib/opi-spdk/*
        cp -p /root/opi-spdk.toml /etc/opi-spdk/ && cp -p /root/opi-spdk-setup /etc/default/'
}

configure_service() {
    in_m 'sed -i "s/^mem-mib = .*/mem-mib = 512\nno-huge = true/" /etc/opi-spdk/opi-spdk.toml
        cat $PAGES >/root/pages
        echo 65536 >/proc/sys/fs/aio-max-nr
        echo SETUP_OPTIONS=\"--hugepages node0=$(($(<$PAGES) + 16)) --limits\" >/etc/default/opi-spdk-setup'
}

starts() {
    in_m 'systemctl start opi-spdk && opi-spdk health && [[ $(systemctl show -P StatusText opi-spdk) == serving ]]
        not grep "EAL: Error" <(journalctl -u opi-spdk)
        opi-spdk create NullVolume kept blocks_count=2048 block_size=512'
}

is_set_up() {
    in_m 'systemctl is-active opi-spdk-setup
        (($(<$PAGES) == $(</root/pages) + 16 && $(</proc/sys/fs/aio-max-nr) == 1 << 20))'
}

is_as_it_was() {
    in_m 'opi-spdk setup --undo && test ! -e /run/opi-spdk-setup.json
        (($(<$PAGES) == $(</root/pages) && $(</proc/sys/fs/aio-max-nr) == 65536))'
}

reloads() {
    local pid
    pid=$(property MainPID)
    in_m 'echo "log-level = \"info,opi_spdk::reload=debug\"" >>/etc/opi-spdk/opi-spdk.toml && systemctl reload opi-spdk' &&
        eventually 10 in_m 'journalctl -u opi-spdk | grep "level of the log is now info,opi_spdk::reload=debug"' &&
        [[ $(property MainPID) == "$pid" ]]
}

refuses_bad_reload() {
    local pid
    pid=$(property MainPID)
    in_m 'cp -p /etc/opi-spdk/opi-spdk.toml /root/good && echo "mem-mib = nonsense" >>/etc/opi-spdk/opi-spdk.toml
        not systemctl reload opi-spdk && opi-spdk health --config /root/good && cp -p /root/good /etc/opi-spdk/opi-spdk.toml' &&
        [[ $(property MainPID) == "$pid" && $(property ActiveState) == active ]]
}

# The shipped drop-ins as they are: TLS files and the key of the state as credentials that systemd gives the unit.
loads_credentials() {
    rm -rf "$WORK/tls"
    (issue 4711) &>/dev/null
    for file in server.crt server.key ca.crt; do
        docker exec -i opi-spdk-test-systemd sh -c "umask 077; cat >/etc/opi-spdk/tls/$file" <"$WORK/tls/$file"
    done
    in_m 'mkdir -p /etc/systemd/system/opi-spdk.service.d
        cp /usr/share/doc/opi-spdk/examples/{tls,state-key}.conf /etc/systemd/system/opi-spdk.service.d/
        install -m 0600 /var/lib/opi-spdk/state-key /etc/opi-spdk/state-key
        rm /var/lib/opi-spdk/state-key
        systemctl daemon-reload && systemctl restart opi-spdk
        # What was sealed with the key is there, and no new key was made.
        cd /etc/opi-spdk/tls
        curl -sSf --cacert ca.crt --cert server.crt --key server.key https://localhost:8082/v1/nullVolumes | grep kept
        test ! -e /var/lib/opi-spdk/state-key
        not curl -sf --cacert ca.crt https://localhost:8082/v1/nullVolumes
        not curl -sf http://localhost:8082/v1/nullVolumes
        pid=$(systemctl show -P MainPID opi-spdk)
        at=$(tr "\\0" "\\n" </proc/$pid/environ | sed -n s/^CREDENTIALS_DIRECTORY=//p)
        [[ $(nsenter -t $pid -m ls $at | sort | xargs) == "ca.crt server.crt server.key state-key" ]]
        # With another key the state is not opened, and the way back is the key.
        cp -p /etc/opi-spdk/state-key /root/state-key && head -c 32 /dev/urandom >/etc/opi-spdk/state-key
        not timeout 20 systemctl restart opi-spdk
        systemctl stop opi-spdk && journalctl -u opi-spdk | grep -i "state" | tail -n 3
        cp -p /root/state-key /etc/opi-spdk/state-key
        systemctl reset-failed opi-spdk && systemctl restart opi-spdk'
}

# Without them the key is beside the state again.
drops_credentials() {
    in_m 'rm -r /etc/systemd/system/opi-spdk.service.d && mv /etc/opi-spdk/state-key /var/lib/opi-spdk/state-key
        systemctl daemon-reload && systemctl restart opi-spdk && opi-spdk get NullVolume kept'
}

# A process that is stopped feeds no watchdog: it is ended and started anew, and has what was made before.
watchdog_restarts() {
    local pid
    pid=$(property MainPID)
    in_m "kill -STOP $pid" &&
        eventually 90 eval "[[ \$(property MainPID) != $pid && \$(property ActiveState) == active ]]" &&
        in_m 'journalctl -u opi-spdk | grep -i watchdog; opi-spdk health && opi-spdk get NullVolume kept' &&
        [[ $(property NRestarts) == 1 ]]
}

# An upgrade leaves the process as it is and says so; what the operator has changed stays, also when tmpfiles are made
# again, as at a start of the machine.
upgrades() {
    local pid said
    pid=$(property MainPID)
    in_m 'chmod 0750 /etc/opi-spdk/tls && chgrp opi-spdk /etc/opi-spdk/tls'
    said=$(m dpkg -i --force-confdef --force-confold /package/newer/opi-spdk.deb 2>&1) && echo "$said" &&
        [[ $said == *"systemctl restart opi-spdk"* ]] &&
        in_m 'grep "reload=debug" /etc/opi-spdk/opi-spdk.toml && grep "next version" /etc/opi-spdk/opi-spdk.toml.dpkg-dist
            [[ $(dpkg-query -W -f "\${Version}" opi-spdk) == 99.0-1 ]]
            systemd-tmpfiles --create opi-spdk.conf && [[ $(stat -c "%a %G" /etc/opi-spdk/tls) == "750 opi-spdk" ]]' &&
        [[ $(property MainPID) == "$pid" && $(property ActiveState) == active ]] &&
        m opi-spdk health && in_m "readlink /proc/$pid/exe | grep deleted; opi-spdk doctor --config /etc/opi-spdk/opi-spdk.toml | grep 'systemctl restart opi-spdk'"
}

has_new_program() {
    in_m 'systemctl restart opi-spdk && [[ $(readlink /proc/$(systemctl show -P MainPID opi-spdk)/exe) == /usr/bin/opi-spdk ]]
        opi-spdk get NullVolume kept
        [[ $(systemctl show -P Description opi-spdk) == "Of the next version" ]]'
}

stops() {
    local began=$SECONDS
    m systemctl stop opi-spdk && ((SECONDS - began < 10)) &&
        [[ "$(property Result) $(property ExecMainStatus) $(property ActiveState)" == "success 0 inactive" ]]
}

# A service that runs ends with its package, and setup is undone; configuration and state stay.
is_removed() {
    in_m 'systemctl restart opi-spdk-setup && systemctl start opi-spdk && test -s /run/opi-spdk-setup.json && dpkg -r opi-spdk
        test ! -e /run/opi-spdk-setup.json
        (($(<$PAGES) == $(</root/pages) && $(</proc/sys/fs/aio-max-nr) == 65536))
        not pgrep -x opi-spdk && not systemctl is-active opi-spdk && not command -v opi-spdk
        journalctl -u opi-spdk | grep "opi-spdk.service: Deactivated successfully"
        test -f /etc/opi-spdk/opi-spdk.toml && test -f /var/lib/opi-spdk/identity'
}

is_purged() {
    in_m 'dpkg -P opi-spdk | tee /root/said && grep -q "/var/lib/opi-spdk is kept" /root/said
        test ! -e /etc/opi-spdk && test -f /var/lib/opi-spdk/identity && not eval "systemctl list-unit-files | grep opi-spdk"
        dpkg -i /package/newer/opi-spdk.deb && systemctl cat opi-spdk >/dev/null
        OPI_SPDK_PURGE_STATE=yes dpkg -P opi-spdk && test ! -e /var/lib/opi-spdk'
}

systemd_tests() {
    machine_image
    newer_package >/dev/null
    check "a machine with systemd runs" start_machine systemd --network none
    check "the package is installed, and starts nothing" in_m 'dpkg -i /package/opi-spdk_*.deb
        [[ $(systemctl is-enabled opi-spdk) == disabled ]] && not systemctl is-active opi-spdk'
    check "the service starts as it is shipped, with hugepages, a disk for virtual machines and a block device" starts_as_shipped
    check "logrotate rotates the audit log, whose chain stays whole" rotates_the_audit_log
    check "it stops, and setup is undone" stops_as_shipped
    check "the service is configured" configure_service
    check "systemctl start returns when the API serves" starts
    check "hugepages and limits were set up before it" is_set_up
    check "systemctl reload takes over the level of the log" reloads
    check "systemctl reload refuses a configuration that is not good" refuses_bad_reload
    check "the watchdog restarts a process that is stopped" watchdog_restarts
    check "the drop-ins of TLS and of the state's key are loaded as credentials" loads_credentials
    check "without the drop-ins the service starts with the key beside the state" drops_credentials
    check "an upgrade keeps the configuration, and tells to restart the service" upgrades
    check "a restart brings the new program" has_new_program
    check "systemctl stop ends it with 0 in time" stops
    check "setup is undone" is_as_it_was
    check "a package that is removed ends its service, undoes setup, and leaves configuration and state" is_removed
    check "a purge leaves the state unless it is asked for" is_purged
    m journalctl --no-pager >"$WORK/systemd.log" 2>&1 || true
    end_machines
}
