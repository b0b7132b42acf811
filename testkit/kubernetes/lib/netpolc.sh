# shellcheck shell=bash
# netpolc into the cluster, and out again, as docs/guides/any-cluster.md says.

# deploy [BACKEND [CNI [ARGUMENTS OF THE LOADER...]]]
deploy() {
  local backend=${1:-auto} cni=${2:-ptp} argument more=""
  shift $(($# < 2 ? $# : 2))
  [[ $backend =~ ^(auto|ebpf|nftables|iptables)$ && $cni =~ ^(ptp|chain|none)$ ]] ||
    fail "usage: cluster deploy [auto|ebpf|nftables|iptables [ptp|chain|none [ARGUMENTS OF THE LOADER...]]]"
  must_be_up
  [ "$cni" = ptp ] || other_cni add
  for argument in "--backend=$backend" "$@"; do more+="\n\1- $argument"; done
  sed -e "s/--cni=ptp$/--cni=$cni/" -e "s|^\( *\)- run$|&$more|" "$MANIFEST" > "$RUN/netpolc.yaml"
  [ "$(grep -c -e "- --cni=$cni" -e "- --backend=$backend" "$RUN/netpolc.yaml")" = 3 ] || fail "$MANIFEST is not as it was expected"
  kubectl apply -f "$RUN/netpolc.yaml" >/dev/null
  kubectl -n netpolc-system rollout status daemonset/netpolc --timeout=180s
  kubectl wait --for=condition=Ready nodes --all --timeout=120s
}

# by-hand DIRECTORY [BACKEND [CNI]]: both programs of a directory on each node, without a DaemonSet.
by_hand() {
  local directory=${1:-} backend=${2:-auto} cni=${3:-ptp} n program
  [[ -x $directory/netpol-loader && $backend =~ ^(auto|ebpf|nftables|iptables)$ && $cni =~ ^(ptp|chain|none)$ ]] ||
    fail "usage: cluster by-hand DIRECTORY [auto|ebpf|nftables|iptables [ptp|chain|none]]"
  must_be_up
  ! kubectl -n netpolc-system get daemonset netpolc >/dev/null 2>&1 || fail "there is a DaemonSet (cluster undeploy)"
  [ "$cni" = ptp ] || other_cni add
  agents_kubeconfig
  for n in "${NODES[@]}"; do
    in_node "$n" install -d -m 0755 /etc/netpolc /opt/netpolc
    for program in netpol-{agent,loader,cni}; do
      in_node "$n" sh -c "cat > /opt/netpolc/$program && chmod 755 /opt/netpolc/$program" < "$directory/$program"
    done
    in_node "$n" sh -c 'umask 077; cat > /etc/netpolc/kubeconfig; chown 65532:65532 /etc/netpolc/kubeconfig' < "$RUN/netpolc.kubeconfig"
    start "$n" loader /opt/netpolc/netpol-loader run "--backend=$backend" "--cni=$cni" --socket-group=65532
    start "$n" agent setpriv --reuid=65532 --regid=65532 --clear-groups /opt/netpolc/netpol-agent \
      --kubeconfig /etc/netpolc/kubeconfig --node "k8s-n$n" "--cni=$cni"
  done
  for n in "${NODES[@]}"; do retry 60 in_node "$n" curl -fsS http://127.0.0.1:9475/readyz; done
  kubectl wait --for=condition=Ready nodes --all --timeout=120s
}

# The rights of the manifest's ClusterRole and no others. The token is that of a Secret, since Kubernetes 1.20 has no `create token`, and
# the file is written here: built with Go 1.19, this `kubectl config` crashes when it writes one.
agents_kubeconfig() (
  umask 077
  kubectl apply -f "$MANIFEST" -l app.kubernetes.io/component=access >/dev/null
  kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Secret
metadata:
  name: netpolc-token
  namespace: netpolc-system
  annotations: { kubernetes.io/service-account.name: netpolc }
type: kubernetes.io/service-account-token
YAML
  # shellcheck disable=SC2317
  has_token() { [ -n "$(kubectl -n netpolc-system get secret netpolc-token -o jsonpath='{.data.token}')" ]; }
  retry 20 has_token
  config=$RUN/netpolc.kubeconfig
  cat > "$config" <<CONF
apiVersion: v1
kind: Config
clusters: [{ name: k8s, cluster: { server: "https://$CONTROL4:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt") } }]
users: [{ name: netpolc, user: { token: $(kubectl -n netpolc-system get secret netpolc-token -o jsonpath='{.data.token}' | base64 -d) } }]
contexts: [{ name: k8s, context: { cluster: k8s, user: netpolc } }]
current-context: k8s
CONF
  own() { in_net 0 "$BIN/kubectl" --kubeconfig "$config" --cache-dir "$RUN/kubectl-netpolc" auth can-i "$@" -A || true; }
  [ "$(own list pods) $(own list secrets)" = "yes no" ] || fail "the agents' rights are not those of the manifest"
)

is_by_hand() { [ -e "$RUN/n1/loader.pid" ]; }

# Whichever of the two is there.
undeploy() {
  local n left=0
  must_be_up
  if is_by_hand; then end_by_hand; else end_daemonset; fi
  kubectl delete -f "$MANIFEST" --ignore-not-found >/dev/null
  other_cni remove
  for n in "${NODES[@]}"; do
    [ -z "$(left_on "$n")" ] || { echo "left on node $n: $(left_on "$n")"; left=1; }
  done
  return $left
}

end_daemonset() {
  kubectl -n netpolc-system delete daemonset netpolc --ignore-not-found
  # It is an error if they are gone already.
  kubectl -n netpolc-system wait --for=delete pod -l app.kubernetes.io/name=netpolc --timeout=60s || true
  kubectl apply -f "$NETPOLC/runtime-loader/deploy/uninstall.yaml"
  kubectl -n netpolc-system rollout status daemonset/netpolc-uninstall --timeout=120s
  kubectl -n netpolc-system logs -l app.kubernetes.io/name=netpolc-uninstall -c remove --prefix --tail=-1
}

end_by_hand() {
  local n program file
  for n in "${NODES[@]}"; do
    for program in agent loader; do
      file=$RUN/n$n/$program.pid
      [ -s "$file" ] || continue
      # It is an error if it has ended by itself.
      in_node "$n" kill "$(cat "$file")" || true
      retry 20 in_node "$n" sh -c "! kill -0 $(cat "$file")"
      rm "$file"
    done
    # Nodes that by-hand did not come to have nothing.
    in_node "$n" test -x /opt/netpolc/netpol-loader || continue
    in_node "$n" /opt/netpolc/netpol-loader remove --cni
    in_node "$n" rm -rf /etc/netpolc /opt/netpolc
  done
}

# status N: what the loader of node N says.
status() {
  if is_by_hand; then
    in_node "$1" /opt/netpolc/netpol-loader status
  else
    kubectl -n netpolc-system exec "$(kubectl -n netpolc-system get pod -o name --field-selector "spec.nodeName=k8s-n$1")" -c loader -- \
      netpol-loader status
  fi
}

# What a node has of netpolc: routes of its protocol, and files, tables, chains and sets with its name.
left_on() {
  in_node "$1" sh -c '
    ip route show proto 110; ip -6 route show proto 110
    { ls -d /etc/cni/net.d/* /opt/cni/bin/* /sys/fs/bpf/* /var/lib/netpolc/* /run/netpolc/[!b]*; ipset list -name
      nft list tables; iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save; } | grep -i netpol' 2>/dev/null || true
}

# other_cni add|remove: for a deployment that does not make the pods' network, the plugins ptp and host-local, with routes between the
# nodes. They do not masquerade, since then policies of other nodes would not see the pod, so the control plane needs routes too.
other_cni() {
  local n m pods4 pods6 file=/etc/cni/net.d/10-other.conflist verb=replace
  for n in "${NODES[@]}"; do
    if [ "$1" = remove ]; then
      in_node "$n" test -e $file || continue
      in_node "$n" rm $file
      verb=del
    fi
    read -r pods4 pods6 <<< "$(kubectl get node "k8s-n$n" -o jsonpath='{.spec.podCIDRs[0]} {.spec.podCIDRs[1]}')"
    for m in "${ALL[@]}"; do
      [ "$m" = "$n" ] && continue
      in_net "$m" ip route $verb "$pods4" via "$(node4 "$n")"
      in_net "$m" ip -6 route $verb "$pods6" via "$(node6 "$n")"
    done
    [ "$1" = add ] || continue
    in_net "$n" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    in_node "$n" sh -c "cat > $file" <<CONF
{ "cniVersion": "0.4.0", "name": "other", "plugins": [
  { "type": "ptp", "ipam": { "type": "host-local", "dataDir": "/run/other-ipam",
    "ranges": [[{ "subnet": "$pods4" }], [{ "subnet": "$pods6" }]], "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
CONF
  done
}
