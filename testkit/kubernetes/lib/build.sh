# shellcheck shell=bash
# From nothing to bin/ and cri/: Kubernetes 1.20.2 of Debian's source package, containerd 2 of Debian sid, etcd of bookworm.

KUBERNETES=k8s.io/kubernetes
SOURCE=$WORK/build/gopath/src/$KUBERNETES

build() {
  check_machine
  mkdir -p "$WORK"/{bin,cri/bin,build/{apt,tmp}} "$(dirname "$SOURCE")"
  install_packages
  fetch_containerd
  fetch_etcd
  [ -e "$SOURCE/.prepared" ] || fetch_kubernetes
  compile
  say "built: $WORK/bin, $WORK/cri/bin"
}

install_packages() {
  say "packages of this machine"
  apt-get update
  apt-get install --yes --no-install-recommends --no-upgrade containernetworking-plugins curl dpkg-dev gcc golang-1.19-go \
    iproute2 ipset iptables libc6-dev nftables openssl procps python3 runc busybox-static
}

# apt_of NAME SUITE TYPE ARGUMENTS...: apt-get with lists of their own, so that the machine's are left as they are.
apt_of() {
  local dir=$WORK/build/apt/$1 mirror
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' 'Codename: bookworm' | sed -n 1p)
  [ -n "$mirror" ] || fail "apt has no source of Debian's main"
  mkdir -p "$dir"/{lists/partial,cache}
  echo "$3 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" > "$dir/sources.list"
  apt-get -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$dir/lists" \
    -o Dir::Cache="$dir/cache" "${@:4}"
}

# fetch NAME SUITE PACKAGE: the files of a package, below build/apt/NAME/files, without installing it.
fetch() {
  say "$3 of $2"
  apt_of "$1" "$2" deb update
  (cd "$WORK/build/apt/$1" && rm -f ./*.deb && apt_of "$1" "$2" deb download "$3" && dpkg-deb -x ./*.deb files)
}

# Bookworm's containerd is version 1.6. The one of sid speaks CRI v1 alone.
fetch_containerd() {
  fetch containerd sid containerd
  cp -a "$WORK"/build/apt/containerd/files/usr/bin/* "$WORK/cri/bin/"
  "$WORK/cri/bin/containerd" --version | grep -F ' 2.' || fail "this is not containerd 2, or it does not run on Debian 12"
}

# It is not installed, since it would be started here too.
fetch_etcd() {
  fetch etcd bookworm etcd-server
  cp -a "$WORK/build/apt/etcd/files/usr/bin/etcd" "$WORK/bin/"
}

fetch_kubernetes() {
  say "the source of Kubernetes"
  rm -rf "$SOURCE"
  apt_of kubernetes bookworm deb-src update
  (cd "$WORK/build/apt/kubernetes" && apt_of kubernetes bookworm deb-src source --download-only kubernetes &&
    dpkg-source --no-check -x kubernetes_*.dsc "$SOURCE")
  # Kubelet 1.20 speaks CRI v1alpha2, and containerd 2 only v1. Their messages are the same, the names differ.
  sed -i 's#"/runtime\.v1alpha2\.#"/runtime.v1.#; s#ServiceName: "runtime.v1alpha2#ServiceName: "runtime.v1#' \
    "$SOURCE/staging/src/k8s.io/cri-api/pkg/apis/runtime/v1alpha2/api.pb.go"
  touch "$SOURCE/.prepared"
}

# Go modules are off, since Go 1.19 finds that the go.mod of 1.20 needs updates.
go_() {
  (cd "$SOURCE" && env GO111MODULE=off GOPATH="$WORK/build/gopath" GOCACHE="$WORK/build/gocache" GOTMPDIR="$WORK/build/tmp" \
    CGO_ENABLED=0 GOPROXY=off HOME="$WORK/build" nice -n 19 /usr/lib/go-1.19/bin/go "$@")
}

compile() {
  local package flags="-s -w"
  for package in "$KUBERNETES"/vendor/k8s.io/{component-base/version,client-go/pkg/version}; do
    flags+=" -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean"
  done
  generate
  for package in cmd/{kubectl,kube-scheduler,kube-proxy,kubelet,kube-controller-manager,kube-apiserver} test/images/agnhost; do
    say "$package"
    go_ build -trimpath -ldflags "$flags" -o "$WORK/bin/${package##*/}" "$KUBERNETES/$package"
  done
  say "e2e.test"
  go_ test -c -trimpath -ldflags "$flags" -o "$WORK/bin/e2e.test" "$KUBERNETES/test/e2e"
  gcc -static -Os -s -DVERSION=3.2 -o "$WORK/bin/pause" "$SOURCE/build/pause/linux/pause.c"
}

# The source package lacks what is generated: the API server's OpenAPI definitions, and the files inside e2e.test.
generate() {
  local directories
  say "generated files"
  go_ build -o "$WORK/build/openapi-gen" "$KUBERNETES/vendor/k8s.io/kube-openapi/cmd/openapi-gen"
  go_ build -o "$WORK/build/go-bindata" "$KUBERNETES/vendor/github.com/go-bindata/go-bindata/go-bindata"
  cd "$SOURCE" || exit
  directories=$(grep -rl --include='*.go' '+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io test |
    grep -v '_test.go\|code-generator\|sample-apiserver\|/testdata/\|/kube-openapi/' | xargs -n1 dirname | sort -u |
    sed "s#^staging/src/#vendor/#; s#^#$KUBERNETES/#" | paste -sd,)
  GO111MODULE=off GOPATH=$WORK/build/gopath PATH=/usr/lib/go-1.19/bin:$PATH HOME=$WORK/build nice -n 19 "$WORK/build/openapi-gen" \
    --logtostderr -i "$directories" -p "$KUBERNETES/pkg/generated/openapi" -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$WORK/build/openapi.report"
  "$WORK/build/go-bindata" -nometadata -o test/e2e/generated/bindata.go -pkg generated -ignore .jpg -ignore .png -ignore .md \
    -ignore 'BUILD(\.bazel)?' test/conformance/testdata/... test/e2e/testing-manifests/... test/e2e_node/testing-manifests/... \
    test/images/... test/fixtures/...
  cd "$WORK" || exit
}
