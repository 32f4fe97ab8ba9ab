#!/usr/bin/env bash
# container-test.sh [--image] [PROGRAM]: the package, the image and the compose file, tried on a real engine: installs, upgrades
# and removes the package in a container, brings the lab up, asks it what clients of OPI ask, and takes it down. PROGRAM
# is what goes into the package (default: a debug build). The image is made of the package, in seconds; with --image by
# the Dockerfile, which builds SPDK and a release of its own: half an hour on two cores. Needs root. The engine that DOCKER_HOST names is used, or
# one of its own is started, with its data under target/container, and ended.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/apt-source.sh"

cd "$ROOT"
WORK=$ROOT/target/container
# Without what comes from registries.
export COMPOSE_PROJECT_NAME=opi-spdk-test COMPOSE_PROFILES=lean
COMPOSE=(docker-compose -f deploy/compose/compose.yaml)
DOCKERD= PASSED=0 FAILED=0

# check WHAT COMMAND...: one test.
check() {
    local what=$1
    shift
    if "$@" >"$WORK/check.log" 2>&1; then
        PASSED=$((PASSED + 1))
        echo "ok      $what"
    else
        FAILED=$((FAILED + 1))
        echo "FAILED  $what"
        sed 's/^/    | /' "$WORK/check.log"
    fi
}

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

finish() {
    local status=$?
    "${COMPOSE[@]}" logs --no-color >"$WORK/compose.log" 2>&1 || true
    "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
    if [[ -n $DOCKERD ]]; then
        kill "$DOCKERD" 2>/dev/null || true
        wait "$DOCKERD" 2>/dev/null || true
    fi
    (exit "$status")
    on_exit
}

start_engine() {
    mkdir -p "$WORK"
    trap finish EXIT
    [[ -z ${DOCKER_HOST:-} ]] || return 0
    export DOCKER_HOST=unix://$WORK/docker.sock
    dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/pid" -H "$DOCKER_HOST" &>"$WORK/dockerd.log" &
    DOCKERD=$!
    eventually 60 docker info &>/dev/null || die "the engine does not start; its log is $WORK/dockerd.log"
}

# debian DIR PACKAGES: a small Debian, without what debootstrap leaves mounted in it.
debian() {
    debootstrap --variant=minbase --include="$2" bookworm "$1" "$(need_debian_site)"
    ! mountpoint -q "$1/proc" || umount "$1/proc"
}

base_image() {
    local root
    docker image inspect debian:bookworm-slim &>/dev/null && return
    root=$(mktemp -d "$WORK/base-XXXXXX")
    SCRATCH+=("$root")
    step "base image" debian "$root" ca-certificates
    tar -C "$root" --one-file-system -c . | docker import - debian:bookworm-slim >/dev/null
}

# Rust's image of that name, of Debian and the toolchain that is used here.
rust_image() {
    local name root
    name=$(awk '/^FROM rust:/ { print $2 }' Dockerfile)
    docker image inspect "$name" &>/dev/null && return
    root=$(mktemp -d "$WORK/rust-XXXXXX")
    SCRATCH+=("$root")
    step "base image with Rust" debian "$root" build-essential,ca-certificates
    mkdir -p "$root/usr/local"
    cp -a "$(rustc --print sysroot)" "$root/usr/local/rust"
    # What this machine trusts: behind a proxy that is more than Debian does.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/usr/local/share/authorities.pem"
    tar -C "$root" --one-file-system -c . | docker import -c 'ENV CARGO_HTTP_CAINFO=/usr/local/share/authorities.pem' -c 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$name" >/dev/null
}

# in_base SCRIPT: runs it in a fresh Debian that sees the package.
in_base() {
    docker run --rm --network host -v "$ROOT/target/package:/package:ro" -e DEBIAN_FRONTEND=noninteractive debian:bookworm-slim sh -euxc "$1"
}

package_tests() {
    check "the package is lintian clean" lintian --allow-root --fail-on error,warning target/package/opi-spdk_*.deb
    check "the package is installed, upgraded, removed and purged, and leaves the state" in_base '
        apt-get -q update && apt-get -q install -y --no-install-recommends /package/opi-spdk_*.deb
        opi-spdk --version && opi-spdk config check /etc/opi-spdk/opi-spdk.toml
        grep -q opi-spdk /usr/share/opi-spdk/sbom.json /usr/lib/sysusers.d/opi-spdk.conf && getent group opi-spdk
        echo "# of the operator" >>/etc/opi-spdk/opi-spdk.toml
        mkdir -p /var/lib/opi-spdk && echo kept >/var/lib/opi-spdk/identity
        apt-get -q install -y --reinstall --no-install-recommends /package/opi-spdk_*.deb
        grep "of the operator" /etc/opi-spdk/opi-spdk.toml
        apt-get -q remove -y opi-spdk && test -f /etc/opi-spdk/opi-spdk.toml && ! command -v opi-spdk
        apt-get -q purge -y opi-spdk && test ! -e /etc/opi-spdk && test -f /var/lib/opi-spdk/identity
        apt-get -q install -y --no-install-recommends /package/opi-spdk_*.deb
        OPI_SPDK_PURGE_STATE=yes apt-get -q purge -y opi-spdk && test ! -e /var/lib/opi-spdk'
}

