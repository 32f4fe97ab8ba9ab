#!/usr/bin/env bash
# kubernetes.sh: checks deploy/kubernetes by Kubernetes' own schema, as kustomize (or kubectl) renders it. The checker is taken from Python's package index into target/kubernetes.

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
    die "neither kustomize nor kubectl is installed: go install sigs.k8s.io/kustomize/kustomize/v5@v5.6.0"
fi
for dir in base overlays/*; do
    "${render[@]}" "$dir" >"$work/${dir//\//-}.yaml"
    check "$work/${dir//\//-}.yaml"
done
