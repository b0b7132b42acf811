//! The network's shape, as text for `ip -batch` and values for sysctls.
//!
//! ```text
//!   pod eth0 --- p<i> node uplink --- n<i> fabric x<i> --- eth0 outside host
//! ```
//!
//! A node routes as kindnet and other ptp CNI plugins do: a veth pair for each pod, host routes to it, and in the pod a
//! default route over a next hop that is only a link-layer address. All neighbours are permanent entries, so no ARP or
//! neighbour discovery is ever needed: the table of neighbours is shared by all namespaces of a machine and bounded
//! (`gc_thresh3`, arp(7)), and permanent entries do not count.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::spec::{GATEWAY_V4, HostId, Spec};

/// The IPv6 next hop of every default route; of link-local scope, on every link.
const GATEWAY_V6: &str = "fe80::1";

/// Texts for `ip -batch`, in the order in which they must run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batches {
    /// For the fabric: makes the uplinks and the links to outside hosts.
    pub(crate) fabric: String,
    /// For each node: makes the pods' links.
    pub(crate) nodes: Vec<String>,
    /// For each pod.
    pub(crate) pods: Vec<String>,
    /// For each outside host.
    pub(crate) outside: Vec<String>,
}

/// Writes the batches. `path` gives the path of a host's namespace; `ipv6` is false on kernels without IPv6.
pub(crate) fn batches(spec: &Spec, path: impl Fn(HostId) -> String, ipv6: bool) -> Batches {
    let mut out = Batches { fabric: "link set lo up\n".into(), ..Batches::default() };
    let mut links = 0u32;
    let mut pair = || {
        links += 1;
        Pair { number: links }
    };
    for (i, node) in spec.nodes.iter().enumerate() {
        let pair = pair();
        let name = format!("n{i}");
        pair.make(&mut out.fabric, &name, "uplink", &path(HostId::Node(i)));
        pair.next_hops(&mut out.fabric, &name, Side::Far, ipv6);
        let pods = spec.pods.iter().filter(|pod| pod.node == i);
        for addr in node.addrs.iter().chain(pods.flat_map(|pod| &pod.addrs)) {
            route(&mut out.fabric, &prefix(addr), &gateway(addr), &name, None);
        }
        out.nodes.push(node_batch(&node.addrs, &pair, ipv6));
    }
    for (i, pod) in spec.pods.iter().enumerate() {
        let pair = pair();
        if let (Some(node), Some(batch)) = (spec.nodes.get(pod.node), out.nodes.get_mut(pod.node)) {
            let name = format!("p{i}");
            pair.make(batch, &name, "eth0", &path(HostId::Pod(i)));
            pair.direct(batch, &name, &pod.addrs, &node.addrs);
        }
        out.pods.push(end_batch(&pod.addrs, &pair));
    }
    for (i, host) in spec.outside.iter().enumerate() {
        let pair = pair();
        let name = format!("x{i}");
        pair.make(&mut out.fabric, &name, "eth0", &path(HostId::Outside(i)));
        pair.direct(&mut out.fabric, &name, &[host.addr], &[]);
        out.outside.push(end_batch(&[host.addr], &pair));
    }
    out
}

/// The node's own part: its addresses on `lo`, and the uplink as default route.
fn node_batch(addrs: &[IpAddr], pair: &Pair, ipv6: bool) -> String {
    let mut out = String::from("link set lo up\n");
    addresses(&mut out, addrs, "lo");
    out.push_str("link set uplink up\n");
    pair.next_hops(&mut out, "uplink", Side::Near, ipv6);
    default_routes(&mut out, "uplink", addrs, ipv6);
    out
}

/// The batch of a host with one link, `eth0`. It has a default route in the families that it has addresses of.
fn end_batch(addrs: &[IpAddr], pair: &Pair) -> String {
    let mut out = String::from("link set lo up\n");
    addresses(&mut out, addrs, "eth0");
    out.push_str("link set eth0 up\n");
    for family_addr in [first(addrs, true), first(addrs, false)].into_iter().flatten() {
        neighbour(&mut out, &gateway(&family_addr), "eth0", &pair.mac(Side::Near));
        route(&mut out, everything(&family_addr), &gateway(&family_addr), "eth0", Some(family_addr));
    }
    out
}

