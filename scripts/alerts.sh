#!/usr/bin/env bash
# alerts.sh: tests the Prometheus rules (alerts, rates, alternative metric names) with promtool, from Debian's package
# prometheus (100 MB, installed only here).

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

command -v promtool >/dev/null || call bash "$SCRIPTS/packages.sh" prometheus
cd "$ROOT/deploy/prometheus"
promtool check rules alerts.yml rates.yml ceph-nvmeof.yml
promtool check config --syntax-only ../compose/prometheus.yml
promtool test rules alerts.test.yml rates.test.yml ceph-nvmeof.test.yml
