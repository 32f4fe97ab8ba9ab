#!/usr/bin/env bash
# guest-initrd.sh IMAGE OUT [PROGRAM]: makes the initrd OUT from that of a guest image (guest-image.sh), with
# guest-init as process 1 and the program, with its libraries of this machine, as /opi/run; /opi/setpriv drops
# privileges and /opi/unshare makes namespaces, like a container (busybox' unshare fails with --propagation unchanged).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
IMAGE=$1 OUT=$2 PROGRAM=${3:-}

# The guest's libraries are of another release, so the program brings its own loader.
starter() { printf '#!/bin/sh\n%s exec /opi/ld-linux-x86-64.so.2 --library-path /opi /opi/%s "$@"\n' "$1" "$2"; }
add_program() {
    local to=$1/opi library tool
    mkdir "$to"
    strip -o "$to/program" "$PROGRAM"
    for tool in setpriv unshare; do
        cp "$(command -v $tool)" "$to/$tool.program"
        starter '' $tool.program >"$to/$tool"
    done
    ldd "$PROGRAM" "$to"/*.program | grep -o '[[:space:]]/[^ ]*' | sort -u |
        while read -r library; do cp "$library" "$to/"; done
    # OpenSSL requires a configuration file.
    starter OPENSSL_CONF=/dev/null program >"$to/run"
    chmod 755 "$to"/{run,setpriv,unshare}
}

work=$(mktemp -d "${TMPDIR:-/tmp}/opi-spdk-initrd.XXXXXX")
SCRATCH+=("$work")
install -m 755 "$SCRIPTS/guest-init" "$work/init"
[[ -z $PROGRAM ]] || add_program "$work"
# The kernel unpacks concatenated archives.
{ cat "$IMAGE/initrd" && cd "$work" && find . | cpio -o -H newc --quiet; } >"$OUT"
