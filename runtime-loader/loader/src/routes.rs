//! Which interface leads to a pod: the node's routes to single addresses.
//!
//! CNI plugins of the routed kind (ptp, kindnet, Calico's) give each pod a host route to its veth. Bridges do not; there
//! it is the interface with the pod's network behind it, which several pods share.

use netpolc_bundle::{Bindings, nft};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's routes to its pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// The interfaces that the routes to a single address name.
    pub hosts: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Interfaces with a whole network behind them, as bridges have: first address, prefix length, name.
    pub networks: Vec<(IpAddr, u8, String)>,
    /// Interfaces with a gateway behind them: more than this node's pods is there.
    pub uplinks: BTreeSet<String>,
}

impl Routes {
    /// None.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// The interface with the smallest network that has this address.
    fn network_of(&self, addr: IpAddr) -> Option<&String> {
        let bits = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => (32u8, u128::from(u32::from(addr))),
            IpAddr::V6(addr) => (128, u128::from(addr)),
        };
        let (width, wanted) = bits(addr);
        let inside = |base: IpAddr, len: u8| {
            let (other, base) = bits(base);
            let shift = u32::from(width.saturating_sub(len));
            other == width && (wanted ^ base).checked_shr(shift).unwrap_or(0) == 0
        };
        let having = self.networks.iter().filter(|(base, len, _)| inside(*base, *len));
        let smallest = having.max_by_key(|(_, len, _)| *len).map(|(_, _, name)| name);
        smallest.filter(|name| !self.uplinks.contains(*name))
    }
}

// `include/uapi/linux/route.h` and `include/uapi/linux/ipv6_route.h`.
const RTF_UP: u32 = 0x0001;
const RTF_GATEWAY: u32 = 0x0002;
const RTF_REJECT: u32 = 0x0200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// Whether a route with these flags leads to a gateway.
fn by_gateway(flags: u32) -> bool {
    flags & RTF_UP != 0 && flags & RTF_GATEWAY != 0 && flags & RTF_REJECT == 0
}

/// Whether a route with these flags leads to a neighbour on its interface.
fn direct(flags: u32) -> bool {
    flags & RTF_UP != 0 && flags & (RTF_GATEWAY | RTF_REJECT | RTF_ANYCAST | RTF_LOCAL) == 0
}

/// Reads `/proc/net/route`: a heading, then interface, destination, gateway, flags, three figures, mask. Addresses are
/// the bytes of the header printed as one number of the machine's byte order (`fib_route_seq_show` in
/// `net/ipv4/fib_trie.c`). Lines that are not understood are passed over.
pub fn read_ipv4(text: &str, routes: &mut Routes) {
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [ifname, destination, _, flags, _, _, _, mask, ..] = fields.as_slice() else { continue };
        let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
        let (Some(destination), Some(flags), Some(mask)) = (hex(destination), hex(flags), hex(mask)) else {
            continue;
        };
        let addr = IpAddr::V4(Ipv4Addr::from(destination.to_ne_bytes()));
        match mask.count_ones() as u8 {
            _ if by_gateway(flags) => drop(routes.uplinks.insert((*ifname).to_owned())),
            _ if !direct(flags) => {}
            32 => drop(routes.hosts.entry(addr).or_default().insert((*ifname).to_owned())),
            0 => {}
            len => routes.networks.push((addr, len, (*ifname).to_owned())),
        }
    }
}

/// Reads `/proc/net/ipv6_route`: destination, its length in hexadecimal, source, its length, gateway, metric, two
/// figures, flags, interface (`ipv6_route_native_seq_show` in `net/ipv6/ip6_fib.c`).
pub fn read_ipv6(text: &str, routes: &mut Routes) {
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, len, _, "00", _, _, _, _, flags, ifname] = fields.as_slice() else { continue };
        let (Ok(addr), Ok(len), Ok(flags)) = (
            u128::from_str_radix(destination, 16),
            u8::from_str_radix(len, 16),
            u32::from_str_radix(flags, 16),
        ) else {
            continue;
        };
        let addr = Ipv6Addr::from(addr);
        // Every interface has a route to its link's own addresses and to those of groups, which are no pod's.
        let of_link = addr.is_multicast() || addr.is_unicast_link_local();
        match len {
            _ if by_gateway(flags) => drop(routes.uplinks.insert((*ifname).to_owned())),
            _ if !direct(flags) || *ifname == "lo" => {}
            128 => drop(routes.hosts.entry(addr.into()).or_default().insert((*ifname).to_owned())),
            0 => {}
            len if !of_link => routes.networks.push((addr.into(), len, (*ifname).to_owned())),
            _ => {}
        }
    }
}

/// The interfaces of the node's pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodInterfaces {
    /// The names of those that host routes lead to.
    pub names: BTreeSet<String>,
    /// For each interface the pods behind it, by their place in the bundle's bindings.
    pub pods: BTreeMap<String, BTreeSet<usize>>,
    /// Those with any number of addresses behind them, as bridges have.
    pub shared: BTreeSet<String>,
    /// For each of both, if rules can name it, the addresses that packets from there may have: those of the pods behind it,
    /// and behind one that pods share those of pods that are behind none.
    pub behind: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl PodInterfaces {
    /// The names of all, those too that pods share.
    pub fn all(&self) -> BTreeSet<String> {
        self.names.union(&self.shared).filter(|name| nft::is_ifname(name)).cloned().collect()
    }
}

