#!/usr/bin/env bash
# sbom.sh: prints the bill of materials of the program as CycloneDX JSON: SPDK and what is linked from its tree, and
# each crate with version and licence. sbom.sh --notices: prints their copyrights and the texts of their licences.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$SCRIPTS/spdk-source.sh"

program=sbom.py
[[ ${1:-} != --notices ]] || program=notices.py
cd "$ROOT"
[[ -n ${SPDK_PREFIX:-} ]] || load_env
source=${SPDK_SRC:-$CACHE/source/spdk-$SPDK_VERSION}
tree=
[[ ! -d $source ]] || tree=$(spdk_tree_hash "$source")
cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | awk '$1 == "host:" { print $2 }')" |
    SPDK_VERSION=$SPDK_VERSION SPDK_PREFIX=${SPDK_PREFIX:-} SPDK_SOURCE=$source SPDK_TREE=$tree python3 "$SCRIPTS/$program"
