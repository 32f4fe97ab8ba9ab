#!/usr/bin/env bash
# container-test.sh [--image] [--only PART,...] [PROGRAM]: tests the deployment on a real container engine, part by
# part:
#
#   package      installs, upgrades and removes the package in a container without a service manager
#   systemd      the same with systemd as process 1: start, reload, watchdog, upgrade, stop
#   setup        kills `opi-spdk setup` at each of its steps, then continues it or rolls it back; has it leave alone the
#                disk that this machine runs from
#   ansible      runs the role on such machines, with the package and with the image
#   kubernetes   checks the manifests against Kubernetes' schema
#   privileges   starts the image with the least privileges for each use, and with less
#   lab          starts the lab of deploy/compose, makes the calls of OPI clients, and stops it
#   observe      has Prometheus scrape a target and evaluate the rules, and the trace viewer show its calls, with the lab's
#                configuration
#
# PROGRAM is the program for the package (default: a debug build). The image is built from the package, in seconds;
# with --image it is built by the Dockerfile, which builds SPDK and a release: half an hour on two cores. Requires
# root. Uses the engine of DOCKER_HOST, or starts one with its data under target/container and stops it.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/apt-source.sh"

cd "$ROOT"
WORK=$ROOT/target/container
PARTS=(package systemd setup ansible kubernetes privileges lab observe)
for part in engine "${PARTS[@]}"; do
    source "$SCRIPTS/container/$part.sh"
done

image=
if [[ ${1:-} == --image ]]; then
    image=1
    shift
fi
if [[ ${1:-} == --only ]]; then
    IFS=, read -ra PARTS <<<"${2:?--only needs names of parts}"
    shift 2
fi
for part in "${PARTS[@]}"; do
    declare -F "${part}_tests" >/dev/null || die "there is no part '$part'; see the first lines of scripts/container-test.sh"
done

call bash "$SCRIPTS/packages.sh" docker.io docker-compose debootstrap lintian curl ansible prometheus
start_engine
base_image
if [[ -z ${1:-} ]]; then
    call bash "$SCRIPTS/setup.sh"
    load_env
    stage "building opi-spdk" cargo build --locked
    set -- "$ROOT/target/debug/opi-spdk"
fi
stage "package" bash "$SCRIPTS/package.sh" "$1"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if [[ -n $image ]]; then
    rust_image
    stage "image of the Dockerfile" docker build --network host --build-arg REVISION="$revision" -t opi-spdk .
    docker image inspect -f 'its size: {{.Size}} bytes' opi-spdk
else
    # The client of docker.io, since a newer one needs a plugin for BuildKit.
    step "image of the package" \
        env DOCKER_BUILDKIT=1 /usr/bin/docker build --network host --build-arg REVISION="$revision" -t opi-spdk -f deploy/package.Dockerfile target/package
fi
HUGEPAGES=${HUGEPAGES:-640} bash "$SCRIPTS/hugepages.sh" || true
for part in "${PARTS[@]}"; do
    "${part}_tests"
done
echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
((FAILED == 0))
