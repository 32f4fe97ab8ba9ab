#!/usr/bin/env bash
# dashboard.sh: checks deploy/grafana/dashboard.json against the types of Grafana's schema, of the version that
# deploy/compose runs. Installs that schema and the compiler of TypeScript into target/grafana with npm.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

TYPESCRIPT=typescript@5.4.5
version=$(sed -n 's|.*image: grafana/grafana:||p' "$ROOT/deploy/compose/compose.yaml")
schema=@grafana/schema@${version:?there is no image of Grafana in deploy/compose/compose.yaml}
work=$ROOT/target/grafana
left_out() { say "the dashboard is not checked against Grafana's schema: $1" && exit; }
command -v npm >/dev/null || left_out "npm is not installed"

mkdir -p "$work"
cd "$work"
if [[ $(cat installed 2>/dev/null) != "$schema $TYPESCRIPT" ]]; then
    [[ -f package.json ]] || echo '{"private": true}' >package.json
    say "getting $schema"
    npm install --ignore-scripts --no-audit --no-fund "$schema" "$TYPESCRIPT" >/dev/null || left_out "npm cannot get it"
    echo "$schema $TYPESCRIPT" >installed
fi
python3 "$SCRIPTS/dashboard.py" ./node_modules/@grafana/schema >check.ts
node_modules/.bin/tsc --noEmit --strict --skipLibCheck --target es2022 --module esnext --moduleResolution bundler check.ts
