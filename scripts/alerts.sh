#!/usr/bin/env bash
# alerts.sh: tests the rules: alerts, rates, and metrics' other names, with Prometheus' own promtool, which comes with
# Debian's package of it (100 MB: installed only here).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

command -v promtool >/dev/null || call bash "$SCRIPTS/packages.sh" prometheus
cd "$ROOT/deploy/prometheus"
promtool check rules alerts.yml rates.yml ceph-nvmeof.yml
promtool check config --syntax-only ../compose/prometheus.yml
promtool test rules alerts.test.yml rates.test.yml ceph-nvmeof.test.yml
