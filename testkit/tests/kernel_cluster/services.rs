//! What kube-proxy writes for a Service, reduced to one Service with one endpoint: in its iptables mode and in its nftables
//! mode. Shapes as of Kubernetes 1.36 (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`).

use crate::netns::Netns;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;

/// The Service's addresses.
pub(crate) fn addrs() -> [IpAddr; 2] {
    ["10.96.0.10", "fd00:96::10"].map(|text| text.parse().unwrap())
}

/// Its port, which leads to TCP 80 of the endpoint.
pub(crate) const PORT: u16 = 8888;
/// The same on every node.
pub(crate) const NODE_PORT: u16 = 30_080;

/// kube-proxy's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
}

pub(crate) fn program(netns: &Netns, mode: Mode, endpoint: &[IpAddr]) {
    for (service, endpoint) in addrs().iter().zip(endpoint) {
        match mode {
            Mode::Iptables => {
                let program = if endpoint.is_ipv4() { "iptables-restore" } else { "ip6tables-restore" };
                feed(netns, program, &["--noflush", "-w", "5"], &iptables(*service, *endpoint));
            }
            Mode::Nftables => feed(netns, "nft", &["-f", "-"], &nftables(*service, *endpoint)),
        }
    }
}

fn feed(netns: &Netns, program: &str, args: &[&str], text: &str) {
    let mut child = netns.command(program).args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}: {text}");
}

fn pods(of: IpAddr) -> &'static str {
    if of.is_ipv4() { "10.244.0.0/16" } else { "fd00:244::/48" }
}

fn target(endpoint: IpAddr) -> String {
    std::net::SocketAddr::new(endpoint, 80).to_string()
}

fn iptables(service: IpAddr, endpoint: IpAddr) -> String {
    let (pods, target) = (pods(service), target(endpoint));
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-SEP-WEB - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {service} -p tcp -m tcp --dport {PORT} -j KUBE-SVC-WEB
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-EXT-WEB
-A KUBE-EXT-WEB -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-SVC-WEB ! -s {pods} -d {service} -p tcp -m tcp --dport {PORT} -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -j KUBE-SEP-WEB
-A KUBE-SEP-WEB -s {endpoint} -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB -p tcp -m tcp -j DNAT --to-destination {target}
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )
}

fn nftables(service: IpAddr, endpoint: IpAddr) -> String {
    let (family, kind) = if service.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let (pods, target) = (pods(service), target(endpoint));
    format!(
        "table {family} kube-proxy {{
	map service-ips {{
		type {kind} . inet_proto . inet_service : verdict
		elements = {{ {service} . tcp . {PORT} : goto service-web }}
	}}
	map service-nodeports {{
		type inet_proto . inet_service : verdict
		elements = {{ tcp . {NODE_PORT} : goto external-web }}
	}}
	chain filter-forward {{
		type filter hook forward priority -110; policy accept;
		ct state new accept
	}}
	chain nat-prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}}
	chain nat-output {{
		type nat hook output priority -100; policy accept;
		jump services
	}}
	chain nat-postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		mark & 0x4000 != 0 mark set mark ^ 0x4000 masquerade fully-random
	}}
	chain services {{
		{family} daddr . meta l4proto . th dport vmap @service-ips
		fib daddr type local meta l4proto . th dport vmap @service-nodeports
	}}
	chain service-web {{
		{family} daddr {service} tcp dport {PORT} {family} saddr != {pods} mark set mark | 0x4000
		goto endpoint-web
	}}
	chain external-web {{
		mark set mark | 0x4000
		goto endpoint-web
	}}
	chain endpoint-web {{
		{family} saddr {endpoint} mark set mark | 0x4000
		meta l4proto tcp dnat to {target}
	}}
}}
"
    )
}
