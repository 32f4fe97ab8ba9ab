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

# mount_hugetlb: has the engine limit containers' hugepages, where no control group does (version 1). finish unmounts it.
HUGETLB=/sys/fs/cgroup/hugetlb
mount_hugetlb() {
    [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || return 0
    mountpoint -q $HUGETLB || { mkdir -p $HUGETLB && mount -t cgroup -o hugetlb opi-spdk-test $HUGETLB; }
}

# limit_hugepages CONTAINER BYTES: as the kubelet does for `hugepages-2Mi`; the engine has no option for it.
limit_hugepages() {
    local pid
    pid=$(docker inspect -f '{{.State.Pid}}' "$1")
    if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
        echo "$2" >"/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")/hugetlb.2MB.max"
    else
        echo "$2" >"$HUGETLB$(sed -n 's/^[0-9]*:hugetlb://p' "/proc/$pid/cgroup")/hugetlb.2MB.limit_in_bytes"
    fi
}

# pod HUGEPAGES ARGUMENT...: starts a container of the image, and the program in it once so many bytes of hugepages are its
# limit; prints its id.
pod() {
    local id
    id=$(docker run -d --entrypoint sh "${@:2}" opi-spdk -c 'until test -e /tmp/go; do sleep 0.1; done; exec opi-spdk')
    limit_hugepages "$id" "$1" && docker exec "$id" touch /tmp/go || {
        docker rm -f "$id" >&2
        return 1
    }
    echo "$id"
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
    # The limits are the pod's: less than it asks for in one, which the start tells, and what it gives.
    if [[ $no_huge == false ]]; then
        id=$(pod $((510 << 20)) "${arguments[@]}") || return 1
        [[ $(docker wait "$id") == 1 && $(docker logs "$id" 2>&1) == *'the control group leaves 510 MiB of hugepages'*'512 MiB are asked for'* ]] ||
            status=1
        docker logs "$id"
        docker rm "$id"
    fi
    id=$(pod "$("$ROOT/target/kubernetes/bin/python" "$SCRIPTS/container/kubernetes.py" hugepages "$dir/rendered.yaml")" "${arguments[@]}") || return 1
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

# With the kubelet's static CPU manager: a cpuset that is known to nobody before, and cores of it by number from its end.
in_cpuset() {
    local core id status=0 last
    last=$(($(nproc --all) - 1))
    for core in 0 "$last"; do
        id=$(docker run -d --network none --cpuset-cpus "$core" --env OPI_SPDK_CORES=last:1 opi-spdk --no-huge --mem-mib 512)
        eventually 60 docker exec "$id" opi-spdk health || status=1
        # Reactors are pinned, and everything else is in the same cpuset.
        docker exec "$id" sh -c 'cat /proc/1/task/*/status' | awk -v core="$core" '
            $1 == "Name:" { name = $2; reactors += name ~ /^reactor/ }
            $1 == "Cpus_allowed_list:" && $2 != core { print name, $2; other = 1 }
            END { exit other || !reactors }' || status=1
        docker rm -fv "$id"
    done
    ((last > 0)) || return "$status"
    refused "cores: $last cannot be used by this process" --network none --cpuset-cpus 0 opi-spdk --no-huge --mem-mib 512 --cores "$last" ||
        status=1
    # The cpuset shrinks: a reload goes on, names the cores, and the target stays healthy.
    id=$(docker run -d --network none --cpuset-cpus "0-$last" --env OPI_SPDK_CORES="last:$((last + 1))" opi-spdk --no-huge --mem-mib 512)
    eventually 60 docker exec "$id" opi-spdk health || status=1
    docker update --cpuset-cpus 0 "$id"
    docker kill --signal HUP "$id"
    eventually 20 eval '[[ $(docker logs '"$id"' 2>&1) == *"the next start would fail"*"configuration reloaded"* ]]' || status=1
    docker exec "$id" opi-spdk health || status=1
    docker logs "$id"
    docker rm -fv "$id"
    return "$status"
}

kubernetes_tests() {
    mount_hugetlb
    check "Kubernetes' schema has nothing against the manifests" bash "$SCRIPTS/kubernetes.sh"
    check "what the DaemonSet gives its container is enough, with its limits, TLS, roles and the key of the state" as_pod
    check "in a cpuset reactors have its last cores, and one that shrinks keeps no reload from being done" in_cpuset
    check "limits are raised by the DaemonSet, and taken back when its pod is gone" sets_node_up
}