api() { curl --silent --show-error --fail --max-time 10 "$@"; }
healthy() { [[ $(docker inspect -f '{{.State.Health.Status}}' "$("${COMPOSE[@]}" ps -q "$1")") == healthy ]]; }
exported() { [[ $(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$("${COMPOSE[@]}" ps -aq spdk-exports)") == "exited 0" ]]; }

# path PORT PSK: the target attaches the peer, as clients' tests do, and lets it go.
attach() {
    local name=peer$1 psk
    psk=$(printf %s "${2:-}" | base64 -w 0)
    api -X POST "http://127.0.0.1:8082/v1/nvmeRemoteControllers?nvme_remote_controller_id=$name" \
        -H 'Content-Type: application/json' -d "{\"multipath\": \"NVME_MULTIPATH_DISABLE\", \"tcp\": {\"psk\": \"$psk\"}}"
    api -X POST "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmePaths?nvme_path_id=path" -H 'Content-Type: application/json' \
        -d "{\"trtype\": \"NVME_TRANSPORT_TYPE_TCP\", \"traddr\": \"$SPDK\", \"fabrics\": {\"trsvcid\": \"$1\", \"subnqn\": \"nqn.2016-06.io.spdk:cnode1\",
            \"adrfam\": \"NVME_ADDRESS_FAMILY_IPV4\", \"hostnqn\": \"nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c\"}}"
    api "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmeRemoteNamespaces" | grep -q uuid
    api -X DELETE "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmePaths/path"
    api -X DELETE "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name"
}

lab_tests() {
    check "the lab comes up" "${COMPOSE[@]}" up -d
    check "the target is healthy by its own check" eventually 120 healthy opi-spdk-server
    check "the peers have exported their volumes" eventually 120 exported
    check "the inventory answers as in OPI's scripts" api http://127.0.0.1:8082/v1/inventory/1/inventory/2
    check "JSON-RPC at 9009 knows spdkuser" api -u spdkuser:spdkpass -H 'Content-Type: application/json' http://127.0.0.1:9009/ \
        -d '{"jsonrpc": "2.0", "id": 1, "method": "bdev_get_bdevs"}'
    check "JSON-RPC at 9009 knows nobody else" eval '! api -u spdkuser:other -d "{}" http://127.0.0.1:9009/'
    SPDK=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$("${COMPOSE[@]}" ps -q spdk)")
    check "the peer at 4444 is attached" attach 4444
    check "the peer at 5555 is attached with TLS" attach 5555 NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:
    if command -v grpcurl >/dev/null; then
        check "grpcurl lists the services" eval 'grpcurl -plaintext 127.0.0.1:50051 list | grep opi_api.storage.v1.FrontendNvmeService'
    else
        echo "skipped grpcurl lists the services: it is not installed"
    fi
    local target began=$SECONDS
    target=$("${COMPOSE[@]}" ps -q opi-spdk-server)
    check "as process 1 it stops on SIGTERM" docker stop --time 30 "$target"
    check "its status is 0, within 10 s" eval "((SECONDS - began < 10)) && [[ \$(docker inspect -f '{{.State.ExitCode}}' $target) == 0 ]]"
}

# play MACHINE EXPECTED: the role, on a container that stands for a machine without a service manager.
play() {
    ANSIBLE_CONFIG=$ROOT/deploy/ansible/ansible.cfg ANSIBLE_ROLES_PATH=$ROOT/deploy/ansible/roles \
        ansible-playbook -c community.docker.docker -i "$1," deploy/ansible/site.yml -e opi_spdk_start=false -e ansible_become=false \
        -e opi_spdk_package="$(echo "$ROOT"/target/package/*.deb)" \
        -e '{"opi_spdk_volumes": [{"kind": "malloc", "name": "Malloc0", "size-mib": 64}]}' | tee "$WORK/play.log" &&
        grep -Eq "$2.*failed=0" "$WORK/play.log"
}

ansible_tests() {
    local machine
    machine=$(docker run -d --rm --network host debian:bookworm-slim sleep 1800)
    docker exec "$machine" sh -c 'apt-get -q update && apt-get -q install -y --no-install-recommends python3 python3-apt' >/dev/null
    check "the role sets a machine up" play "$machine" 'changed=[1-9]'
    check "a second time it changes nothing" play "$machine" 'changed=0'
    check "what it wrote is good" docker exec "$machine" opi-spdk config check /etc/opi-spdk/opi-spdk.toml
    docker kill "$machine" >/dev/null
}

# With hugepages and one capability: a disk for virtual machines of each kind.
disks() {
    local id status=0
    id=$("$@" --cap-add SYS_NICE -d --read-only --tmpfs /run --tmpfs /tmp --tmpfs /var/tmp -v /dev/hugepages:/dev/hugepages opi-spdk --mem-mib 640)
    client() { docker exec "$id" opi-spdk "$@"; }
    local place=(pcie_id.port_id=0 pcie_id.physical_function=0 pcie_id.virtual_function=0)
    eventually 60 client health &&
        client create MallocVolume memory blocks_count=2048 block_size=512 &&
        client create VirtioBlk disk "${place[@]}" volume_name_ref=memory &&
        client create NvmeSubsystem one spec.nqn=nqn.2016-06.io.spdk:one &&
        client create NvmeController one/pcie spec.trtype=NVME_TRANSPORT_TYPE_PCIE "${place[@]/#/spec.}" &&
        docker exec "$id" test -S /run/opi-spdk/disk -a -S /run/opi-spdk/one/cntrl || status=1
    docker logs "$id"
    docker stop "$id"
    return "$status"
}

# Least privileges: for NVMe/TCP with --no-huge none at all, on a read-only root, as nobody.
privilege_tests() {
    local run=(docker run --rm --cap-drop ALL --security-opt no-new-privileges)
    if (($(awk '/^HugePages_Free/ {print $2}' /proc/meminfo) >= 400)); then
        check "with hugepages one capability is enough, sockets for virtual machines too" disks "${run[@]}"
    else
        echo "skipped with hugepages one capability is enough: 400 of 2 MiB must be free"
    fi
    check "without a capability, as another user, on a read-only root" eval "
        id=\$(${run[*]} -d --user 65534:65534 --read-only --tmpfs /run/opi-spdk:mode=0700,uid=65534 --tmpfs /tmp --tmpfs /var/tmp:mode=1777 \
            --tmpfs /var/lib/opi-spdk:mode=0700,uid=65534 opi-spdk --no-huge --mem-mib 512 --ctrlr-dir /run/opi-spdk)
        eventually 60 eval '[[ \$(docker inspect -f {{.State.Health.Status}} '\$id') == healthy ]]'
        status=\$?; docker logs \$id; docker stop \$id; ((status == 0))"
    check "no hugepages in the container are one clear line" eval "
        ! out=\$(${run[*]} --entrypoint opi-spdk opi-spdk --mem-mib 900000 2>&1) && echo \"\$out\" && [[ \$out == *--mem-mib* && \$out != *$'\n'*$'\n'* ]]"
    check "a limit of memory is told before the start" eval "
        ! out=\$(${run[*]} --memory 256m opi-spdk --no-huge --mem-mib 512 2>&1) && echo \"\$out\" && [[ \$out == *'the control group leaves'* ]]"
}

call bash "$SCRIPTS/packages.sh" docker.io docker-compose debootstrap lintian curl ansible
image=
[[ ${1:-} != --image ]] || { image=1 && shift; }
start_engine
base_image
if [[ -z ${1:-} ]]; then
    call bash "$SCRIPTS/setup.sh"
    load_env
    stage "building opi-spdk" cargo build --locked
    set -- "$ROOT/target/debug/opi-spdk"
fi
stage "package" bash "$SCRIPTS/package.sh" "$1"
if [[ -n $image ]]; then
    rust_image
    stage "image of the Dockerfile" docker build --network host -t opi-spdk .
    docker image inspect -f 'its size: {{.Size}} bytes' opi-spdk
else
    step "image of the package" docker build --network host -t opi-spdk -f deploy/package.Dockerfile target/package
fi
step "image that exports" docker build --network host -t opi-spdk-exports -f deploy/compose/exports.Dockerfile deploy/compose
if command -v kustomize kubectl >/dev/null; then
    check "Kubernetes' schema has nothing against the manifests" bash "$SCRIPTS/kubernetes.sh"
else
    echo "skipped Kubernetes' schema has nothing against the manifests: there is no kustomize"
fi
package_tests
ansible_tests
privilege_tests
lab_tests
echo "$PASSED passed, $FAILED failed"
((FAILED == 0))
