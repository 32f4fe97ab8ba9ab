# To be sourced: the role of deploy/ansible, on machines with systemd: with the package, and with the image.

# play NAME EXPECTED ARGUMENT...: the role on the machine NAME; what it says of changes has to fit EXPECTED.
play() {
    local machine=opi-spdk-test-$1 expected=$2
    shift 2
    ANSIBLE_CONFIG=$ROOT/deploy/ansible/ansible.cfg ANSIBLE_ROLES_PATH=$ROOT/deploy/ansible/roles ANSIBLE_NOCOLOR=1 \
        ansible-playbook -c community.docker.docker -i "$machine," deploy/ansible/site.yml -e ansible_become=false \
        -e @"$WORK/play.json" "$@" | tee "$WORK/play.log"
    grep -Eq "$expected.*failed=0" "$WORK/play.log"
}

# settings [NAME=JSON...]: what the role is given: TLS, a volume, no hugepages for the program itself.
settings() {
    python3 - "$WORK/tls" "$@" >"$WORK/play.json" <<'EOF'
import json, pathlib, sys

tls = pathlib.Path(sys.argv[1])
all = {
    "opi_spdk_settings": {"cores": "0", "mem-mib": 512, "no-huge": True},
    "opi_spdk_volumes": [{"kind": "malloc", "name": "Malloc0", "size-mib": 16}],
    "opi_spdk_setup_options": "--limits",
    "opi_spdk_tls_certificate": (tls / "server.crt").read_text(),
    "opi_spdk_tls_key": (tls / "server.key").read_text(),
    "opi_spdk_tls_client_ca": (tls / "ca.crt").read_text(),
}
for setting in sys.argv[2:]:
    name, value = setting.split("=", 1)
    all[name] = json.loads(value)
json.dump(all, sys.stdout)
EOF
}

# issue SERIAL: a certificate of localhost, from an authority that is made once.
issue() {
    mkdir -p "$WORK/tls"
    cd "$WORK/tls"
    [[ -f ca.crt ]] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=authority \
        -keyout ca.key -out ca.crt
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server.key -out server.csr
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial "$1" -days 365 -out server.crt \
        -extfile <(echo 'subjectAltName = DNS:localhost, IP:127.0.0.1')
}

on() { docker exec "opi-spdk-test-$1" bash -euo pipefail -c "$2"; }
main_pid() { on "$1" 'systemctl show -P MainPID opi-spdk'; }
started_at() { on "$1" 'systemctl show -P ExecMainStartTimestampMonotonic opi-spdk'; }

# serves NAME: the API answers to who has a certificate, and to nobody else; the volume is there.
serves() {
    on "$1" '[[ $(systemctl is-active opi-spdk) == active && $(systemctl is-enabled opi-spdk) == enabled ]]
        cd /etc/opi-spdk/tls
        curl -sSf --cacert ca.crt --cert server.crt --key server.key https://localhost:8082/v1/mallocVolumes | grep Malloc0
        if curl -sf --cacert ca.crt https://localhost:8082/v1/mallocVolumes; then exit 1; fi'
}

# What the role writes, as one text.
written() { on "$1" 'systemctl cat opi-spdk opi-spdk-setup; cat /etc/default/opi-spdk-setup /etc/opi-spdk/opi-spdk.toml'; }

# A run that fails at its checks leaves all that is written, so that a later restart is one with the old settings.
is_refused() {
    local machine=$1 before
    shift
    before=$(written "$machine")
    if play "$machine" 'changed=' "$@"; then return 1; fi
    grep mem-mib "$WORK/play.log"
    diff <(echo "$before") <(written "$machine")
    serves "$machine"
}

misses_device() {
    local machine=$1 before
    shift
    before=$(written "$machine")
    if play "$machine" 'changed=' "$@" -e '{"opi_spdk_devices": ["/dev/disk/by-id/nvme-none"]}'; then return 1; fi
    grep 'there is no device /dev/disk/by-id/nvme-none' "$WORK/play.log"
    diff <(echo "$before") <(written "$machine")
    serves "$machine"
}

# played NAME ARGUMENT...: what holds for both ways to install it.
played() {
    local name=$1 began pages
    shift
    rm -rf "$WORK/tls"
    (issue 4711) &>/dev/null
    settings
    check "$name: the role sets a machine up" play "$name" 'changed=[1-9]' "$@"
    check "$name: the API serves with TLS" serves "$name"
    check "$name: a second time the role changes nothing" play "$name" 'changed=0' "$@"
    began=$(started_at "$name")
    pages=$(($(<$PAGES) + 16))
    local options="opi_spdk_setup_options=\"--hugepages node0=$pages --limits\""
    settings "$options"
    check "$name: other options of setup run it again" play "$name" 'changed=[1-9]' "$@"
    check "$name: there are more hugepages, and the program was left alone" eval \
        "on $name '((\$(<$PAGES) == $pages))' && [[ \$(started_at $name) == $began ]]"
    (issue 4712) &>/dev/null
    settings "$options"
    check "$name: another certificate is written" play "$name" 'changed=[1-9]' "$@"
    check "$name: it is taken over by a reload" eval "eventually 20 on $name \
        'openssl s_client -connect localhost:8082 </dev/null 2>/dev/null | openssl x509 -noout -serial | grep -q 1268' \
        && [[ \$(started_at $name) == $began ]]"
    settings "$options" \
        opi_spdk_settings='{"cores": "0", "mem-mib": 640, "no-huge": true}'
    check "$name: another setting is written" play "$name" 'changed=[1-9]' "$@"
    check "$name: it is taken over by a restart" eval "serves $name && [[ \$(started_at $name) != $began ]]"
    settings opi_spdk_settings='{"mem-mib": "nonsense"}'
    check "$name: an invalid configuration is not installed" is_refused "$name" "$@"
    settings
    check "$name: a missing device is named, and nothing is set up" misses_device "$name" "$@"
    check "$name: setup is undone" on "$name" "${UNDO:-opi-spdk setup --undo} && systemctl stop opi-spdk"
}

