#!/usr/bin/env bash
# kubernetes.sh: checks deploy/kubernetes by Kubernetes' own schema, as it is applied where there is a kustomize (or
# kubectl), else file by file. The checker is taken from Python's package index into target/kubernetes.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

CHECKER=kubernetes-validate==1.37.0
cd "$ROOT/deploy/kubernetes"
work=$ROOT/target/kubernetes
check() { "$work/bin/kubernetes-validate" --strict "$@"; }

if [[ ! -x $work/bin/kubernetes-validate ]]; then
    call bash "$SCRIPTS/packages.sh" python3-venv
    step "getting $CHECKER" bash -c 'python3 -m venv "$1" && "$1/bin/pip" install --quiet "$2"' - "$work" "$CHECKER"
fi
if command -v kustomize >/dev/null; then
    render=(kustomize build)
elif command -v kubectl >/dev/null; then
    render=(kubectl kustomize)
else
    say "neither kustomize nor kubectl is there: each file is checked as it is"
    check $(find . -name '*.yaml' ! -name kustomization.yaml ! -path './overlays/*')
    exit
fi
for dir in base overlays/*; do
    "${render[@]}" "$dir" >"$work/${dir//\//-}.yaml"
    check "$work/${dir//\//-}.yaml"
done
