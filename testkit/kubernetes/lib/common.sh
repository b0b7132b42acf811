# shellcheck shell=bash
# What all the other files need: where things are, and how to act inside a node. Sourced by cluster and by lib/machine.sh.
# shellcheck disable=SC2034

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
NETPOLC=${NETPOLC:-$(cd "$HERE/../.." && pwd -P)}
export WORK=${NETPOLC_KUBERNETES:-/var/tmp/netpolc-kubernetes}
BIN=$WORK/bin RUN=$WORK/run PKI=$WORK/pki IMAGES=$WORK/images LOGS=$WORK/logs
export PATH=$BIN:$WORK/cri/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset CDPATH

# Node 0 is the control plane, which runs no pods. Its addresses are also those of the bridge between the nodes.
NODES=(1 2 3)
ALL=(0 "${NODES[@]}")
CONTROL4=172.30.0.1 CONTROL6=fd30::1
node4() { echo "172.30.0.1$1"; }
node6() { echo "fd30::1$1"; }
PODS=10.244.0.0/16,fd00:10:244::/48 SERVICES=10.96.0.0/16,fd00:10:96::/112
AGNHOST=localhost/agnhost:2.21 PAUSE=localhost/pause:3.2

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
fail() { echo "cluster: $*" >&2; exit 1; }

# retry SECONDS COMMAND...: until it succeeds, four times a second.
retry() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { echo "cluster: this did not succeed in time: $*" >&2; return 1; }
    sleep 0.25
  done
}

# The process 1 of a node, as this machine numbers it.
node_pid() { cat "$RUN/n$1/pid" 2>/dev/null; }

# A number in a file may be another process's by now, so its program is compared too.
alive() {
  local pid
  pid=$(node_pid "$1") && [ -n "$pid" ] && [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f "$BIN/pause")" ]
}

must_be_up() { alive 0 || fail "the cluster is not up (cluster up)"; }

# in_node N COMMAND...: in all namespaces of node N, and in its cgroups, which nsenter does not change.
in_node() (
  n=$1; shift
  alive "$n" || fail "node $n is not up"
  for c in /sys/fs/cgroup/*/; do echo "$BASHPID" > "$c/netpolc-kubernetes/n$n/cgroup.procs"; done
  exec nsenter --target "$(node_pid "$n")" --all -- "$@"
)

# in_net N COMMAND...: in the network of node N, with the files of this machine.
in_net() {
  local n=$1; shift
  nsenter --target "$(node_pid "$n")" --net -- "$@"
}

kubectl() { in_net 0 "$BIN/kubectl" --kubeconfig "$WORK/admin.kubeconfig" --cache-dir "$RUN/kubectl" "$@"; }

# What was tried is Debian 12 with each controller of cgroup v1 mounted for itself; everything else is refused.
check_machine() {
  local controller id=none version=none
  [ "$(id -u)" = 0 ] || fail "root is needed, for namespaces, mounts and cgroups"
  # shellcheck disable=SC1091
  id=$(. /etc/os-release; echo "${ID:-none}") version=$(. /etc/os-release; echo "${VERSION_ID:-none}")
  [ "$id $version $(dpkg --print-architecture 2>/dev/null)" = "debian 12 amd64" ] ||
    fail "only Debian 12 (bookworm) on amd64 was tried, and this is $id $version on $(uname -m)"
  [[ $WORK =~ ^/[A-Za-z0-9/._-]+$ ]] || fail "NETPOLC_KUBERNETES must be an absolute path of simple characters: $WORK"
  case $WORK/ in /etc/* | /opt/* | /run/* | /var/lib/* | /var/log/* | /sys/* | /proc/*)
    fail "NETPOLC_KUBERNETES must not be where the nodes have file systems of their own: $WORK" ;;
  esac
  for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    [[ ! -L /sys/fs/cgroup/$controller && $(stat -fc %T "/sys/fs/cgroup/$controller" 2>/dev/null) = cgroupfs ]] ||
      fail "only cgroup v1 with every controller mounted for itself was tried: /sys/fs/cgroup/$controller is no such mount"
  done
}
