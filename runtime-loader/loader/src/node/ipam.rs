//! Which addresses the node gives out to pods where another CNI plugin does it (`--cni=chain`), as far as its configuration
//! says.
//!
//! The plugin `host-local` gives out what stands in the configuration itself, so it can be read there: what it gives out
//! here no other node does, unless the cluster is broken. Of all other ways to give out addresses (a plugin's own, a DHCP
//! server's) the configuration says nothing, but for flannel's plugin, which gives the node's own range to `host-local`.
//!
//! A range may still be more than the node's own, where a whole network stands for each node's part of it. So the Node
//! objects are asked too, and what they contradict is not the node's own.

use super::cidr::{self, Cidr};
use netpolc_bundle::wire::Network;
use serde_json::{Map, Value};
use std::fmt;
use std::net::IpAddr;

/// Most ranges of one configuration. Ours: real ones have one for each family.
const MOST_RANGES: usize = 64;

/// What stands for the node's own range in place of a subnet where Calico's plugin calls `host-local`.
const POD_CIDR: [(&str, bool); 2] = [("usePodCidr", true), ("usePodCidrIPv6", false)];

/// The plugin that has `host-local` give out what flannel leased for the node. Where flannel takes its leases from the Node
/// objects (`--kube-subnet-mgr`, as its own manifest and k3s have it) that is the node's range.
const FLANNEL: &str = "flannel";

/// Addresses from the first to the last, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Given {
    first: IpAddr,
    last: IpAddr,
}

impl Given {
    fn overlaps(&self, range: &Cidr) -> bool {
        self.first.is_ipv4() == range.is_ipv4() && self.first <= range.last() && range.addr() <= self.last
    }

    fn lies_in(&self, range: &Cidr) -> bool {
        self.first.is_ipv4() == range.is_ipv4() && range.addr() <= self.first && self.last <= range.last()
    }

    fn length(&self) -> u8 {
        let widest = cidr::from_to(self.first, self.last).iter().map(Cidr::length).min();
        widest.unwrap_or(if self.first.is_ipv4() { 32 } else { 128 })
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match cidr::from_to(self.first, self.last).as_slice() {
            [range] => range.fmt(f),
            _ => write!(f, "{} to {}", self.first, self.last),
        }
    }
}

/// What a configuration and the Node objects say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// The addresses that this node gives out and no other has.
    pub ranges: Vec<Cidr>,
    /// Why others may be given out that are not among them.
    pub unknown: Vec<String>,
}

/// The node's own addresses, from a list of plugins or a single plugin, and what the Node objects say of the cluster.
///
/// A range of the configuration is the node's own if it lies within what the Node object gives it, or if the Node objects
/// know nothing of it at all. If it overlaps something else that they know (another node's range or address, or more than
/// the node's own range) then it is not.
pub fn own(conf: &Map<String, Value>, network: &Network) -> Own {
    let (pods, cluster) = (parsed(&network.pod_ranges), parsed(&network.cluster_ranges));
    let mut own = Own::default();
    for given in given(conf, &pods, &mut own.unknown) {
        let shortest = if given.first.is_ipv4() { super::SHORTEST.0 } else { super::SHORTEST.1 };
        let within = pods.iter().any(|range| given.lies_in(range));
        let other = cluster.iter().chain(&pods).find(|range| given.overlaps(range)).filter(|_| !within);
        if given.length() < shortest {
            own.unknown.push(format!("host-local's {given} is larger than any range of pods"));
        } else if let Some(other) = other {
            own.unknown.push(format!("host-local's {given} is not this node's alone: {other} overlaps it"));
        } else {
            own.ranges.extend(cidr::from_to(given.first, given.last));
        }
    }
    own.ranges = cidr::outermost(own.ranges);
    own
}

/// What is wrong if a plugin has pods' packets to the pods of other nodes leave with this node's address: there they are
/// judged by that. The standard plugins leave alone what stays within the subnet that the pod's address is of.
pub fn masquerading(conf: &Map<String, Value>, network: &Network) -> Option<String> {
    let (own, cluster) = (parsed(&network.pod_ranges), parsed(&network.cluster_ranges));
    let is_one = |range: &Cidr| range.length() == if range.is_ipv4() { 32 } else { 128 };
    let others: Vec<&Cidr> = cluster.iter().filter(|range| !is_one(range) && !own.contains(range)).collect();
    for plugin in plugins(conf) {
        if field(plugin, "ipMasq").and_then(Value::as_bool) != Some(true) {
            continue;
        }
        let ipam = field(plugin, "ipam").and_then(Value::as_object);
        let subnets = ipam.into_iter().flat_map(entries).filter_map(|entry| field(entry, "subnet")?.as_str());
        let subnets: Vec<Cidr> = subnets.filter_map(Cidr::parse).collect();
        let left_alone = |range: &Cidr| subnets.iter().any(|subnet| subnet.contains(range));
        if let Some(other) = others.iter().find(|range| !left_alone(range)) {
            let name = field(plugin, "type").and_then(Value::as_str).unwrap_or("?");
            return Some(format!(
                "{name:.64} masquerades (ipMasq) what pods send to {other}: it arrives there with this node's address, so \
                 policies that allow them do not let it in"
            ));
        }
    }
    None
}

