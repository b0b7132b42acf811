# shellcheck shell=bash
# What is tried on the cluster: connections between all pods, the guide's steps, and Kubernetes' own tests.

# Pings and HTTP between the pods of all nodes, by their addresses of both families.
smoke() {
  local n address addresses bad=0
  must_be_up
  kubectl delete pods -l app=smoke --now >/dev/null
  for n in "${NODES[@]}"; do
    kubectl run "smoke-$n" --image="$AGNHOST" --labels=app=smoke --overrides="{\"spec\": {\"nodeName\": \"k8s-n$n\"}}" -- \
      netexec --http-port=80
  done
  kubectl wait --for=condition=Ready pods -l app=smoke --timeout=90s >/dev/null
  addresses=$(kubectl get pods -l app=smoke -o jsonpath='{range .items[*]}{range .status.podIPs[*]}{.ip}{"\n"}{end}{end}')
  for n in "${NODES[@]}"; do
    for address in $addresses; do
      smoke_one "smoke-$n" "$address" || bad=1
    done
  done
  kubectl delete pods -l app=smoke --now >/dev/null
  return $bad
}

smoke_one() {
  local ping=ok http=ok url=$2:80
  [[ $2 != *:* ]] || url=[$2]:80
  kubectl exec "$1" -- ping -c1 -W2 "$2" >/dev/null 2>&1 || ping=FAILED
  kubectl exec "$1" -- curl -sS -m 3 "http://$url/hostname" >/dev/null 2>&1 || http=FAILED
  echo "$1 -> $2: ping $ping, HTTP $http"
  [ $ping$http = okok ]
}

# The steps of docs/guides/kind.md after the installation. agnhost, which speaks HTTP, stands for nginx and mysql, and the Service is
# asked by its address, since there is no DNS.
guide() {
  local policies=$NETPOLC/samples/course/policies.yaml db front node GUIDE_FAILED=0
  must_be_up
  kubectl delete --ignore-not-found --now pod/frontend pod/backend pod/mysql service/db >/dev/null
  kubectl run frontend --image="$AGNHOST" --labels=role=frontend -- netexec --http-port=80
  kubectl run backend --image="$AGNHOST" --labels=role=backend -- netexec --http-port=80
  kubectl run mysql --image="$AGNHOST" --labels=name=mysql -- netexec --http-port=3306
  kubectl expose pod mysql --name=db --port=3306
  kubectl wait --for=condition=Ready pod/frontend pod/backend pod/mysql --timeout=90s >/dev/null
  db=$(kubectl get service db -o jsonpath='{.spec.clusterIP}'):3306
  front=$(kubectl get pod frontend -o jsonpath='{.status.podIP}')
  expect open backend "$db"
  expect open frontend "$db"
  kubectl apply -f "$policies"
  sleep 1
  expect open backend "$db"
  expect closed frontend "$db"
  node=$(kubectl get pod mysql -o jsonpath='{.spec.nodeName}')
  status "${node#k8s-n}"
  kubectl apply -f - <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: default-deny-ingress }
spec: { podSelector: {}, policyTypes: [Ingress] }
YAML
  sleep 1
  expect closed backend "$front"
  expect open backend "$db"
  kubectl delete networkpolicy default-deny-ingress
  sleep 1
  expect open backend "$front"
  kubectl delete -f "$policies"
  kubectl delete --now pod/frontend pod/backend pod/mysql service/db >/dev/null
  return "$GUIDE_FAILED"
}

# expect open|closed POD ADDRESS: with curl's status 28, which is a timeout, for closed.
expect() {
  local status=0 found
  kubectl exec "$2" -- curl -sS -m 3 "http://$3/hostname" >/dev/null 2>&1 || status=$?
  case $status in 0) found=open ;; 28) found=closed ;; *) found="status $status" ;; esac
  [ "$found" = "$1" ] || { GUIDE_FAILED=1; found="$found, AND NOT $1"; }
  echo "$2 -> $3: $found"
}

# The tests of NetworkPolicy that Kubernetes 1.20 has, but for SCTP's.
EXPECTED=29
GROUP_A='default-deny|MatchExpressions|based on PodSelector or|based on PodSelector and NamespaceSelector|API operations'
GROUP_B='based on PodSelector \[|from a different namespace, based|based on Ports|multiple|allow-all policy \[|after they are deleted'

# e2e [PATTERN]: those whose name matches, or all, in three processes side by side since they mostly wait.
e2e() {
  local name log total passed failed bad=0
  must_be_up
  log=$LOGS/e2e-$(date +%Y%m%d-%H%M%S)
  mkdir -p "$log"
  ln -sfn "${log##*/}" "$LOGS/e2e-latest"
  # Images are asked for by names of no registry.
  for name in promoterE2eRegistry dockerLibraryRegistry gcRegistry; do echo "$name: localhost"; done > "$log/registries.yaml"
  say "logs: $log"
  E2E=()
  trap 'kill "${E2E[@]}" 2>/dev/null' EXIT
  if [ -n "${1:-}" ]; then
    e2e_process "$log/a" "($1)" SCTP & E2E+=($!)
  else
    e2e_process "$log/a" "($GROUP_A)" SCTP & E2E+=($!)
    e2e_process "$log/b" "($GROUP_B)" SCTP & E2E+=($!)
    e2e_process "$log/c" "" "SCTP|$GROUP_A|$GROUP_B" & E2E+=($!)
  fi
  for name in "${E2E[@]}"; do wait "$name" || bad=1; done
  trap - EXIT
  grep -h '^\[Fail\]' "$log"/*.log || true
  passed=$(sum Passed "$log") failed=$(sum Failed "$log") total=$((passed + failed))
  say "$total tests, $passed passed, $failed failed"
  [ "$failed" = 0 ] || bad=1
  if [ -z "${1:-}" ]; then
    [ "$total" = $EXPECTED ] || { echo "$EXPECTED tests were expected"; bad=1; }
  else
    [ "$total" -gt 0 ] || { echo "no test has such a name"; bad=1; }
  fi
  return $bad
}

# Its number of nodes is that of those that run pods.
e2e_process() {
  cd "$LOGS" || exit
  KUBE_TEST_REPO_LIST=${1%/*}/registries.yaml exec nsenter --target "$(node_pid 0)" --net -- timeout 5400 nice -n 10 \
    "$BIN/e2e.test" --provider=skeleton --kubeconfig "$WORK/admin.kubeconfig" --num-nodes=3 --minStartupPods=0 \
    --report-dir="$1" -ginkgo.noColor -ginkgo.focus="NetworkPolicy.*$2" -ginkgo.skip="$3" > "$1.log" 2>&1
}

# Ginkgo's last line is as "SUCCESS! -- 9 Passed | 0 Failed | 0 Pending | 5658 Skipped".
sum() { sed -n "s/^[A-Z]*! --.* \([0-9][0-9]*\) $1 .*/\1/p" "$2"/*.log | awk '{ n += $1 } END { print n + 0 }'; }

# try BACKEND CNI [DIRECTORY]: all of it for one backend and one mode, up to the first failure; with a directory by hand.
try() {
  [[ $# = 2 || $# = 3 ]] || fail "usage: cluster try BACKEND CNI [DIRECTORY]"
  local step first="deploy $1 $2"
  [ $# = 2 ] || first="by-hand $3 $1 $2"
  for step in "$first" smoke guide e2e undeploy; do
    say "$step"
    # shellcheck disable=SC2086
    "$HERE/cluster" $step || fail "try $*: $step failed"
  done
  say "$*: everything passed"
}
