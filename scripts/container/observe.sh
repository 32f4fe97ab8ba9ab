# Sourced. The lab's default profile without Grafana, of which there is neither a Debian package nor a Go module with its
# page: Prometheus, scraping its target with the configuration and the rules of deploy/, and the collector and the trace viewer,
# with the calls of the target. Their images are made under the names in the lab, from Debian's package and from Go modules.

prometheus_image() {
    local name dir
    name=$(awk '$1 == "image:" && $2 ~ /^prom\// { print $2 }' deploy/compose/compose.yaml)
    docker image inspect "$name" &>/dev/null && return
    dir=$(mktemp -d "$WORK/prometheus-XXXXXX")
    SCRATCH+=("$dir")
    cat >"$dir/Dockerfile" <<'EOF'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ENTRYPOINT ["prometheus"]
EOF
    step "image of Prometheus" docker build --network host -t "$name" "$dir"
}

# Jaeger 2.13.0. It is built of the OpenTelemetry collector, so it is also the lab's collector here, by the collector's file.
JAEGER=github.com/jaegertracing/jaeger/cmd/jaeger@v1.76.0

# get_jaeger: builds it into target/traces, for which two cores take some minutes. `go install` refuses a module that replaces
# others.
get_jaeger() {
    local dir=$ROOT/target/traces
    PATH=$PATH:/usr/local/go/bin
    [[ ! -x $dir/jaeger ]] || return 0
    command -v go >/dev/null || return 1
    mkdir -p "$dir"
    [[ -f $dir/go.mod ]] || (cd "$dir" && go mod init traces)
    step "getting $JAEGER" env GOFLAGS=-mod=mod go -C "$dir" get -tool "$JAEGER"
    step "building $JAEGER" env CGO_ENABLED=0 GOFLAGS=-mod=mod go -C "$dir" build -trimpath -ldflags '-s -w' -o jaeger "${JAEGER%@*}"
}

trace_images() {
    local name
    printf 'FROM debian:bookworm-slim\nCOPY jaeger /\nENTRYPOINT ["/jaeger"]\nUSER 10001\n' >"$ROOT/target/traces/Dockerfile"
    for name in $(awk '$1 == "image:" && $2 ~ /^(otel|jaegertracing)\// { print $2 }' deploy/compose/compose.yaml); do
        step "image $name" docker build -t "$name" "$ROOT/target/traces"
    done
}

VIEWER=http://127.0.0.1:16686/api

# traced METHOD TAG VALUE: the viewer has a span of the method, under the service's name in the lab, with this tag.
traced() {
    api --get "$VIEWER/traces" --data-urlencode service=opi-spdk-bridge --data-urlencode "operation=$1" | python3 -c '
import json, sys
spans = [span for trace in json.load(sys.stdin)["data"] for span in trace["spans"]]
tags = [{tag["key"]: str(tag["value"]) for tag in span["tags"]} for span in spans]
print(len(spans), tags[:1])
sys.exit(not any(one.get(sys.argv[1]) == sys.argv[2] for one in tags))' "$2" "$3"
}

# has_traces: calls over HTTP and over gRPC, one that succeeds and one that fails, are found in the viewer, and a caller's trace
# is continued.
has_traces() {
    local trace=0af7651916cd43dd8448eb211c80319c create=opi_api.storage.v1.NullVolumeService/CreateNullVolume
    api -X POST 'http://127.0.0.1:8082/v1/nullVolumes?null_volume_id=traced' -H 'Content-Type: application/json' \
        -H "traceparent: 00-$trace-b7ad6b7169203331-01" -d '{"block_size": 512, "blocks_count": 64}'
    ! api http://127.0.0.1:8082/v1/nullVolumes/missing
    "${COMPOSE[@]}" exec -T opi-spdk-server opi-spdk get NullVolume traced
    eventually 30 traced "$create" rpc.response.status_code OK
    eventually 30 traced "${create/Create/Get}" rpc.response.status_code NOT_FOUND
    eventually 30 traced "${create/Create/Get}" rpc.response.status_code OK
    api "$VIEWER/traces/$trace" | grep -F "$create"
    api "$VIEWER/services" | grep opi-spdk-bridge
}

ask() { api "http://127.0.0.1:9090/api/v1/$1"; }

# holds PATH PYTHON: whether the expression holds for Prometheus' answer, `data`.
holds() { ask "$1" | python3 -c "import json, sys; data = json.load(sys.stdin)['data']; sys.exit(not ($2))"; }

scrapes() {
    eventually 60 holds targets \
        "[(one['scrapePool'], one['health']) for one in data['activeTargets']] == [('opi-spdk', 'up')]"
    # Prometheus parses every line: a single invalid metric would fail the whole scrape.
    holds 'query?query=scrape_samples_scraped' "int(data['result'][0]['value'][1]) > 50"
    holds 'query?query=opi_spdk_memory_free_bytes' "int(float(data['result'][0]['value'][1])) > 0"
}

# All rules of the files are loaded, and each has been evaluated without error.
evaluates() {
    local rules
    rules=$(cat deploy/prometheus/{alerts,rates}.yml | grep -c -e '- alert:' -e '- record:')
    eventually 90 holds rules "(lambda rules: len(rules) == $rules and all(one['health'] == 'ok' for one in rules))(
        [rule for group in data['groups'] for rule in group['rules']])"
}

# An alert whose cause is present becomes pending; it fires if the cause lasts.
alerts() {
    "${COMPOSE[@]}" stop --timeout 10 opi-spdk-server
    eventually 90 holds alerts "any(one['labels']['alertname'] == 'OpiSpdkDown' for one in data['alerts'])"
}

observe_tests() {
    local services=(prometheus)
    prometheus_image
    if get_jaeger; then
        trace_images
        services+=(otel-collector jaeger)
    fi
    check "the target comes up with ${services[*]}" env COMPOSE_PROFILES=observe "${COMPOSE[@]}" up -d opi-spdk-server "${services[@]}"
    if [[ -x $ROOT/target/traces/jaeger ]]; then
        check "calls of the target are found in the trace viewer" has_traces
    else
        skip "calls of the target are found in the trace viewer" "Go is not installed"
    fi
    skip "Grafana with the dashboard" "its image cannot be made here; scripts/deploy.sh checks the dashboard"
    check "Prometheus scrapes the target" scrapes
    check "the rules are loaded and evaluated" evaluates
    check "Prometheus alerts on a target that is down" alerts
    COMPOSE_PROFILES=observe "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
}