# of_disk ARGUMENT...: what the API in the container says of the volume on the block device.
of_disk() {
    on container "cd /etc/opi-spdk/tls; curl -sSf --cacert ca.crt --cert server.crt --key server.key $*"
}

# A container that was given a block device by its unit, not by the role's settings, as an earlier role gave all: with a
# volume on it that the API made.
has_device() {
    on container "mknod $1 b 7 ${1#/dev/loop}
        sed -i 's|--cap-drop ALL|--device $1 --cap-drop ALL|' /etc/systemd/system/opi-spdk.service
        systemctl daemon-reload && systemctl restart opi-spdk"
    of_disk -H "'Content-Type: application/json'" -d "'{\"filename\": \"$1\", \"block_size\": 512}'" "'https://localhost:8082/v1/aioVolumes?aio_volume_id=disk'"
}

# It is not taken away unasked: the role names it, and leaves all as it is.
keeps_device() {
    local device=$1 began
    shift
    began=$(started_at container)
    if play container 'changed=' "$@"; then return 1; fi
    grep -e "has $device open" "$WORK/play.log" && grep -e "--device $device" "$WORK/play.log"
    [[ $(started_at container) == "$began" ]]
    on container "grep -e '--device $device --cap-drop' /etc/systemd/system/opi-spdk.service"
    play container 'changed=[1-9]' "$@" -e "{opi_spdk_container_options: '--device $device'}"
    on container "not() { ! \"\$@\"; }; not grep -e '--device $device --cap-drop' /etc/systemd/system/opi-spdk.service"
    of_disk https://localhost:8082/v1/aioVolumes/disk
    play container 'changed=0' "$@" -e "{opi_spdk_container_options: '--device $device'}"
}

# One of the settings is given without being named.
is_given_device() {
    local device=$1
    shift
    of_disk -X DELETE https://localhost:8082/v1/aioVolumes/disk
    settings opi_spdk_volumes="[{\"kind\": \"aio\", \"name\": \"Disk0\", \"filename\": \"$device\"}]"
    play container 'changed=[1-9]' "$@"
    of_disk https://localhost:8082/v1/aioVolumes/Disk0
}

# The same one under the name that stays.
is_given_by_id() {
    local device=$1 id=/dev/disk/by-id/nvme-eui.0011223344556677
    shift
    on container "mkdir -p ${id%/*} && ln -s $device $id"
    settings opi_spdk_volumes="[{\"kind\": \"aio\", \"name\": \"Disk0\", \"filename\": \"$id\"}]"
    play container 'changed=[1-9]' "$@"
    of_disk https://localhost:8082/v1/aioVolumes/Disk0 | grep "$id"
    play container 'changed=0' "$@"
}

devices() {
    local device
    truncate --size=16M "$WORK/disk"
    SCRATCH+=("$WORK/disk")
    device=$(losetup --find --show "$WORK/disk")
    settings
    check "container: one of an earlier role has a block device" has_device "$device"
    check "container: the role does not take it away, and has it kept by name" keeps_device "$device" "$@"
    check "container: a block device of the settings is given" is_given_device "$device" "$@"
    check "container: a block device is given by its name of /dev/disk/by-id" is_given_by_id "$device" "$@"
    on container 'systemctl stop opi-spdk'
    losetup --detach "$device"
}

ansible_tests() {
    machine_image
    local image=$WORK/image.tar
    check "package: a machine" start_machine package
    played package -e opi_spdk_package="$(echo "$ROOT"/target/package/*.deb)"
    docker rm -fv opi-spdk-test-package >/dev/null

    docker save -o "$image" opi-spdk
    SCRATCH+=("$image")
    # An engine's data cannot be in a layer of another engine's.
    check "container: a machine" start_machine container -v /var/lib/docker
    local container=(-e opi_spdk_install=container -e opi_spdk_open_files="$(ulimit -Hn)" -e opi_spdk_image_archive="$image")
    UNDO='docker run --rm --network none --pid host --cap-add SYS_ADMIN --security-opt apparmor=unconfined \
        --security-opt systempaths=unconfined --volume /sys:/sys --volume /run:/run --volume /dev:/dev opi-spdk setup --undo' \
        played container "${container[@]}"
    devices "${container[@]}"
    docker rm -fv opi-spdk-test-container >/dev/null

    # As for the image of a machine: nothing runs in it.
    docker run -d --name opi-spdk-test-offline --network host opi-spdk-machine sleep 1800 >/dev/null
    settings opi_spdk_devices='["0000:01:00.0", "/dev/disk/by-id/nvme-eui.1"]'
    check "offline: the role changes a machine that does not run" play offline 'changed=[1-9]' -e opi_spdk_start=false \
        -e opi_spdk_package="$(echo "$ROOT"/target/package/*.deb)"
    check "offline: devices are given to setup by address and by name" docker exec opi-spdk-test-offline \
        grep -Fx 'SETUP_OPTIONS="--limits --bind 0000:01:00.0,/dev/disk/by-id/nvme-eui.1"' /etc/default/opi-spdk-setup
    check "offline: what it wrote is good" docker exec opi-spdk-test-offline opi-spdk config check /etc/opi-spdk/opi-spdk.toml
    docker rm -fv opi-spdk-test-offline >/dev/null
}