fn plugins(conf: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    let listed = conf.get("plugins").and_then(Value::as_array);
    listed.map_or_else(|| vec![conf], |list| list.iter().filter_map(Value::as_object).collect())
}

fn parsed(ranges: &[String]) -> Vec<Cidr> {
    ranges.iter().filter_map(|text| Cidr::parse(text)).collect()
}

/// What host-local gives out.
fn given(conf: &Map<String, Value>, pods: &[Cidr], unknown: &mut Vec<String>) -> Vec<Given> {
    let (mut given, mut ways) = (Vec::new(), 0);
    let plugins = plugins(conf);
    for plugin in &plugins {
        let ipam = field(plugin, "ipam").and_then(Value::as_object);
        if field(plugin, "type").and_then(Value::as_str) == Some(FLANNEL) && ipam.is_none_or(is_bare) {
            ways += 1;
            let own = whole(pods);
            if own.is_empty() {
                unknown.push("the Node object has no range for flannel".to_owned());
            }
            given.extend(own);
            continue;
        }
        let Some(ipam) = ipam else { continue };
        match field(ipam, "type").and_then(Value::as_str) {
            Some("host-local") => {}
            Some(other) => {
                ways += 1;
                unknown.push(format!("which addresses {other:.64} gives out is not in the configuration"));
                continue;
            }
            // A plugin without addresses of its own, as one that bridges to elsewhere.
            None => continue,
        }
        ways += 1;
        let entries = entries(ipam);
        if entries.is_empty() {
            unknown.push("host-local has no range in the configuration".to_owned());
        }
        for entry in entries {
            match range(entry, pods) {
                Ok(ranges) => given.extend(ranges),
                Err(why) => unknown.push(format!("host-local's range cannot be used: {why}")),
            }
            if given.len() > MOST_RANGES || unknown.len() > MOST_RANGES {
                *unknown = vec![format!("host-local has more than {MOST_RANGES} ranges")];
                return Vec::new();
            }
        }
    }
    if ways == 0 {
        let types = plugins.iter().filter_map(|p| field(p, "type")?.as_str());
        let types: Vec<String> = types.take(8).map(|name| format!("{name:.64}")).collect();
        unknown.push(format!(
            "which addresses the plugins {} give out is not in the configuration",
            types.join(", ")
        ));
    }
    given
}

/// The ranges of `ipam`: the one that stands in itself, as old configurations have it, and those of all its lists.
fn entries(ipam: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    let lists = field(ipam, "ranges").and_then(Value::as_array).into_iter().flatten();
    let listed = lists.filter_map(Value::as_array).flatten().filter_map(Value::as_object);
    let itself = Some(ipam).filter(|ipam| field(ipam, "subnet").is_some());
    itself.into_iter().chain(listed).take(MOST_RANGES + 1).collect()
}

/// What one entry gives out, or what is wrong with it.
fn range(entry: &Map<String, Value>, pods: &[Cidr]) -> Result<Vec<Given>, String> {
    let subnet = field(entry, "subnet").and_then(Value::as_str).ok_or("it has no subnet")?;
    if let Some((_, ipv4)) = POD_CIDR.iter().find(|(name, _)| *name == subnet) {
        let own = whole(pods.iter().filter(|range| range.is_ipv4() == *ipv4));
        return if own.is_empty() {
            Err(format!("the Node object has no range for {subnet}"))
        } else {
            Ok(own)
        };
    }
    let parsed = Cidr::parse(subnet).filter(|_| subnet.contains('/'));
    let subnet = parsed.ok_or_else(|| format!("\"{subnet:.64}\" is no range of addresses"))?;
    let end = |name: &str, default: IpAddr| {
        let Some(value) = field(entry, name).filter(|value| !value.is_null()) else { return Ok(default) };
        let addr =
            value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).map(|addr| addr.to_canonical());
        let inside =
            addr.filter(|addr| Cidr::parse(&addr.to_string()).is_some_and(|addr| subnet.contains(&addr)));
        inside.ok_or_else(|| format!("its {name} is no address of {subnet}"))
    };
    let given = Given { first: end("rangeStart", subnet.addr())?, last: end("rangeEnd", subnet.last())? };
    if given.first > given.last {
        return Err(format!("it ends at {} before it begins at {}", given.last, given.first));
    }
    Ok(vec![given])
}

