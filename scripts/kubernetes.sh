#!/usr/bin/env bash
# kubernetes.sh: checks deploy/kubernetes, rendered by kustomize (or kubectl), against Kubernetes' schema and by
# further rules (container/kubernetes.py). The schema checker is installed from Python's package index into
# target/kubernetes, and kustomize by go if neither tool is present.

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

CHECKER=kubernetes-validate==1.37.0
KUSTOMIZE=sigs.k8s.io/kustomize/kustomize/v5@v5.6.0
cd "$ROOT/deploy/kubernetes"
work=$ROOT/target/kubernetes
PATH=$PATH:$work/bin:/usr/local/go/bin

if [[ ! -x $work/bin/kubernetes-validate ]]; then
    call bash "$SCRIPTS/packages.sh" python3-venv
    step "getting $CHECKER" bash -c 'python3 -m venv "$1" && "$1/bin/pip" install --quiet "$2"' - "$work" "$CHECKER"
fi
if command -v kustomize >/dev/null; then
    render=(kustomize build)
elif command -v kubectl >/dev/null; then
    render=(kubectl kustomize)
elif command -v go >/dev/null; then
    step "getting $KUSTOMIZE" env GOBIN="$work/bin" go install "$KUSTOMIZE"
    render=(kustomize build)
else
    die "neither kustomize, kubectl nor go is installed: go install $KUSTOMIZE"
fi
for dir in base overlays/*; do
    file=$work/${dir//\//-}.yaml
    "${render[@]}" "$dir" >"$file"
    "$work/bin/kubernetes-validate" --strict "$file"
    "$work/bin/python" "$SCRIPTS/container/kubernetes.py" check "$file"
done