/// The interfaces of the node's pods, and notes on what is missing.
pub fn pod_interfaces(bindings: &Bindings, routes: &Routes) -> (PodInterfaces, Vec<String>) {
    let mut found = PodInterfaces::default();
    let mut notes = Vec::new();
    let mut without = Vec::new();
    for (i, pod) in bindings.pods.iter().enumerate() {
        let names: BTreeSet<&String> =
            pod.addresses.iter().filter_map(|addr| routes.hosts.get(addr)).flatten().collect();
        if names.is_empty() && !pod.addresses.is_empty() {
            without.push(pod.name.as_str());
            for name in pod.addresses.iter().filter_map(|addr| routes.network_of(*addr)) {
                found.shared.insert(name.clone());
                found.pods.entry(name.clone()).or_default().insert(i);
            }
        }
        for name in names {
            if nft::is_ifname(name) {
                found.names.insert(name.clone());
                found.pods.entry(name.clone()).or_default().insert(i);
            } else {
                notes.push(format!("interface {name:?} of {} has a name that nft cannot hold", pod.name));
            }
        }
    }
    let nowhere = (0..bindings.pods.len()).filter(|i| !found.pods.values().any(|pods| pods.contains(i)));
    let nowhere: BTreeSet<usize> = nowhere.collect();
    for (name, pods) in found.pods.iter().filter(|(name, _)| nft::is_ifname(name)) {
        let more = if found.shared.contains(name) { nowhere.clone() } else { BTreeSet::new() };
        let pods = pods.union(&more).filter_map(|i| bindings.pods.get(*i));
        found.behind.insert(name.clone(), pods.flat_map(|pod| &pod.addresses).copied().collect());
    }
    if let Some(first) = without.first() {
        notes.push(format!(
            "{} of {} local pods have no host route, so their interface is not known ({first}{})",
            without.len(),
            bindings.pods.len(),
            if without.len() > 1 { ", ..." } else { "" }
        ));
    }
    (found, notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpolc_bundle::LocalPod;

    /// The texts are what a little-endian machine prints.
    #[cfg(target_endian = "little")]
    #[test]
    fn host_routes_without_gateway() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            veth1\t0100000A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            eth0\t0200000A\t010200C0\t0007\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            *\t0300000A\t00000000\t0205\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            nonsense\n";
        let mut routes = Routes::new();
        read_ipv4(v4, &mut routes);
        let zero = "00000000000000000000000000000000";
        let v6 = format!(
            "fd000000000000000000000000000001 80 {zero} 00 {zero} 00000400 1 0 00000001    veth1\n\
             fd000000000000000000000000000002 80 {zero} 00 {zero} 0 3 0 80200001     eth0\n\
             fd000000000000000000000000000003 80 {zero} 00 fd000000000000000000000000000009 0 3 0 00000003     eth0\n\
             fd000000000000000000000000000000 40 {zero} 00 {zero} 100 1 0 00000001     eth0\n"
        );
        read_ipv6(&v6, &mut routes);
        let shown: Vec<String> =
            routes.hosts.iter().map(|(addr, names)| format!("{addr} {names:?}")).collect();
        assert_eq!(shown, ["10.0.0.1 {\"veth1\"}", "fd00::1 {\"veth1\"}"]);
        let shown: Vec<String> =
            routes.networks.iter().map(|(a, len, name)| format!("{a}/{len} {name}")).collect();
        assert_eq!(shown, ["10.0.0.0/24 eth0", "fd00::/64 eth0"]);
        assert_eq!(routes.uplinks, BTreeSet::from(["eth0".to_owned()]));
    }

    #[test]
    fn interfaces_of_local_pods_alone() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let pod = |name: &str, address: &str| LocalPod { name: name.into(), addresses: vec![addr(address)] };
        let bindings =
            Bindings { pods: vec![pod("a/a", "10.0.0.1"), pod("a/b", "10.0.0.2"), pod("a/c", "10.0.0.3")] };
        let via = |name: &str| BTreeSet::from([name.to_owned()]);
        let hosts = BTreeMap::from([
            (addr("10.0.0.1"), via("veth1")),
            (addr("10.0.0.3"), via("veth*")),
            (addr("10.0.0.4"), via("veth4")),
        ]);
        let networks = vec![
            (addr("10.0.0.0"), 8, "eth0".to_owned()),
            (addr("10.0.0.0"), 24, "cni0".to_owned()),
            (addr("10.0.1.0"), 24, "cni1".to_owned()),
        ];
        let mut routes = Routes { hosts, networks, uplinks: via("eth0") };
        let (found, notes) = pod_interfaces(&bindings, &routes);
        assert_eq!((found.names, found.shared), (via("veth1"), via("cni0")));
        assert_eq!(found.pods["cni0"], BTreeSet::from([1]));
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].contains("veth*") && notes[1].contains("1 of 3") && notes[1].contains("a/b"),
            "{notes:?}"
        );
        // The pod whose own interface cannot be named may be behind the bridge; the one that is elsewhere is not.
        let behind = |name: &str| found.behind[name].iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(behind("veth1"), ["10.0.0.1"]);
        assert_eq!(behind("cni0"), ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(found.behind.len(), 2);
        // Where the way out of the cluster is, other sources than pods are in order.
        routes.networks.retain(|(_, _, name)| name == "eth0");
        let (found, _) = pod_interfaces(&bindings, &routes);
        assert_eq!(found.behind.into_keys().collect::<Vec<_>>(), ["veth1"]);
    }
}