fn default_routes(out: &mut String, device: &str, addrs: &[IpAddr], ipv6: bool) {
    route(out, "0.0.0.0/0", &GATEWAY_V4.to_string(), device, first(addrs, true));
    if ipv6 {
        route(out, "::/0", GATEWAY_V6, device, first(addrs, false));
    }
}

fn addresses(out: &mut String, addrs: &[IpAddr], device: &str) {
    for addr in addrs {
        let nodad = if addr.is_ipv6() { " nodad" } else { "" };
        let _ = writeln!(out, "addr add {} dev {device}{nodad}", prefix(addr));
    }
}

fn route(out: &mut String, to: &str, via: &str, device: &str, source: Option<IpAddr>) {
    let source = source.map(|addr| format!(" src {addr}")).unwrap_or_default();
    let _ = writeln!(out, "route add {to} via {via} dev {device} onlink{source}");
}

fn neighbour(out: &mut String, addr: &str, device: &str, mac: &str) {
    let _ = writeln!(out, "neigh add {addr} lladdr {mac} dev {device} nud permanent");
}

/// The first address of a family.
fn first(addrs: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addrs.iter().copied().find(|addr| addr.is_ipv4() == v4)
}

fn prefix(addr: &IpAddr) -> String {
    format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })
}

fn gateway(addr: &IpAddr) -> String {
    if addr.is_ipv4() { GATEWAY_V4.to_string() } else { GATEWAY_V6.to_string() }
}

fn everything(addr: &IpAddr) -> &'static str {
    if addr.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

/// A veth pair. Its near end stays with the router that makes it; its far end moves to another namespace.
struct Pair {
    number: u32,
}

#[derive(Clone, Copy)]
enum Side {
    Near = 1,
    Far = 2,
}

impl Pair {
    /// A locally administered unicast address, different for every end in the sandbox.
    fn mac(&self, side: Side) -> String {
        let [a, b, c, d] = self.number.to_be_bytes();
        format!("02:{:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}", side as u8)
    }

    /// Makes the pair, sets the near end up, and leaves the far end, down, in the namespace at `path`.
    fn make(&self, out: &mut String, near: &str, far: &str, path: &str) {
        let (near_mac, far_mac) = (self.mac(Side::Near), self.mac(Side::Far));
        let _ = writeln!(
            out,
            "link add {near} address {near_mac} type veth peer name {far} address {far_mac} netns {path}"
        );
        let _ = writeln!(out, "link set {near} up");
    }

    /// Makes the two gateway addresses on `device` stand for the end at `side`.
    fn next_hops(&self, out: &mut String, device: &str, side: Side, ipv6: bool) {
        neighbour(out, &GATEWAY_V4.to_string(), device, &self.mac(side));
        if ipv6 {
            neighbour(out, GATEWAY_V6, device, &self.mac(side));
        }
    }

    /// Host routes from the router to the addresses at the far end; `own` are the router's own addresses, which its own
    /// packets shall come from.
    fn direct(&self, out: &mut String, device: &str, addrs: &[IpAddr], own: &[IpAddr]) {
        for addr in addrs {
            neighbour(out, &addr.to_string(), device, &self.mac(Side::Far));
            let source = first(own, addr.is_ipv4()).map(|own| format!(" src {own}")).unwrap_or_default();
            let _ = writeln!(out, "route add {} dev {device}{source}", prefix(addr));
        }
    }
}

/// A sysctl below `/proc/sys/net` and its value.
pub(crate) struct Sysctl {
    /// Path below `/proc/sys/net`.
    pub(crate) path: &'static str,
    /// What to write.
    pub(crate) value: &'static str,
    /// False if older or smaller kernels may lack it; they then behave as wished, or nearly.
    pub(crate) required: bool,
}

const fn required(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, required: true }
}

const fn optional(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, required: false }
}

