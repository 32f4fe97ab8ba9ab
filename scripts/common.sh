# Shared by every script here, by `source`: strict mode, progress, failure reports, cache and lock.
# All that is said goes to stderr, so that a script's stdout is free for its result.

set -Eeuo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPTS=$ROOT/scripts
CACHE=${OPI_SPDK_CACHE:-${XDG_CACHE_HOME:-${HOME:?must be set, or OPI_SPDK_CACHE}/.cache}/opi-spdk}
CACHE=$(realpath -m -- "$CACHE")

STEP=       # what is being done, for the failure report
LOG=        # where its output goes
CHILD=      # the process group that does it
HEARTBEAT=  # the process that shows that it is still going on
SCRATCH=()  # removed when the script ends, however it ends

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'opi-spdk: %s\n' "$*" >&2
    exit 1
}

# call COMMAND...: runs it in a process group of its own and waits, so that a signal to this script is not
# put off until the command ends, but ends it too, with all that it started. It may be a function.
call() {
    set -m
    "$@" &
    CHILD=$!
    set +m
    wait "$CHILD"
    CHILD=
}

# step NAME COMMAND...: calls the command with its output in a log, and reports what comes of it.
step() {
    local began=$SECONDS
    STEP=$1
    shift
    LOG=$(mktemp "${TMPDIR:-/tmp}/opi-spdk-log.XXXXXX")
    say "$STEP"
    heartbeat "$began" &
    HEARTBEAT=$!
    disown
    call into_log "$@"
    stop_heartbeat
    rm -f "$LOG"
    say "$STEP: done in $((SECONDS - began)) s"
    STEP=
}

into_log() { "$@" >"$LOG" 2>&1 </dev/null; }

# stage NAME COMMAND...: the same for what speaks for itself, as cargo does: its output is shown.
stage() {
    STEP=$1 LOG=
    shift
    say "$STEP"
    call "$@"
    STEP=
}

# Shows the time and the last line of the log until the step is over. `sleep` outlives its
# parent by some seconds and so holds neither the lock nor anybody's pipe.
heartbeat() {
    while sleep 15 &>/dev/null 9>&- && kill -0 $$ 2>/dev/null; do
        printf '    %4d s  %s\n' $((SECONDS - $1)) "$(grep . "$LOG" | tail -n 1 | cut -c 1-90)" >&2
    done
}

stop_heartbeat() {
    [[ -z $HEARTBEAT ]] || kill "$HEARTBEAT" 2>/dev/null || true
    HEARTBEAT=
}

on_exit() {
    local status=$?
    trap - EXIT
    stop_heartbeat
    if [[ -n $CHILD ]]; then
        kill -- "-$CHILD" 2>/dev/null || true
        wait "$CHILD" || true # it may still write to what is removed below
    fi
    if ((status)) && [[ -n $STEP ]]; then
        [[ -z $LOG ]] || tail -n 25 "$LOG" | sed 's/^/    | /' >&2
        say "FAILED: $STEP (exit status $status)${LOG:+; the whole output is in $LOG}"
    fi
    ((${#SCRATCH[@]} == 0)) || rm -rf -- "${SCRATCH[@]}"
    exit "$status"
}
trap on_exit EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Only one script at a time changes the machine or the cache. The lock (descriptor 9) is also held by
# the commands that were started meanwhile, so it outlives a script that is killed.
lock() {
    [[ $CACHE != *[[:space:]]* ]] || die "the cache directory '$CACHE' must have no space in its name (make cannot build there); set OPI_SPDK_CACHE"
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    flock -n 9 || {
        say "waiting for another run that is setting up ($CACHE/lock)"
        flock 9
    }
}

# Takes over what env.sh prints.
load_env() {
    local variables
    variables=$(bash "$SCRIPTS/env.sh")
    eval "$variables"
}
