#!/usr/bin/env bash
# sbom.sh: prints the bill of materials of the program as CycloneDX JSON: SPDK and what is linked from its tree, and
# each crate with version and licence.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/spdk-source.sh"

cd "$ROOT"
[[ -n ${SPDK_PREFIX:-} ]] || load_env
cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | awk '$1 == "host:" { print $2 }')" |
    SPDK_VERSION=$SPDK_VERSION SPDK_PREFIX=${SPDK_PREFIX:-} SPDK_SOURCE=${SPDK_SRC:-$CACHE/source/spdk-$SPDK_VERSION} \
        python3 "$SCRIPTS/sbom.py"
