# To be sourced: the package in a container without a service manager.

# in_base SCRIPT: runs it in a fresh Debian that sees the package.
in_base() {
    docker run --rm --network host -v "$ROOT/target/package:/package:ro" -e DEBIAN_FRONTEND=noninteractive debian:bookworm-slim sh -euxc "$1"
}

# Of each part name, version and licence; of SPDK's tree what is linked, by its own version.
has_bill() {
    docker run --rm --entrypoint cat opi-spdk /usr/share/opi-spdk/sbom.json | python3 -c '
import json, sys
parts = {one["name"]: one for one in json.load(sys.stdin)["components"]}
bare = [name for name, one in parts.items() if not one.get("version") or not one["licenses"]]
missing = {"spdk", "dpdk", "isa-l", "isa-l_crypto", "libvfio-user", "tonic"} - set(parts)
print(f"{len(parts)} parts; without version or licence: {bare}; missing: {missing}")
sys.exit(bool(bare or missing))'
}

has_notices() {
    local part
    for part in sbom.json THIRD-PARTY; do
        docker run --rm --entrypoint cat opi-spdk "/usr/share/opi-spdk/$part" >"$WORK/$part"
    done
    python3 "$SCRIPTS/notices.py" check "$WORK/sbom.json" "$WORK/THIRD-PARTY"
}

has_labels() {
    local label
    label() { docker image inspect -f "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" opi-spdk; }
    [[ $(label version) == "$(dpkg-deb -f "$(echo target/package/*.deb)" Version | sed 's/-.*//')" ]]
    [[ $(label revision) == "$revision" && $(label base.name) == debian:bookworm-slim && -n $(label licenses) ]]
}

# is_small: the image adds the program and less than 10 MB to its base; the program of the Dockerfile is a release of 37 MB.
is_small() {
    local size base program
    size=$(docker image inspect -f '{{.Size}}' opi-spdk)
    base=$(docker image inspect -f '{{.Size}}' debian:bookworm-slim)
    program=$(docker run --rm --entrypoint sh opi-spdk -c 'stat -L -c %s "$(command -v opi-spdk)"')
    echo "size $size, base $base, program $program"
    ((size - base - program < 10000000))
    [[ -z $image ]] || ((size - base < 50000000))
}

package_tests() {
    newer_package >/dev/null
    check "the image's bill of materials has the versions and licences of all that is linked" has_bill
    check "the image has the copyrights and licences of all that is linked" has_notices
    check "the image names its version, revision and base" has_labels
    check "the image has little but the program" is_small
    check "the package is lintian clean" lintian --allow-root --fail-on error,warning target/package/opi-spdk_*.deb
    check "the package is installed, upgraded, removed and purged, and leaves the state" in_base '
        apt-get -q update && apt-get -q install -y --no-install-recommends /package/opi-spdk_*.deb
        # Recommended packages are not installed: what setup runs comes with dependencies.
        command -v modprobe
        opi-spdk --version && opi-spdk config check /etc/opi-spdk/opi-spdk.toml
        grep -q opi-spdk /usr/share/opi-spdk/sbom.json /usr/lib/sysusers.d/opi-spdk.conf && getent group opi-spdk
        echo "# of the operator" >>/etc/opi-spdk/opi-spdk.toml
        mkdir -p /var/lib/opi-spdk && echo kept >/var/lib/opi-spdk/identity
        test "$(stat -c "%a %G" /etc/opi-spdk/tls)" = "700 root"
        chmod 0750 /etc/opi-spdk/tls && chgrp opi-spdk /etc/opi-spdk/tls
        apt-get -q install -y --no-install-recommends -o Dpkg::Options::=--force-confold /package/newer/opi-spdk.deb
        test "$(dpkg-query -W -f "\${Version}" opi-spdk)" = 99.0-1
        grep "of the operator" /etc/opi-spdk/opi-spdk.toml && grep "next version" /etc/opi-spdk/opi-spdk.toml.dpkg-dist
        test "$(stat -c "%a %G" /etc/opi-spdk/tls)" = "750 opi-spdk"
        apt-get -q remove -y opi-spdk && test -f /etc/opi-spdk/opi-spdk.toml && test ! -e /usr/bin/opi-spdk
        apt-get -q purge -y opi-spdk && test ! -e /etc/opi-spdk && test -f /var/lib/opi-spdk/identity
        apt-get -q install -y --no-install-recommends /package/opi-spdk_*.deb
        OPI_SPDK_PURGE_STATE=yes apt-get -q purge -y opi-spdk && test ! -e /var/lib/opi-spdk'
}

