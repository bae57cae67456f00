#!/usr/bin/env bash
# `make demo`: brings up the local control plane, applies the quickstart and shows the run go to its end.
set -euo pipefail
cd "$(dirname "$0")/.."
dalang=.venv/bin/dalang

say() { printf '\n\033[1m▸ %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

say "A Kubernetes API server, Temporal and the operator, on this machine"
"$dalang" dev up --detach
eval "$("$dalang" dev env)"
state=$(dirname "$KUBECONFIG")
# What is printed is for another shell, which does not have this one's DALANG_DEV_STATE_DIR.
elsewhere=
[ "$state" = "$HOME/.local/state/dalang/dev" ] || elsewhere=$(printf ' --state-dir %q' "$state")

say "An agent, its model, a tool in a ConfigMap, and a run"
kubectl delete agentrun hello --ignore-not-found >/dev/null   # of an earlier demo
run kubectl apply -f examples/quickstart

say "The run, until it ends"
kubectl get agentrun hello --watch --output-watch-events=false &
watch=$!
trap 'kill $watch 2>/dev/null || true' EXIT
kubectl wait agentrun/hello --for='jsonpath={.status.finishedAt}' --timeout=180s >/dev/null
kill $watch 2>/dev/null || true
wait $watch 2>/dev/null || true

say "Its status"
run kubectl get agentrun hello -o yaml

phase=$(kubectl get agentrun hello -o 'jsonpath={.status.phase}')
[ "$phase" = Succeeded ] || { echo "The run is $phase; see: $dalang dev logs operator$elsewhere" >&2; exit 1; }
cat <<EOF

It all goes on running. In a shell of yours:
  eval "\$($dalang dev env$elsewhere)"            # KUBECONFIG, TEMPORAL_ADDRESS, and kubectl on the PATH
  kubectl get dalang                    # everything of Dalang's
  kubectl explain agentrun.spec
  $dalang dev status$elsewhere                    # the parts, and where Temporal's web UI is
  $dalang dev down$elsewhere                      # stop it; its data stays for the next 'up'
EOF
