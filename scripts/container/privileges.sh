# Sourced. The privileges that the program needs for each use, and its errors without them.

# disks ACCESS OPTIONS COMMAND...: with hugepages and what the command gives: a disk of each kind for virtual machines, whose
# sockets have this mode, owner and group. OPTIONS are settings, words in one string.
disks() {
    local access=$1 options=$2 id status=0 socket
    shift 2
    id=$("$@" -d --read-only --tmpfs /run --tmpfs /tmp --tmpfs /var/tmp -v /dev/hugepages:/dev/hugepages opi-spdk --mem-mib 640 $options)
    client() { docker exec "$id" opi-spdk "$@"; }
    local place=(pcie_id.port_id=0 pcie_id.physical_function=0 pcie_id.virtual_function=0)
    eventually 60 client health &&
        client create MallocVolume memory blocks_count=2048 block_size=512 &&
        client create VirtioBlk disk "${place[@]}" volume_name_ref=memory &&
        client create NvmeSubsystem one spec.nqn=nqn.2016-06.io.spdk:one &&
        client create NvmeController one/pcie spec.trtype=NVME_TRANSPORT_TYPE_PCIE "${place[@]/#/spec.}" &&
        docker exec "$id" test -S /run/opi-spdk/disk -a -S /run/opi-spdk/one/cntrl || status=1
    for socket in disk one/cntrl; do
        docker exec "$id" stat -c '%a %u %g' "/run/opi-spdk/$socket" | grep -x "$access" || status=1
    done
    docker logs "$id"
    docker stop "$id"
    return "$status"
}

# refused TEXT ARGUMENT...: the image fails to start, with a single-line error that contains the text.
refused() {
    local text=$1 out status=0
    shift
    out=$(docker run --rm "$@" 2>&1 >/dev/null) || status=$?
    echo "status $status: $out"
    [[ $status == 1 && $(grep -c . <<<"$out") == 1 && $out == *"$text"* ]]
}

# Two instances cannot share a port or a state directory.
second_instance() {
    local id run=(--env OPI_SPDK_CORES=1 opi-spdk --no-huge --mem-mib 512)
    id=$(docker run -d opi-spdk --no-huge --mem-mib 512)
    eventually 60 docker exec "$id" opi-spdk health
    refused "grpc-addr 0.0.0.0:50051: Address already in use (os error 98); another program listens there" \
        --network "container:$id" "${run[@]}"
    refused "runs with state-dir /var/lib/opi-spdk" --volumes-from "$id" "${run[@]}"
    docker exec "$id" opi-spdk health
    docker rm -fv "$id"
}

# manual_commands FIRST: the block of commands of docs/operations.md whose first line begins so.
manual_commands() {
    awk -v first="$1" 'begins { on = index($0, first) == 1; begins = 0 } /^```/ { begins = /^```sh$/; on = 0 } on' docs/operations.md
}

# manual_starts: the command of docs/operations.md as it is, and the one after it.
manual_starts() {
    local command status=0
    command=$(manual_commands 'docker run -d --name opi-spdk ')
    echo "$command"
    timeout 90 bash -ec "$command" || status=$?
    docker logs opi-spdk
    docker rm -f opi-spdk
    docker volume rm opi-spdk
    return "$status"
}

# manual_upgrades: with the commands of docs/operations.md an image replaces another one, with its objects, and the way back
# has those of before.
manual_upgrades() {
    local status=0 dir=$WORK/upgrade
    rm -rf "$dir" && mkdir -p "$dir"
    printf 'FROM opi-spdk\nLABEL next=yes\n' | docker build -q -t opi-spdk:next -
    client() { docker exec opi-spdk opi-spdk "$@"; }
    commands() {
        local text
        text=$(manual_commands "$1")
        [[ -n $text ]] && (cd "$dir" && timeout 90 bash -exc "$text")
    }
    image_is() { [[ $(docker inspect -f '{{.Config.Image}}' opi-spdk) == "$1" ]]; }
    {
        commands 'docker run -d --name opi-spdk ' &&
            client create NullVolume before blocks_count=2048 block_size=512 &&
            commands 'NEW=' && image_is opi-spdk:next && client get NullVolume before &&
            client create NullVolume after blocks_count=2048 block_size=512 &&
            commands 'docker stop opi-spdk' && image_is opi-spdk && client get NullVolume before && ! client get NullVolume after
    } || status=1
    docker logs opi-spdk || true
    docker rm -f opi-spdk opi-spdk-old || true
    docker volume rm opi-spdk
    return "$status"
}

# Least privileges: NVMe/TCP with --no-huge needs none, runs on a read-only root and as nobody.
privileges_tests() {
    local run=(docker run --rm --cap-drop ALL --security-opt no-new-privileges)
    if (($(awk '/^HugePages_Free/ {print $2}' /proc/meminfo) >= 400)); then
        check "with hugepages one capability is enough, sockets for virtual machines too" disks '[0-9]* 0 0' '' "${run[@]}" --cap-add SYS_NICE
        check "with CHOWN and FOWNER sockets have a group of their own" disks '660 0 4242' '--socket-group 4242' "${run[@]}" \
            --cap-add SYS_NICE --cap-add CHOWN --cap-add FOWNER
        check "without CHOWN and FOWNER the group is refused with one line" refused "socket-group: " --cap-drop ALL --cap-add SYS_NICE \
            -v /dev/hugepages:/dev/hugepages opi-spdk --mem-mib 640 --socket-group 4242
    else
        skip "with hugepages one capability is enough" "400 of 2 MiB must be free"
    fi
    check "without a capability, as another user, on a read-only root" eval "
        id=\$(${run[*]} -d --user 65534:65534 --read-only --tmpfs /run/opi-spdk:mode=0700,uid=65534 --tmpfs /tmp --tmpfs /var/tmp:mode=1777 \
            --tmpfs /var/lib/opi-spdk:mode=0700,uid=65534 opi-spdk --no-huge --mem-mib 512 --ctrlr-dir /run/opi-spdk)
        status=0; eventually 60 eval '[[ \$(docker inspect -f {{.State.Health.Status}} '\$id') == healthy ]]' || status=1
        docker logs \$id; docker stop \$id; ((status == 0))"
    check "the command of the manual starts it" manual_starts
    check "the commands of the manual upgrade it and take it back" manual_upgrades
    check "without hugepages in the container the start fails with one line" eval "
        ! out=\$(${run[*]} --entrypoint opi-spdk opi-spdk --mem-mib 900000 2>&1) && echo \"\$out\" && [[ \$out == *--mem-mib* && \$out != *$'\n'*$'\n'* ]]"
    check "a memory limit that is too low fails the start with one line" eval "
        ! out=\$(${run[*]} --memory 256m opi-spdk --no-huge --mem-mib 512 2>&1) && echo \"\$out\" && [[ \$out == *'the control group leaves'* ]]"
    check "a read-only root fails the start with one line" refused "mount it writable" --read-only opi-spdk --no-huge
    check "a user without write permission fails the start with one line" refused "run as root" --user 65534:65534 opi-spdk --no-huge
    check "a second instance with the same port or state directory is refused, and the first one continues" second_instance
    check "doctor reports missing hugepages and a read-only root" eval "
        ! out=\$(docker run --rm --read-only --entrypoint opi-spdk opi-spdk doctor --mem-mib 900000 2>&1) && echo \"\$out\" &&
        [[ \$out == *hugepages* && \$out == *'mount it writable'* ]]"
}