/// For routers alone. Comes before the others, since turning on forwarding resets some of a device's settings.
/// (`Documentation/networking/ip-sysctl.rst` of the kernel describes all of these.)
const FORWARDING_V4: [Sysctl; 1] = [required("ipv4/ip_forward", "1")];
const FORWARDING_V6: [Sysctl; 2] =
    [required("ipv6/conf/all/forwarding", "1"), required("ipv6/conf/default/forwarding", "1")];

/// Reverse-path filtering would hide what the tests look for, as would a limit on the rate of ICMP errors.
const COMMON_V4: [Sysctl; 7] = [
    required("ipv4/conf/all/rp_filter", "0"),
    required("ipv4/conf/default/rp_filter", "0"),
    required("ipv4/conf/lo/rp_filter", "0"),
    required("ipv4/conf/all/send_redirects", "0"),
    required("ipv4/conf/default/send_redirects", "0"),
    optional("ipv4/icmp_ratelimit", "0"),
    optional("ipv4/icmp_ratemask", "0"),
];

/// New namespaces may inherit a disabled IPv6 from the machine (`net.core.devconf_inherit_init_net`). Link-local addresses,
/// duplicate address detection and router solicitation only add packets that nobody asked for.
const COMMON_V6: [Sysctl; 11] = [
    required("ipv6/conf/all/disable_ipv6", "0"),
    required("ipv6/conf/default/disable_ipv6", "0"),
    required("ipv6/conf/lo/disable_ipv6", "0"),
    required("ipv6/conf/all/accept_dad", "0"),
    required("ipv6/conf/default/accept_dad", "0"),
    required("ipv6/conf/default/dad_transmits", "0"),
    required("ipv6/conf/default/accept_ra", "0"),
    required("ipv6/conf/default/autoconf", "0"),
    // 1 is IN6_ADDR_GEN_MODE_NONE in the kernel's linux/if_link.h.
    optional("ipv6/conf/default/addr_gen_mode", "1"),
    optional("ipv6/icmp/ratelimit", "0"),
    // The limited types as a list: type 0 is reserved, so nothing is limited.
    optional("ipv6/icmp/ratemask", "0"),
];

/// The settings of a host, in the order in which they must be written.
pub(crate) fn sysctls(router: bool, ipv6: bool) -> Vec<&'static Sysctl> {
    let forwarding_v4: &[Sysctl] = if router { &FORWARDING_V4 } else { &[] };
    let forwarding_v6: &[Sysctl] = if router && ipv6 { &FORWARDING_V6 } else { &[] };
    let common_v6: &[Sysctl] = if ipv6 { &COMMON_V6 } else { &[] };
    forwarding_v4.iter().chain(forwarding_v6).chain(&COMMON_V4).chain(common_v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{NodeSpec, PodSpec};

    #[test]
    fn a_node_with_one_pod() {
        let spec = Spec {
            nodes: vec![NodeSpec { addrs: vec!["192.0.2.1".parse().unwrap()], ..NodeSpec::default() }],
            pods: vec![PodSpec { addrs: vec!["10.0.0.5".parse().unwrap()], ..PodSpec::default() }],
            outside: vec![],
        };
        let batches = batches(&spec, |host| format!("/{host}").replace(' ', ""), false);
        assert_eq!(
            batches.nodes[0],
            "link set lo up
addr add 192.0.2.1/32 dev lo
link set uplink up
neigh add 169.254.1.1 lladdr 02:01:00:00:00:01 dev uplink nud permanent
route add 0.0.0.0/0 via 169.254.1.1 dev uplink onlink src 192.0.2.1
link add p0 address 02:01:00:00:00:02 type veth peer name eth0 address 02:02:00:00:00:02 netns /pod0
link set p0 up
neigh add 10.0.0.5 lladdr 02:02:00:00:00:02 dev p0 nud permanent
route add 10.0.0.5/32 dev p0 src 192.0.2.1
"
        );
        assert_eq!(
            batches.pods[0],
            "link set lo up
addr add 10.0.0.5/32 dev eth0
link set eth0 up
neigh add 169.254.1.1 lladdr 02:01:00:00:00:02 dev eth0 nud permanent
route add 0.0.0.0/0 via 169.254.1.1 dev eth0 onlink src 10.0.0.5
"
        );
    }
}
