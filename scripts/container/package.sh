# To be sourced: the package in a container without a service manager.

# in_base SCRIPT: runs it in a fresh Debian that sees the package. A command that is negated by ! does not end a script, by
# not it does.
in_base() {
    docker run --rm --network host -v "$ROOT/target/package:/package:ro" -e DEBIAN_FRONTEND=noninteractive debian:bookworm-slim sh -euxc "not() { ! \"\$@\"; }; $1"
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
        apt-get -q remove -y opi-spdk && test -f /etc/opi-spdk/opi-spdk.toml && not command -v opi-spdk
        apt-get -q purge -y opi-spdk && test ! -e /etc/opi-spdk && test -f /var/lib/opi-spdk/identity
        apt-get -q install -y --no-install-recommends /package/opi-spdk_*.deb
        OPI_SPDK_PURGE_STATE=yes apt-get -q purge -y opi-spdk && test ! -e /var/lib/opi-spdk'
}

