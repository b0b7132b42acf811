# shellcheck shell=bash
# Images without docker and without a registry: the two that pods of tests need, and netpolc's.

MANIFEST=$NETPOLC/runtime-loader/deploy/netpolc.yaml

# make_image NAME FILE CONFIG: the directory ROOT as the one layer of an image, in docker's format.
make_image() {
  local parts layer
  parts=$(mktemp -d -p "$WORK")
  tar -C "$ROOT" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$parts/layer.tar" .
  layer=sha256:$(sha256sum < "$parts/layer.tar" | cut -d' ' -f1)
  cat > "$parts/config.json" <<JSON
{"architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z", "config": $3,
 "rootfs": {"type": "layers", "diff_ids": ["$layer"]}}
JSON
  echo '[{"Config": "config.json", "RepoTags": ["'"$1"'"], "Layers": ["layer.tar"]}]' > "$parts/manifest.json"
  tar -C "$parts" -cf "$IMAGES/$2.tar" manifest.json config.json layer.tar
  rm -rf "$parts"
}

# Every image is made in a directory of its own, which goes afterwards.
new_root() {
  ROOT=$(mktemp -d -p "$WORK")
  trap 'rm -rf "$ROOT"' EXIT
  chmod 755 "$ROOT"
  mkdir -p "$ROOT"/usr/{bin,sbin,local/bin,lib/x86_64-linux-gnu,lib64} "$ROOT"/{etc,tmp,run,var/lib,proc,sys,dev,root}
  chmod 1777 "$ROOT/tmp"
  for d in bin sbin lib lib64; do ln -s "usr/$d" "$ROOT/$d"; done
  echo root:x:0:0:root:/root:/bin/sh > "$ROOT/etc/passwd"
  echo root:x:0: > "$ROOT/etc/group"
  cp /bin/busybox "$ROOT/usr/bin/"
  for applet in $(busybox --list); do [ -e "$ROOT/usr/bin/$applet" ] || ln -s busybox "$ROOT/usr/bin/$applet"; done
}

# The libraries that programs need, where their loader looks for them. Static programs need none.
copy_libraries() {
  local file
  for file in "$@"; do ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; done | sort -u | while read -r file; do
    case $file in
      /lib64/*) cp -L "$file" "$ROOT/usr/lib64/" ;;
      *) cp -L "$file" "$ROOT/usr/lib/x86_64-linux-gnu/" ;;
    esac
  done
}

# agnhost of Kubernetes' tests, with a shell for its probes and curl for the guide.
make_test_images() (
  if [ ! -e "$IMAGES/pause.tar" ]; then
    new_root
    cp "$BIN/pause" "$ROOT/pause"
    make_image "$PAUSE" pause '{"Entrypoint": ["/pause"]}'
    rm -rf "$ROOT"
  fi
  if [ ! -e "$IMAGES/agnhost.tar" ]; then
    new_root
    cp "$BIN/agnhost" "$ROOT/agnhost"
    cp /usr/bin/curl "$ROOT/usr/bin/curl"
    copy_libraries /usr/bin/curl
    make_image "$AGNHOST" agnhost '{"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}'
  fi
)

# image DIRECTORY: netpolc's programs of that directory, with the tools that the loader drives, under the manifest's name.
image() {
  local n
  [ -x "${1:-}/netpol-loader" ] || fail "usage: cluster image DIRECTORY, one that has netpol-agent, netpol-loader and netpol-cni"
  mkdir -p "$IMAGES"
  make_netpolc_image "$1"
  for n in "${NODES[@]}"; do
    if alive "$n"; then import_image "$n" "$IMAGES/netpolc.tar"; fi
  done
}

make_netpolc_image() (
  new_root
  tools=(/usr/sbin/{nft,ipset,xtables-nft-multi,xtables-legacy-multi})
  libraries=/usr/lib/x86_64-linux-gnu
  mkdir "$ROOT$libraries/xtables"
  cp "$1"/netpol-{agent,loader,cni} "$ROOT/usr/local/bin/"
  strip "$ROOT"/usr/local/bin/*
  cp "${tools[@]}" "$ROOT/usr/sbin/"
  cp $libraries/xtables/*.so "$ROOT$libraries/xtables/"
  copy_libraries "$1"/netpol-{agent,loader} "${tools[@]}" $libraries/xtables/*.so
  for family in iptables ip6tables; do
    for action in "" -save -restore; do
      ln -s xtables-legacy-multi "$ROOT/usr/sbin/$family-legacy$action"
      ln -s xtables-nft-multi "$ROOT/usr/sbin/$family-nft$action"
      ln -s "$family-nft$action" "$ROOT/usr/sbin/$family$action"
    done
  done
  cp -L /etc/{ethertypes,protocols,services} "$ROOT/etc/"
  for program in nft iptables iptables-legacy ipset /usr/local/bin/netpol-loader; do chroot "$ROOT" "$program" --version; done
  make_image "$(sed -n "/^ *image: */ { s///p; q }" "$MANIFEST")" netpolc \
    '{"User": "65532:65532", "Entrypoint": ["/usr/local/bin/netpol-agent"]}'
)

import_image() { in_node "$1" ctr --namespace k8s.io images import --local "$2" >/dev/null; }

# All that the node has not; netpolc's is there only if it was made.
import_images() {
  local have file name
  have=$(in_node "$1" ctr --namespace k8s.io images list --quiet)
  for file in "$IMAGES"/*.tar; do
    name=$(tar -xOf "$file" manifest.json | sed 's/.*"RepoTags": \["\([^"]*\)".*/\1/')
    grep -qxF "$name" <<< "$have" || import_image "$1" "$file"
  done
}
