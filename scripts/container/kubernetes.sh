# Sourced. The manifests of deploy/kubernetes: checks by schema, and runs the image with exactly what its pod has.

# laid DIRECTORY NAME FILE...: lays files out like the kubelet does for a secret or a ConfigMap, behind links.
laid() {
    local at=$1/$2 file
    mkdir -p "$at/..data_1"
    ln -sfn ..data_1 "$at/..data"
    for file in "${@:3}"; do
        install -m 0400 "$file" "$at/..data_1/${file##*/}"
        ln -sfn "..data/${file##*/}" "$at/${file##*/}"
    done
}

# overlay DIRECTORY NO-HUGE: makes an overlay with all secrets and without devices, and prints it rendered.
overlay() {
    local base
    mkdir -p "$1"
    base=$(realpath --relative-to="$1" deploy/kubernetes)
    cat >"$1/kustomization.yaml" <<EOF
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [$base/base]
components: [$base/components/tls, $base/components/state-key, $base/components/access]
configMapGenerator:
  - name: opi-spdk-settings
    behavior: merge
    literals:
      - OPI_SPDK_GRPC_ADDR=127.0.0.1:50051
      - OPI_SPDK_HTTP_ADDR=127.0.0.1:8082
      - OPI_SPDK_MEM_MIB=512
      - OPI_SPDK_NO_HUGE=$2
EOF
    if command -v kubectl >/dev/null; then kubectl kustomize "$1"; else kustomize build "$1"; fi
}

as_pod() {
    local dir=$WORK/pod arguments id status=0 no_huge=true
    (($(awk '/^HugePages_Free/ {print $2}' /proc/meminfo) < 260)) || no_huge=false
    rm -rf "$dir"
    mkdir -p "$dir/state" "$dir/sockets" "$dir/locks"
    (issue 1) &>/dev/null
    mkdir "$dir/files"
    cp "$WORK/tls/server.crt" "$dir/files/tls.crt"
    cp "$WORK/tls/server.key" "$dir/files/tls.key"
    cp "$WORK/tls/ca.crt" deploy/kubernetes/base/opi-spdk.toml "$dir/files/"
    openssl rand -hex 32 >"$dir/files/state-key"
    printf '[[grant]]\nrole = "admin"\nsan = "localhost"\n' >"$dir/files/access.toml"
    laid "$dir" tls "$dir"/files/{tls.crt,tls.key,ca.crt}
    laid "$dir" state-key "$dir/files/state-key"
    laid "$dir" access "$dir/files/access.toml"
    laid "$dir" config "$dir/files/opi-spdk.toml"
    PATH=$PATH:$ROOT/target/kubernetes/bin overlay "$dir/overlay" "$no_huge" >"$dir/rendered.yaml"
    mapfile -t arguments < <("$ROOT/target/kubernetes/bin/python" "$SCRIPTS/container/kubernetes.py" run "$dir/rendered.yaml" "$dir")
    id=$(docker run -d "${arguments[@]}" opi-spdk)
    eventually 60 docker exec "$id" opi-spdk health || status=1
    docker exec "$id" opi-spdk create NullVolume one blocks_count=2048 block_size=512 || status=1
    docker logs "$id"
    docker stop "$id"
    # The key of the state is the secret, so there is none beside the state.
    [[ $status == 0 && $(docker inspect -f '{{.State.ExitCode}}' "$id") == 0 && -f $dir/state/state.redb && ! -e $dir/state/state-key ]]
    docker rm "$id"
}

# The first container raises the node's limits. Its way back stays on the node, and the command of docs/operations.md finds
# it there after the pod has gone.
sets_node_up() {
    local dir=$WORK/pod aio=/proc/sys/fs/aio-max-nr before arguments status=0
    before=$(<$aio)
    mkdir -p "$dir/run" "$dir/modules"
    mapfile -t arguments < <("$ROOT/target/kubernetes/bin/python" "$SCRIPTS/container/kubernetes.py" init "$dir/rendered.yaml" "$dir")
    echo 65536 >$aio
    docker run --rm "${arguments[@]}" || status=1
    [[ $(<$aio) == 1048576 && -s $dir/run/opi-spdk-setup.json ]] || status=1
    # kubectl debug has the node's files at /host.
    mkdir -p "$dir/host" && mv "$dir/run" "$dir/host/run"
    docker run --rm --network none --cap-add ALL --cap-drop SYS_RESOURCE --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --security-opt systempaths=unconfined --volume "$dir/host:/host" --entrypoint sh opi-spdk \
        -c "$(sed -n "s/^ *-- sh -c '\(.*\)'$/\1/p" docs/operations.md)" || status=1
    [[ $(<$aio) == 65536 && ! -e $dir/host/run/opi-spdk-setup.json ]] || status=1
    echo "$before" >$aio
    return "$status"
}

kubernetes_tests() {
    check "Kubernetes' schema has nothing against the manifests" bash "$SCRIPTS/kubernetes.sh"
    check "what the DaemonSet gives its container is enough, with TLS, roles and the key of the state" as_pod
    check "limits are raised by the DaemonSet, and taken back when its pod is gone" sets_node_up
}
