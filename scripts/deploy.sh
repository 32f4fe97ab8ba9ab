#!/usr/bin/env bash
# deploy.sh [PROGRAM]: checks deploy/ as far as possible without a container engine: compose files, manifests, alert
# rules and Prometheus' configuration, the dashboard, and the package of PROGRAM (default: a debug build) with lintian.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

CARGO_DEB=3.8.0
call bash "$SCRIPTS/packages.sh" docker-compose lintian
cargo deb --version &>/dev/null || stage "cargo-deb" cargo install --locked cargo-deb --version "$CARGO_DEB"
cd "$ROOT"
for profile in observe lean; do
    for files in "-f compose.yaml" "-f compose.yaml -f hugepages.yaml"; do
        (cd deploy/compose && COMPOSE_PROFILES=$profile docker-compose $files config --quiet)
    done
done
stage "manifests of Kubernetes" bash "$SCRIPTS/kubernetes.sh"
stage "alert rules" bash "$SCRIPTS/alerts.sh"
stage "dashboard" bash "$SCRIPTS/dashboard.sh"
program=${1:-}
if [[ -z $program ]]; then
    load_env
    # With a test among the targets dependencies have the features that they have for the tests, whose build is used again.
    stage "building opi-spdk" cargo build --locked --bin opi-spdk --test deploy
    program=target/debug/opi-spdk
fi
# A warning of cargo-deb is a fault too, such as a file that two assets install.
warnings=$(mktemp "${TMPDIR:-/tmp}/opi-spdk-package.XXXXXX")
SCRATCH+=("$warnings")
package() { bash "$SCRIPTS/package.sh" "$program" 2>&1 | tee "$warnings"; }
stage "package" package
! grep '^warning' "$warnings" || die "cargo-deb has warnings"
installed=$(mktemp -d "${TMPDIR:-/tmp}/opi-spdk-package.XXXXXX")
SCRATCH+=("$installed")
dpkg-deb -x target/package/opi-spdk_*.deb "$installed"
stage "notices of all that is linked" \
    python3 "$SCRIPTS/notices.py" check "$installed"/usr/share/opi-spdk/{sbom.json,THIRD-PARTY}
stage "lintian" lintian --allow-root --fail-on error,warning target/package/opi-spdk_*.deb
