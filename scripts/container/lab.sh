# Sourced. The lab of deploy/compose, with the calls of OPI clients.

# Without the parts that come from registries.
export COMPOSE_PROJECT_NAME=opi-spdk-test COMPOSE_PROFILES=lean
COMPOSE=(docker-compose -f deploy/compose/compose.yaml)

api() { curl --silent --show-error --fail --max-time 10 "$@"; }
healthy() { [[ $(docker inspect -f '{{.State.Health.Status}}' "$("${COMPOSE[@]}" ps -q "$1")") == healthy ]]; }
exported() { [[ $(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$("${COMPOSE[@]}" ps -aq spdk-exports)") == "exited 0" ]]; }

# attach PORT PSK: attaches the peer as the clients' tests do, and detaches it.
attach() {
    local name=peer$1 psk
    psk=$(printf %s "${2:-}" | base64 -w 0)
    api -X POST "http://127.0.0.1:8082/v1/nvmeRemoteControllers?nvme_remote_controller_id=$name" \
        -H 'Content-Type: application/json' -d "{\"multipath\": \"NVME_MULTIPATH_DISABLE\", \"tcp\": {\"psk\": \"$psk\"}}"
    api -X POST "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmePaths?nvme_path_id=path" -H 'Content-Type: application/json' \
        -d "{\"trtype\": \"NVME_TRANSPORT_TYPE_TCP\", \"traddr\": \"$SPDK\", \"fabrics\": {\"trsvcid\": \"$1\", \"subnqn\": \"nqn.2016-06.io.spdk:cnode1\",
            \"adrfam\": \"NVME_ADDRESS_FAMILY_IPV4\", \"hostnqn\": \"nqn.2014-08.org.nvmexpress:uuid:feb98abe-d51f-40c8-b348-2753f3571d3c\"}}"
    api "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmeRemoteNamespaces" | grep uuid
    api -X DELETE "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name/nvmePaths/path"
    api -X DELETE "http://127.0.0.1:8082/v1/nvmeRemoteControllers/$name"
}

# is_confined SERVICE: its container has no capability, can gain none, cannot write to its root, and keeps a limited log.
is_confined() {
    local id
    id=$("${COMPOSE[@]}" ps -q "$1")
    docker exec "$id" sh -c 'grep -E "^(CapBnd|NoNewPrivs)" /proc/1/status | tr -d "[:space:]"; ! touch /usr/one' |
        grep -x 'CapBnd:0000000000000000NoNewPrivs:1'
    [[ $(docker inspect -f '{{index .HostConfig.LogConfig.Config "max-size"}}' "$id") == 10m ]]
}

are_confined() {
    local service
    for service in opi-spdk-server spdk spdk-tls; do is_confined "$service"; done
}

# named_spans: the name under which spans are sent is that which OPI's scripts ask for.
named_spans() {
    [[ $(docker exec "$("${COMPOSE[@]}" ps -q opi-spdk-server)" printenv OTEL_SERVICE_NAME) == opi-spdk-bridge ]]
}

# keeps_state: objects survive `down` and `up`, which make new containers.
keeps_state() {
    local before
    before=$("${COMPOSE[@]}" ps -q opi-spdk-server)
    api -X POST 'http://127.0.0.1:8082/v1/nullVolumes?null_volume_id=kept' -H 'Content-Type: application/json' \
        -d '{"block_size": 512, "blocks_count": 64, "uuid": "7f3f5b1e-6d0c-4f0e-9c1f-5a1b2c3d4e5f"}'
    "${COMPOSE[@]}" down --timeout 10
    "${COMPOSE[@]}" up -d
    eventually 120 healthy opi-spdk-server
    eventually 120 exported
    [[ $("${COMPOSE[@]}" ps -q opi-spdk-server) != "$before" ]]
    api http://127.0.0.1:8082/v1/nullVolumes/kept | grep 7f3f5b1e-6d0c-4f0e-9c1f-5a1b2c3d4e5f
}

# is_upgraded: another image replaces the target's, and objects stay; and back.
is_upgraded() {
    local image
    printf 'FROM opi-spdk\nLABEL next=yes\n' | docker build -q -t opi-spdk:next -
    for image in opi-spdk:next opi-spdk; do
        LAB_IMAGE=$image "${COMPOSE[@]}" up -d
        eventually 120 healthy opi-spdk-server
        eventually 120 exported
        [[ $(docker inspect -f '{{.Config.Image}}' "$("${COMPOSE[@]}" ps -q opi-spdk-server)") == "$image" ]]
        api http://127.0.0.1:8082/v1/nullVolumes/kept
    done
}

# grpcurl: the one that is installed, or of Go's proxy into target/grpcurl, where there is Go.
GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
get_grpcurl() {
    PATH=$PATH:$ROOT/target/grpcurl:/usr/local/go/bin
    command -v grpcurl >/dev/null || ! command -v go >/dev/null ||
        step "getting $GRPCURL" env GOBIN="$ROOT/target/grpcurl" go install "$GRPCURL"
}

# suite PART: a part of the tests of OPI's own client, from within the lab's network, whose names it resolves. Where it is
# installed as a static program (GODPU names another one).
suite() {
    local out status=0
    out=$(docker run --rm --network "${COMPOSE_PROJECT_NAME}_default" -v "$GODPU:/godpu:ro" debian:bookworm-slim \
        /godpu storage test "$1" --addr opi-spdk-server:50051 2>&1) || status=$?
    echo "$out"
    # It logs errors that it goes on after, too. One is its own: an update of a VirtioBlk without the required fields.
    ((status == 0)) && ! grep -v 'could not update VirtioBlk: .* is required' <<<"$out" | grep -i -e 'rpc error' -e fatal -e panic
}

# The lab with hugepages, on a fresh state: what lacks them, virtual machines' disks, is there, in /run/opi-spdk of this machine.
lab_with_hugepages() {
    local huge=("${COMPOSE[@]}" -f deploy/compose/hugepages.yaml) part
    export OPI_SPDK_MEM_MIB=768
    "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
    check "with hugepages the lab comes up" "${huge[@]}" up -d
    check "with hugepages the target is healthy, and the peers have exported" eval 'eventually 120 healthy opi-spdk-server && eventually 120 exported'
    check "with hugepages a disk for a virtual machine has its socket on this machine" eval '
        api -X POST "http://127.0.0.1:8082/v1/virtioBlks?virtio_blk_id=disk" -H "Content-Type: application/json" \
            -d "{\"volume_name_ref\": \"Malloc0\", \"pcie_id\": {\"port_id\": 0, \"physical_function\": 0, \"virtual_function\": 0}}"
        test -S /run/opi-spdk/disk
        api -X DELETE "http://127.0.0.1:8082/v1/virtioBlks/disk"'
    if [[ -n $GODPU ]]; then
        for part in frontend backend middleend; do
            check "OPI's own client: storage test $part" suite "$part"
        done
    else
        skip "OPI's own client" "godpu is not installed"
    fi
    "${huge[@]}" down -v --timeout 10 &>/dev/null || true
}

# Compose v2 is in later releases of Debian, as a static program.
COMPOSE_V2=$WORK/compose-v2
get_compose_v2() {
    [[ ! -x $COMPOSE_V2 ]] || return 0
    local dir
    dir=$(mktemp -d "$WORK/compose-XXXXXX")
    apt_download "$dir" sid docker-compose
    dpkg-deb -x "$dir"/docker-compose_*.deb "$dir/root"
    mv "$(find "$dir/root" -type f -path '*/cli-plugins/docker-compose')" "$COMPOSE_V2"
    rm -rf "$dir"
}

# The same files with Compose v2, which takes other ways with images, profiles and dependencies.
lab_with_v2() {
    local COMPOSE=("$COMPOSE_V2" -f deploy/compose/compose.yaml)
    "${COMPOSE[@]}" version
    check "Compose v2 finds no fault in the files" eval '
        for profile in observe lean; do
            COMPOSE_PROFILES=$profile "${COMPOSE[@]}" -f deploy/compose/hugepages.yaml config --quiet 2>&1
        done | tee "$WORK/config.log"; [[ ! -s $WORK/config.log ]]'
    check "Compose v2 brings the lab up" "${COMPOSE[@]}" up -d
    check "with Compose v2 the target is healthy, and the peers have exported" eval 'eventually 120 healthy opi-spdk-server && eventually 120 exported'
    check "Compose v2 takes the lab down" "${COMPOSE[@]}" down -v --timeout 10
}

lab_tests() {
    GODPU=${GODPU:-$(command -v godpu || true)}
    get_grpcurl
    step "image that exports" docker build --network host -t opi-spdk-exports -f deploy/compose/exports.Dockerfile deploy/compose
    check "the lab comes up" "${COMPOSE[@]}" up -d
    check "the target is healthy by its own check" eventually 120 healthy opi-spdk-server
    check "the peers have exported their volumes" eventually 120 exported
    check "the inventory answers as in OPI's scripts" api http://127.0.0.1:8082/v1/inventory/1/inventory/2
    check "JSON-RPC at 9009 accepts spdkuser and its password" api -u spdkuser:spdkpass -H 'Content-Type: application/json' http://127.0.0.1:9009/ \
        -d '{"jsonrpc": "2.0", "id": 1, "method": "bdev_get_bdevs"}'
    check "JSON-RPC at 9009 refuses another password" eval '! api -u spdkuser:other -d "{}" http://127.0.0.1:9009/'
    SPDK=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$("${COMPOSE[@]}" ps -q spdk)")
    check "the peer at 4444 is attached" attach 4444
    check "the peer at 5555 is attached with TLS" attach 5555 NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:
    if command -v grpcurl >/dev/null; then
        check "grpcurl lists the services" eval 'grpcurl -plaintext 127.0.0.1:50051 list | grep opi_api.storage.v1.FrontendNvmeService'
        check "grpcurl makes an object" grpcurl -plaintext -d '{"null_volume_id": "one", "null_volume": {"block_size": 512, "blocks_count": 64}}' \
            127.0.0.1:50051 opi_api.storage.v1.NullVolumeService/CreateNullVolume
    else
        skip "grpcurl lists the services" "neither it nor Go is installed"
    fi
    check "the inventory answers under the target's name in the lab" docker run --rm --network "${COMPOSE_PROJECT_NAME}_default" \
        --entrypoint curl opi-spdk-exports -sSf --max-time 10 http://opi-spdk-server:8082/v1/inventory/1/inventory/2
    check "JSON-RPC at 9009 answers a call without a version of JSON-RPC" eval '
        api -u spdkuser:spdkpass -H "Content-Type: application/json" http://127.0.0.1:9009/ -d "{\"id\": 1, \"method\": \"spdk_get_version\"}" |
            grep "SPDK v"'
    check "the containers have no capability, a read-only root and a limited log" are_confined
    check "spans have the name that OPI's scripts ask for" named_spans
    check "objects survive docker-compose down and up" keeps_state
    check "another image takes the target over with its objects, and back" is_upgraded
    local target began=$SECONDS
    target=$("${COMPOSE[@]}" ps -q opi-spdk-server)
    check "as process 1 it stops on SIGTERM" docker stop --time 30 "$target"
    check "its status is 0, within 10 s" eval "((SECONDS - began < 10)) && [[ \$(docker inspect -f '{{.State.ExitCode}}' $target) == 0 ]]"
    "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
    step "getting Compose v2" get_compose_v2
    lab_with_v2
    if (($(awk '/^HugePages_Free/ {print $2}' /proc/meminfo) >= 400)); then
        lab_with_hugepages
    else
        skip "the lab with hugepages" "400 of 2 MiB must be free"
    fi
}
