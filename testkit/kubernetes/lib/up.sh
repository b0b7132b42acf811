# shellcheck shell=bash
# The cluster: nodes that are namespaces, the network between them, certificates, daemons. What is there already is left.

up() {
  local n
  check_machine
  [[ -x $BIN/e2e.test && -x $BIN/pause ]] || fail "there is nothing built in $BIN (cluster build)"
  renice -n 10 $$ >/dev/null
  mkdir -p "$RUN" "$LOGS" "$IMAGES"
  for n in "${ALL[@]}"; do alive "$n" || start_node "$n"; done
  connect_nodes
  [ -e "$PKI/complete" ] || make_certificates
  say "nodes are there"
  start_control_plane
  say "the API server is ready"
  make_test_images
  for n in "${NODES[@]}"; do start_containerd "$n"; done
  for n in "${NODES[@]}"; do retry 30 in_node "$n" ctr version; import_images "$n"; done
  say "images are imported"
  for n in "${NODES[@]}"; do start_kubelet "$n"; start_proxy "$n"; done
  for n in "${NODES[@]}"; do retry 60 kubectl get node "k8s-n$n"; done
  retry 30 kubectl get serviceaccount default
  say "the cluster is up; its nodes are ready when there is a network (cluster deploy)"
}

# A node's processes are below one cgroup in every hierarchy, with half the share of other work.
make_cgroups() {
  local c d top
  for c in /sys/fs/cgroup/*/; do
    top=$c/netpolc-kubernetes
    mkdir -p "$top/n$1"
    if [ -e "$c/cpuset.cpus" ]; then
      for d in "$top" "$top/n$1"; do cat "$c/cpuset.cpus" > "$d/cpuset.cpus"; cat "$c/cpuset.mems" > "$d/cpuset.mems"; done
    fi
    if [ -e "$top/cpu.shares" ]; then echo 512 > "$top/cpu.shares"; fi
  done
}

start_node() {
  local n=$1 dir=$RUN/n$1
  rm -rf "$dir"
  mkdir -p "$dir"
  make_cgroups "$n"
  (
    for c in /sys/fs/cgroup/*/; do echo "$BASHPID" > "$c/netpolc-kubernetes/n$n/cgroup.procs"; done
    exec setsid unshare --fork --kill-child --pid --mount --uts --net --ipc --cgroup --mount-proc "$HERE/lib/machine.sh" "$n"
  ) > "$dir/machine.log" 2>&1 < /dev/null &
  retry 10 test -e "$dir/ready" || fail "node $n: $(cat "$dir/machine.log")"
  pgrep -P $! > "$dir/pid"
  retry 5 alive "$n"
}

connect_nodes() {
  local n
  if ! in_net 0 ip link show br0 >/dev/null 2>&1; then
    in_net 0 ip link add br0 type bridge
    in_net 0 ip addr add "$CONTROL4/24" dev br0
    in_net 0 ip addr add "$CONTROL6/64" dev br0 nodad
    in_net 0 ip link set br0 up
  fi
  for n in "${NODES[@]}"; do
    in_net "$n" ip link show eth0 >/dev/null 2>&1 && continue
    in_net 0 ip link add "veth$n" type veth peer name eth0 netns "$(node_pid "$n")"
    in_net 0 ip link set "veth$n" master br0 up
    in_net "$n" ip addr add "$(node4 "$n")/24" dev eth0
    in_net "$n" ip addr add "$(node6 "$n")/64" dev eth0 nodad
    in_net "$n" ip link set eth0 up
    in_net "$n" ip route add default via "$CONTROL4"
    in_net "$n" ip -6 route add default via "$CONTROL6"
  done
}

