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
      - OPI_SPDK_CORES=0
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

kubernetes_tests() {
    check "Kubernetes' schema has nothing against the manifests" bash "$SCRIPTS/kubernetes.sh"
    check "what the DaemonSet gives its container is enough, with TLS, roles and the key of the state" as_pod
}
