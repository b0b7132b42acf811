//! What the agent may ask of the node's network: what makes no sense, or would turn more than the cluster's traffic, is refused.

use super::cidr::Cidr;
use crate::Error;
use netpolc_bundle::wire::Network;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Most ranges and routes of a [`Network`]. Ours: Kubernetes is made for 5,000 nodes of two families.
pub const RANGES: usize = 16_384;

/// The shortest prefixes of IPv4 and IPv6 that may be routed to a node, and that all which are may be together. Ours: a mistaken
/// or malicious agent must not turn the default route, with one range or with two hundred.
pub const SHORTEST: (u8, u8) = (8, 16);

/// A [`Network`] that makes sense.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) pods: Vec<Cidr>,
    pub(super) routes: BTreeMap<Cidr, IpAddr>,
    pub(super) cluster: Vec<Cidr>,
}

pub(super) fn check_size(network: &Network) -> Result<(), Error> {
    let Network { pod_ranges, routes, cluster_ranges } = network;
    if pod_ranges.len().max(routes.len()).max(cluster_ranges.len()) > RANGES {
        return Err(Error::Refused(format!("more than {RANGES} ranges")));
    }
    Ok(())
}

pub(super) fn check(network: &Network) -> Result<Wanted, Error> {
    check_size(network)?;
    let refuse = |what: String| Err(Error::Refused(what));
    let Network { pod_ranges, routes, cluster_ranges } = network;
    let parse = |text: &String| {
        Cidr::parse(text).ok_or_else(|| Error::Refused(format!("{text:?} is no range of addresses")))
    };
    let pods = pod_ranges.iter().map(parse).collect::<Result<Vec<Cidr>, Error>>()?;
    let cluster = cluster_ranges.iter().map(parse).collect::<Result<Vec<Cidr>, Error>>()?;
    if pods.is_empty() {
        return refuse("the node has no range of pods yet".into());
    }
    let mut wanted = Wanted { pods, cluster, routes: BTreeMap::new() };
    for (text, gateway) in routes {
        let range = parse(text)?;
        if range.is_ipv4() != gateway.is_ipv4() {
            return refuse(format!("a route to {range} by {gateway}"));
        }
        wanted.routes.insert(range, *gateway);
    }
    for range in wanted.routes.keys().chain(&wanted.pods) {
        let shortest = if range.is_ipv4() { SHORTEST.0 } else { SHORTEST.1 };
        if range.length() < shortest {
            return refuse(format!("{range}: no range of pods is as large as that"));
        }
    }
    for ipv4 in [true, false] {
        let (bits, shortest) = if ipv4 { (32, SHORTEST.0) } else { (128, SHORTEST.1) };
        let addresses = |length: u8| 1u128.checked_shl(bits - u32::from(length)).unwrap_or(u128::MAX);
        let sum = |ranges: &mut dyn Iterator<Item = &Cidr>| {
            let lengths = ranges.filter(|range| range.is_ipv4() == ipv4).map(Cidr::length);
            lengths.map(addresses).fold(0, u128::saturating_add)
        };
        let most = addresses(shortest);
        // What the cluster has is not masqueraded: its nodes' own addresses are a few more.
        if sum(&mut wanted.routes.keys().chain(&wanted.pods)) > most
            || sum(&mut wanted.cluster.iter()) > 2 * most
        {
            return refuse(format!("ranges of more addresses than a /{shortest} has"));
        }
    }
    if let Some(range) =
        wanted.routes.keys().find(|range| !wanted.cluster.iter().any(|all| all.contains(range)))
    {
        return refuse(format!("a route to {range}, which is none of the cluster's ranges"));
    }
    if let Some(range) =
        wanted.routes.keys().find(|r| wanted.pods.iter().any(|own| r.contains(own) || own.contains(r)))
    {
        return refuse(format!("{range} is this node's own, and another's"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(pods: &[&str], routes: &[(&str, &str)]) -> Network {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        Network {
            pod_ranges: owned(pods),
            routes: routes.iter().map(|(range, via)| ((*range).to_owned(), via.parse().unwrap())).collect(),
            cluster_ranges: [owned(pods), routes.iter().map(|(range, _)| (*range).to_owned()).collect()]
                .concat(),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ok = |pods: &[&str], routes: &[(&str, &str)]| check(&network(pods, routes)).is_ok();
        assert!(ok(&["10.244.1.0/24", "fd00:1::/64"], &[("10.244.2.0/24", "172.18.0.3")]));
        assert!(!ok(&[], &[]));
        assert!(!ok(&["10.244.1.0/240"], &[]));
        assert!(!ok(&["10.244.1.0/24"], &[("0.0.0.0/0", "172.18.0.3")]));
        assert!(!ok(&["10.244.1.0/24"], &[("fd00:2::/64", "172.18.0.3")]));
        assert!(!ok(&["10.244.1.0/24"], &[("10.244.1.0/24", "172.18.0.3")]));
        assert!(!ok(&["10.244.1.0/24"], &[("10.244.0.0/16", "172.18.0.3")]));
        let large: Vec<String> = (1..=2).map(|n| format!("{n}0.0.0.0/8")).collect();
        let large: Vec<(&str, &str)> = large.iter().map(|range| (range.as_str(), "172.18.0.3")).collect();
        assert!(!ok(&["10.244.1.0/24"], &large), "more than one may have");
        let all = |cluster: &str| Network {
            cluster_ranges: vec![cluster.to_owned()],
            ..network(&["10.244.1.0/24"], &[("10.244.2.0/24", "172.18.0.3")])
        };
        assert!(check(&all("10.244.2.0/24")).is_ok());
        assert!(check(&all("10.244.3.0/24")).is_err(), "a route beside the cluster");
        assert!(
            check(&Network { routes: vec![], ..all("0.0.0.0/0") }).is_err(),
            "nothing would be masqueraded"
        );
    }
}
