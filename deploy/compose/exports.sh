#!/bin/sh
# Exports a volume of the peer at port 4444, and one of its TLS side at port 5555, both as
# nqn.2016-06.io.spdk:cnode1. Creating what is there already succeeds, so it can be run again.
set -eu

post() {
    curl --silent --show-error --fail-with-body --max-time 10 -X POST -H 'Content-Type: application/json' -d "$2" "$1" >/dev/null
}

# export HTTP-PORT NVME-PORT PSK
export_volume() {
    api=http://127.0.0.1:$1/v1
    psk=$(printf %s "$3" | base64 -w 0)
    post "$api/nullVolumes?null_volume_id=export" '{"block_size": 512, "blocks_count": 131072}'
    post "$api/nvmeSubsystems?nvme_subsystem_id=cnode1" \
        "{\"spec\": {\"nqn\": \"nqn.2016-06.io.spdk:cnode1\", \"hostnqn\": \"$HOSTNQN\", \"psk\": \"$psk\"}}"
    post "$api/nvmeSubsystems/cnode1/nvmeNamespaces?nvme_namespace_id=export" \
        '{"spec": {"volume_name_ref": "volumes/export"}}'
    post "$api/nvmeSubsystems/cnode1/nvmeControllers?nvme_controller_id=tcp" \
        "{\"spec\": {\"trtype\": \"NVME_TRANSPORT_TYPE_TCP\", \"fabrics_id\": {\"traddr\": \"0.0.0.0\", \"trsvcid\": \"$2\", \"adrfam\": \"NVME_ADDRESS_FAMILY_IPV4\"}}}"
}

export_volume 8082 4444 ''
export_volume 8083 5555 "$PSK"
echo 'exported: spdk:4444, and spdk:5555 with TLS'
