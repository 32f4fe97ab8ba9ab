# Sourced by every script: strict mode, progress, failure reports, cache and lock. Messages go to stderr, so that a
# script's stdout is free for its result.

set -Eeuo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPTS=$ROOT/scripts
CACHE=${OPI_SPDK_CACHE:-${XDG_CACHE_HOME:-${HOME:?must be set, or OPI_SPDK_CACHE}/.cache}/opi-spdk}
CACHE=$(realpath -m -- "$CACHE")

STEP=       # the current step, for the failure report
LOG=        # the log of its output
CHILD=      # its process group
HEARTBEAT=  # the process that shows progress meanwhile
TIMEOUT=    # the process that ends the step at DEADLINE
SCRATCH=()  # removed whenever and however the script ends

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'opi-spdk: %s\n' "$*" >&2
    exit 1
}

# call COMMAND...: runs a command in its own process group and waits for it, so that a signal to this script
# immediately ends the command with all its children. The command may be a function.
call() {
    set -m
    "$@" &
    CHILD=$!
    set +m
    if [[ -n ${DEADLINE:-} && -n $STEP ]]; then
        end_at_deadline "$CHILD" &
        TIMEOUT=$!
        disown
    fi
    wait "$CHILD"
    stop_timeout
    CHILD=
}

# end_at_deadline GROUP: ends the process group of a step once DEADLINE, in seconds since 1970, has passed: a test that hangs
# fails the run with the name of its step. `sleep` outlives its parent by some seconds, so it inherits neither lock nor pipe.
end_at_deadline() {
    trap - EXIT
    while (($(date +%s) < DEADLINE)); do
        sleep 5 &>/dev/null 9>&-
        kill -0 $$ 2>/dev/null || return 0
    done
    say "'$STEP' still runs at the deadline of the whole run: it is ended"
    # stop_timeout shall not keep it from ending what ignores SIGTERM.
    trap '' TERM
    exec &>/dev/null 9>&-
    kill -- "-$1" || true
    sleep 10
    kill -KILL -- "-$1" || true
}

stop_timeout() {
    [[ -z $TIMEOUT ]] || kill "$TIMEOUT" 2>/dev/null || true
    TIMEOUT=
}

# step NAME COMMAND...: calls the command with its output in a log, and reports its result.
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

# stage NAME COMMAND...: like step, but shows the output of the command, such as cargo.
stage() {
    STEP=$1 LOG=
    shift
    say "$STEP"
    call "$@"
    STEP=
}

# Shows the time and the last line of the log until the step ends. `sleep` outlives its parent by some seconds, so it
# inherits neither the lock nor a pipe.
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
    stop_timeout
    if [[ -n $CHILD ]]; then
        kill -- "-$CHILD" 2>/dev/null || true
        wait "$CHILD" || true # it may still write to files that are removed below
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

# Serializes scripts that change the machine or the cache. The lock (descriptor 9) is inherited by the commands started
# meanwhile, so it outlives a script that is killed.
lock() {
    [[ $CACHE != *[[:space:]]* ]] || die "the cache directory '$CACHE' must have no space in its name (make cannot build there); set OPI_SPDK_CACHE"
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    flock -n 9 || {
        say "waiting for another run that is setting up ($CACHE/lock)"
        flock 9
    }
}

# Applies the variables printed by env.sh.
load_env() {
    local variables
    variables=$(bash "$SCRIPTS/env.sh")
    eval "$variables"
}