fn whole<'a>(ranges: impl IntoIterator<Item = &'a Cidr>) -> Vec<Given> {
    ranges.into_iter().map(|range| Given { first: range.addr(), last: range.last() }).collect()
}

/// Whether `ipam` is `host-local` without ranges of its own, so that flannel's plugin puts its own there.
fn is_bare(ipam: &Map<String, Value>) -> bool {
    field(ipam, "type").is_none_or(|kind| kind == "host-local") && entries(ipam).is_empty()
}

/// A field as the plugins find it: whatever the case of its name, and the last of several.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Of a node that has a range of each family, in a cluster with another node.
    fn network() -> Network {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Network {
            pod_ranges: owned(&["10.244.1.0/24", "fd00:1::/64"]),
            routes: Vec::new(),
            cluster_ranges: owned(&[
                "10.244.1.0/24",
                "fd00:1::/64",
                "10.244.2.0/24",
                "fd00:2::/64",
                "172.18.0.1/32",
                "172.18.0.2/32",
            ]),
        }
    }

    fn with(ipam: &Value) -> Own {
        let conf = json!({ "plugins": [{ "type": "bridge", "ipam": ipam }, { "type": "portmap" }] });
        own(conf.as_object().unwrap(), &network())
    }

    fn shown(own: &Own) -> Vec<String> {
        own.ranges.iter().map(Cidr::to_string).collect()
    }

    #[test]
    fn ranges_of_host_local_are_read() {
        let closed = |ipam: Value| {
            let own = with(&ipam);
            assert!(own.unknown.is_empty(), "{own:?}");
            shown(&own)
        };
        assert_eq!(closed(json!({ "type": "host-local", "subnet": "10.244.1.0/24" })), ["10.244.1.0/24"]);
        let both = json!([[{ "subnet": "10.244.1.0/25" }], [{ "subnet": "fd00:1::/64" }]]);
        let both = closed(json!({ "type": "host-local", "ranges": both }));
        assert_eq!(both, ["10.244.1.0/25", "fd00:1::/64"]);
        // A network of the cluster, of which each node gives out its part.
        let part = json!([[{ "subnet": "10.9.0.0/16", "rangeStart": "10.9.3.0", "rangeEnd": "10.9.3.255" }]]);
        assert_eq!(closed(json!({ "type": "host-local", "ranges": part })), ["10.9.3.0/24"]);
        let part = json!({ "type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.254" });
        assert_eq!(closed(part), ["10.9.0.254/31"]);
        // As Go reads names of fields.
        let odd = json!({ "type": "host-local", "SubNet": "10.9.0.0/24", "rangestart": "10.9.0.255" });
        assert_eq!(closed(odd), ["10.9.0.255/32"]);
        // What no Node object knows is what the configuration says.
        assert_eq!(closed(json!({ "type": "host-local", "subnet": "10.88.0.0/16" })), ["10.88.0.0/16"]);
        let calico = json!([[{ "subnet": "usePodCidr" }], [{ "subnet": "usePodCidrIPv6" }]]);
        assert_eq!(
            closed(json!({ "type": "host-local", "ranges": calico })),
            ["10.244.1.0/24", "fd00:1::/64"]
        );
        // A single plugin, without a list.
        let single = json!({ "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.244.1.0/24" } });
        assert_eq!(shown(&own(single.as_object().unwrap(), &network())), ["10.244.1.0/24"]);
    }

    #[test]
    fn flannel_gives_out_what_the_node_object_says() {
        let delegating = |fields: Value| {
            let mut plugin = json!({ "type": "flannel", "delegate": { "isDefaultGateway": true } });
            plugin.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let conf = json!({ "plugins": [plugin, { "type": "portmap" }] });
            conf.as_object().unwrap().clone()
        };
        for bare in [json!({}), json!({ "ipam": { "type": "host-local", "routes": [] } })] {
            let own = own(&delegating(bare), &network());
            assert_eq!((shown(&own), own.unknown.len()), (network().pod_ranges, 0), "{own:?}");
        }
        let without = own(&delegating(json!({})), &Network { pod_ranges: Vec::new(), ..network() });
        assert_eq!((shown(&without), without.unknown.len()), (Vec::new(), 1));
        let dhcp = own(&delegating(json!({ "ipam": { "type": "dhcp" } })), &network());
        assert!(dhcp.ranges.is_empty() && dhcp.unknown[0].contains("dhcp"), "{dhcp:?}");
        let set = json!({ "ipam": { "type": "host-local", "subnet": "10.244.1.0/25" } });
        assert_eq!(shown(&own(&delegating(set), &network())), ["10.244.1.0/25"]);
    }

    #[test]
    fn what_is_not_the_nodes_own_is_named() {
        let why = |ipam: Value| {
            let own = with(&ipam);
            assert!(own.ranges.is_empty(), "{own:?}");
            own.unknown.join("; ")
        };
        // All nodes' network; another node's range; one that has a node in it; more than the Node object gives.
        for subnet in ["10.244.0.0/16", "10.244.2.0/25", "172.18.0.0/24", "10.244.0.0/23", "fd00::/16"] {
            let said = why(json!({ "type": "host-local", "subnet": subnet }));
            assert!(said.contains(subnet) && said.contains("not this node's alone"), "{said}");
        }
        let part = json!({ "type": "host-local", "subnet": "10.244.0.0/16", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.2.9" });
        assert!(why(part).contains("10.244.1.9 to 10.244.2.9"));
        assert!(why(json!({ "type": "host-local", "subnet": "0.0.0.0/0" })).contains("larger than any"));
        assert!(why(json!({ "type": "host-local", "subnet": "8000::/1" })).contains("larger than any"));
        assert!(why(json!({ "type": "calico-ipam" })).contains("calico-ipam"));
        assert!(why(json!({ "type": "dhcp" })).contains("dhcp"));
        assert!(why(json!({})).contains("plugins bridge, portmap"));
        // One family is known, the other is another's.
        let conf = json!({ "plugins": [
            { "type": "a", "ipam": { "type": "host-local", "subnet": "10.244.1.0/24" } },
            { "type": "b", "ipam": { "type": "whereabouts" } }] });
        let own = own(conf.as_object().unwrap(), &network());
        assert_eq!((shown(&own), own.unknown.len()), (vec!["10.244.1.0/24".to_owned()], 1));
    }

    #[test]
    fn hostile_configurations_are_harmless() {
        for bad in [
            json!({ "subnet": 1 }),
            json!({ "subnet": "10.0.0.1" }),
            json!({ "subnet": "10.0.0.0/33" }),
            json!({ "subnet": "} ; flush ruleset" }),
            json!({ "subnet": "x".repeat(100_000) }),
            json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.1.0" }),
            json!({ "subnet": "10.0.0.0/24", "rangeStart": 7 }),
            json!({ "subnet": "10.0.0.0/24", "rangeEnd": "fd00::1" }),
            json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8" }),
            json!({ "ranges": [[{}]] }),
            json!({ "ranges": [[{ "subnet": null }]] }),
            json!({ "ranges": "10.0.0.0/24" }),
            json!({ "ranges": { "subnet": "10.0.0.0/24" } }),
            json!({ "ranges": [1, [2, [{ "subnet": "10.0.0.0/24" }]]] }),
        ] {
            let mut ipam = bad.clone();
            ipam["type"] = "host-local".into();
            let own = with(&ipam);
            assert!(own.ranges.is_empty() && !own.unknown.is_empty(), "{bad} {own:?}");
            assert!(own.unknown.iter().all(|why| why.len() < 300), "{own:?}");
        }
        for bad in [json!({}), json!({ "plugins": [] }), json!({ "plugins": [1, null, []] })] {
            let own = own(bad.as_object().unwrap(), &network());
            assert!(own.ranges.is_empty() && own.unknown.len() == 1, "{bad} {own:?}");
        }
        // Each is decomposed into as many ranges as can be, and there are more than anyone has.
        let worst = json!({ "subnet": "fd00::/16", "rangeStart": "fd00::1", "rangeEnd": "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe" });
        let all =
            |number: usize| with(&json!({ "type": "host-local", "ranges": [vec![worst.clone(); number]] }));
        assert!(all(1).ranges.is_empty(), "it overlaps those of nodes");
        assert_eq!(all(100_000).unknown, ["host-local has more than 64 ranges"]);
    }

    #[test]
    fn who_masquerades_between_nodes() {
        let of = |masquerade: bool, subnet: &str| {
            let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": subnet }]] });
            let ptp = json!({ "type": "ptp", "ipMasq": masquerade, "ipam": ipam });
            let conf = json!({ "name": "x", "plugins": [ptp, { "type": "portmap" }] });
            masquerading(conf.as_object().unwrap(), &network())
        };
        let said = of(true, "10.244.1.0/24").unwrap();
        assert!(said.starts_with("ptp masquerades (ipMasq) what pods send to 10.244.2.0/24"), "{said}");
        assert_eq!(of(false, "10.244.1.0/24"), None);
        // The IPv6 range is the other one that is not left alone.
        assert!(of(true, "10.244.0.0/16").unwrap().contains("fd00:2::/64"));
        let alone = Network { cluster_ranges: network().pod_ranges, ..network() };
        let conf = json!({ "type": "bridge", "ipMasq": true, "ipam": { "type": "host-local", "subnet": "10.244.1.0/24" } });
        assert_eq!(masquerading(conf.as_object().unwrap(), &alone), None);
        assert!(masquerading(conf.as_object().unwrap(), &network()).is_some());
    }
}
