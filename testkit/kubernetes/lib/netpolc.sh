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

undeploy() {
  local n left=0
  must_be_up
  kubectl -n netpolc-system delete daemonset netpolc --ignore-not-found
  # It is an error if they are gone already.
  kubectl -n netpolc-system wait --for=delete pod -l app.kubernetes.io/name=netpolc --timeout=60s || true
  kubectl apply -f "$NETPOLC/runtime-loader/deploy/uninstall.yaml"
  kubectl -n netpolc-system rollout status daemonset/netpolc-uninstall --timeout=120s
  kubectl -n netpolc-system logs -l app.kubernetes.io/name=netpolc-uninstall -c remove --prefix --tail=-1
  kubectl delete -f "$MANIFEST" --ignore-not-found >/dev/null
  other_cni remove
  for n in "${NODES[@]}"; do
    [ -z "$(left_on "$n")" ] || { echo "left on node $n: $(left_on "$n")"; left=1; }
  done
  return $left
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