# certificate NAME SUBJECT [NAMES]: NAME.key, NAME.crt and NAME.conf, a kubeconfig with them.
certificate() {
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  printf 'extendedKeyUsage=clientAuth,serverAuth\n%s\n' "${3:+subjectAltName=$3}" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile "$1.ext"
  rm "$1.csr" "$1.ext"
  cat > "$1.conf" <<CONF
apiVersion: v1
kind: Config
clusters: [{ name: k8s, cluster: { server: "https://$CONTROL4:6443", certificate-authority-data: $(base64 -w0 ca.crt) } }]
users: [{ name: $1, user: { client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key") } }]
contexts: [{ name: k8s, context: { cluster: k8s, user: $1 } }]
current-context: k8s
CONF
}

# All that openssl says goes to a file, since most of it is dots.
make_certificates() (
  umask 077
  rm -rf "$PKI"
  mkdir -p "$PKI"
  cd "$PKI" || exit
  exec 2> "$LOGS/openssl.log"
  openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=k8s-ca
  openssl genrsa -out sa.key 2048
  openssl rsa -in sa.key -pubout -out sa.pub
  certificate apiserver /CN=kube-apiserver \
    "DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$CONTROL4,IP:$CONTROL6"
  certificate admin /O=system:masters/CN=admin
  certificate controllers /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  for n in "${NODES[@]}"; do certificate "n$n" "/O=system:nodes/CN=system:node:k8s-n$n"; done
  cp admin.conf "$WORK/admin.kubeconfig"
  touch complete
)

# start N NAME COMMAND...: in node N, unless it runs; its log is run/nN/NAME.log.
start() {
  local n=$1 file=$RUN/n$1/$2
  shift 2
  if [ -s "$file.pid" ] && in_node "$n" sh -c "kill -0 $(cat "$file.pid")" 2>/dev/null; then return; fi
  rm -f "$file.pid"
  # shellcheck disable=SC2016
  in_node "$n" setsid sh -c 'echo $$ > "$0"; exec "$@"' "$file.pid" "$@" >> "$file.log" 2>&1 < /dev/null &
  retry 10 test -s "$file.pid"
}

start_control_plane() {
  local gate=--feature-gates=IPv6DualStack=true
  start 0 etcd etcd --data-dir /run/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  start 0 apiserver kube-apiserver $gate --etcd-servers=http://127.0.0.1:2379 --advertise-address="$CONTROL4" --bind-address=0.0.0.0 \
    --service-cluster-ip-range="$SERVICES" --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" \
    --tls-private-key-file="$PKI/apiserver.key" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/sa.pub" \
    --service-account-signing-key-file="$PKI/sa.key" --kubelet-client-certificate="$PKI/admin.crt" \
    --kubelet-client-key="$PKI/admin.key" --kubelet-preferred-address-types=InternalIP --allow-privileged=true
  retry 60 kubectl get --raw /readyz
  start 0 controllers kube-controller-manager $gate --kubeconfig="$PKI/controllers.conf" --root-ca-file="$PKI/ca.crt" \
    --service-account-private-key-file="$PKI/sa.key" --use-service-account-credentials --allocate-node-cidrs=true \
    --cluster-cidr="$PODS" --node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64 --service-cluster-ip-range="$SERVICES" \
    --leader-elect=false --node-monitor-grace-period=90s
  start 0 scheduler kube-scheduler $gate --kubeconfig="$PKI/scheduler.conf" --leader-elect=false
}

start_containerd() {
  local config=$RUN/n$1/containerd.toml restrict=false capabilities
  # Without CAP_SYS_RESOURCE (bit 24) nobody can lower an oom_score_adj, and containers would not start.
  capabilities=$(awk '/^CapEff/ { print $2 }' /proc/self/status)
  (((0x$capabilities >> 24) & 1)) || restrict=true
  cat > "$config" <<CONF
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '$PAUSE'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = $restrict
CONF
  start "$1" containerd containerd --config "$config"
}

start_kubelet() {
  local n=$1 config=$RUN/n$1/kubelet.yaml
  cat > "$config" <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: $PKI/ca.crt } }
authorization: { mode: Webhook }
cgroupDriver: cgroupfs
failSwapOn: false
featureGates: { IPv6DualStack: true }
# Images cannot be had again, so the disk's filling up is no reason to remove them.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: { memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1% }
CONF
  start "$n" kubelet kubelet --config="$config" --kubeconfig="$PKI/n$n.conf" --hostname-override="k8s-n$n" \
    --node-ip="$(node4 "$n"),$(node6 "$n")" --container-runtime=remote --network-plugin=cni \
    --container-runtime-endpoint=unix:///run/containerd/containerd.sock --pod-infra-container-image="$PAUSE"
}

# Connection limits are the whole kernel's, so kube-proxy leaves them.
start_proxy() {
  start "$1" proxy kube-proxy --feature-gates=IPv6DualStack=true --kubeconfig="$PKI/proxy.conf" --hostname-override="k8s-n$1" \
    --proxy-mode=iptables --cluster-cidr="$PODS" --conntrack-max-per-core=0 --conntrack-min=0 \
    --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
}

# Namespaces and mounts go with the process 1 of a node.
down() {
  local n pid top left=0
  for n in "${NODES[@]}" 0; do
    if alive "$n"; then
      pid=$(node_pid "$n")
      kill -9 "$pid"
      retry 20 test ! -e "/proc/$pid"
    fi
  done
  for top in /sys/fs/cgroup/*/netpolc-kubernetes; do
    for _ in {1..20}; do
      find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$top" ] || continue 2
      sleep 0.5
    done
    echo "left: $top" >&2
    left=1
  done
  rm -rf "$RUN"
  return $left
}
