# Sourced. The lab's Prometheus, scraping its target with the configuration and the rules of deploy/. Its image is made
# from Debian's package, under the name in the lab. Debian has no packages of Grafana, the collector and the trace
# viewer.

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
    prometheus_image
    check "Prometheus and the target come up" env COMPOSE_PROFILES=observe "${COMPOSE[@]}" up -d opi-spdk-server prometheus
    check "Prometheus scrapes the target" scrapes
    check "the rules are loaded and evaluated" evaluates
    check "a target that is down is told of" alerts
    COMPOSE_PROFILES=observe "${COMPOSE[@]}" down -v --timeout 10 &>/dev/null || true
}
