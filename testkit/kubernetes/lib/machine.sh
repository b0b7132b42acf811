#!/bin/bash
# machine.sh N: the inside of node N. lib/up.sh starts it by unshare as process 1 of new namespaces, and pause takes its place.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

dir=$RUN/n$1
if [ "$1" = 0 ]; then hostname k8s-control; else hostname "k8s-n$1"; fi
mount --make-rshared /

# Files of its own: what the node changes in these directories must not reach this machine.
mkdir -p "$dir"/{etc,opt}/{upper,work} "$dir"/{kubelet,containerd,cni,netpolc,pods,containers}
for d in etc opt; do
  mount -t overlay -o "lowerdir=/$d,upperdir=$dir/$d/upper,workdir=$dir/$d/work" overlay "/$d"
done
for d in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs "$d"; done
mkdir -p /run/{netns,lock,containerd} /var/lib/{kubelet,containerd,cni,netpolc} /var/log/{pods,containers} /etc/cni/net.d /opt/cni/bin
# The overlays of containers need a plain file system below them, and logs are wanted here.
for d in kubelet containerd cni netpolc; do mount --bind "$dir/$d" "/var/lib/$d"; done
for d in pods containers; do mount --bind "$dir/$d" "/var/log/$d"; done
# The node begins with the plugins of Debian's package and without a network.
rm -rf /etc/cni/net.d/* /opt/cni/bin/*
cp /usr/lib/cni/{bridge,ptp,host-local,portmap,loopback} /opt/cni/bin/
hostname > /etc/hostname
: > /etc/resolv.conf
{
  printf '127.0.0.1 localhost\n::1 localhost\n%s k8s-control\n' "$CONTROL4"
  for n in "${NODES[@]}"; do echo "$(node4 "$n") k8s-n$n"; done
} > /etc/hosts

# The kernel as this node's network and cgroups show it.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
awk 'NR > 1 && $2 != 0 { print $1 }' /proc/cgroups | while read -r c; do
  mkdir "/sys/fs/cgroup/$c"
  mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
done
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -t bpf bpf /sys/fs/bpf

# Kubelet would change these for the whole machine. It finds the values that it wants, and leaves them alone.
while read -r file value; do
  echo "$value" > "/run/sysctl.${file##*/}"
  mount --bind "/run/sysctl.${file##*/}" "/proc/sys/$file"
done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

ip link set lo up
sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.{all,default}.accept_dad=0 net.ipv6.conf.default.accept_ra=0
touch "$dir/ready"
exec "$BIN/pause"
