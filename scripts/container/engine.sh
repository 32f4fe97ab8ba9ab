# Sourced. The container engine, the base images, and running checks.

DOCKERD= PASSED=0 FAILED=0 SKIPPED=0

# check WHAT COMMAND...: one test, in a subshell that ends at the first failing command. A failure shows the output and the
# end of the machines' journals.
check() {
    local what=$1 status
    shift
    set +e
    (set -e && "$@") >"$WORK/check.log" 2>&1
    status=$?
    set -e
    if ((status == 0)); then
        PASSED=$((PASSED + 1))
        echo "ok      $what"
    else
        FAILED=$((FAILED + 1))
        echo "FAILED  $what"
        { cat "$WORK/check.log" && machine_journals; } | sed 's/^/    | /'
    fi
}

# skip WHAT WHY: counts a test that this machine cannot run.
skip() {
    SKIPPED=$((SKIPPED + 1))
    echo "skipped $1: $2"
}

# eventually SECONDS COMMAND...: retries the command until it succeeds or the timeout passes.
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
    # A status that is not 0 would end this function below, and leave behind what on_exit removes.
    set +e
    end_machines
    losetup --associated "$WORK/disk" --noheadings --output NAME 2>/dev/null | xargs -r losetup --detach
    "${COMPOSE[@]}" logs --no-color >"$WORK/compose.log" 2>&1 || true
    "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
    if [[ -n $DOCKERD ]]; then
        kill "$DOCKERD" 2>/dev/null || true
        wait "$DOCKERD" 2>/dev/null || true
    fi
    if [[ $(findmnt -n -o SOURCE /sys/fs/cgroup/hugetlb) == opi-spdk-test ]]; then
        rmdir /sys/fs/cgroup/hugetlb/docker &>/dev/null || true
        umount /sys/fs/cgroup/hugetlb && rmdir /sys/fs/cgroup/hugetlb || true
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

# debian DIR PACKAGES: makes a minimal Debian, without the mounts that debootstrap leaves.
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

# Makes the Rust image that the Dockerfile names, from Debian and the local toolchain.
rust_image() {
    local name root
    name=$(sed -n 's/^ARG RUST=//p' Dockerfile)
    docker image inspect "$name" &>/dev/null && return
    root=$(mktemp -d "$WORK/rust-XXXXXX")
    SCRATCH+=("$root")
    step "base image with Rust" debian "$root" build-essential,ca-certificates
    mkdir -p "$root/usr/local"
    cp -a "$(rustc --print sysroot)" "$root/usr/local/rust"
    # The certificate authorities that this machine trusts: behind a proxy, more than Debian's.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/usr/local/share/authorities.pem"
    tar -C "$root" --one-file-system -c . | docker import -c 'ENV CARGO_HTTP_CAINFO=/usr/local/share/authorities.pem' -c 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$name" >/dev/null
}

