//! The chains that drop, which are the same on every node but for the set of isolated pods and the policies that isolate them.

use super::{DISCOVERY, SELF, SPOOF, rule};
use netpolc_bundle::nft::{self, Chain, Field, LOCAL, Match, PODIF, Rule, Verdict};

fn counted(matches: Vec<Match>, comment: &str) -> Rule {
    Rule { counter: true, comment: Some(comment.to_owned()), ..rule(matches, Verdict::Drop) }
}

/// Of one list of policies.
pub(super) fn deny_chain(comment: String) -> Chain {
    let pair = vec![Field::Saddr, Field::Daddr];
    let itself = rule(vec![Match::InSet(pair, SELF.to_owned())], Verdict::Accept);
    Chain { rules: vec![itself, counted(Vec::new(), &comment)], ..Chain::default() }
}

/// From an interface that leads to pods.
pub(super) fn from_pod() -> Match {
    Match::InSet(vec![Field::Iifname], PODIF.to_owned())
}

/// From a pod of this node, or from who claims to be one.
fn of_local() -> Match {
    Match::InSet(vec![Field::Saddr], LOCAL.to_owned())
}

/// Only what `podaddr` does not have is asked about, so that the look at the routes is for those few. It is for pods whose
/// interface the loader does not know, and for rules that were loaded without it.
pub(super) fn spoof_chain() -> Chain {
    // Both sets may have been filled after the packet was sent here. Looked up in this order, a pod whose interface is
    // there has its addresses there too.
    let rules = vec![
        counted(vec![from_pod(), Match::Unbound], "source is not the pod"),
        counted(vec![of_local(), Match::Unbound, Match::ReversePathFails], "source is another pod"),
    ];
    Chain { rules, ..Chain::default() }
}

/// IPv6 neighbour discovery crosses this hook on bridges. Conntrack leaves it alone, so it comes the way of what opens no
/// connection. This is a chain of its own since the one before has the name of its content, and the daemon, which makes such
/// chains, cannot tell the kernel this rule (it takes a set without a name).
pub(super) fn discovery_chain() -> Chain {
    let rules = vec![rule(vec![Match::NeighbourDiscovery], Verdict::Accept)];
    Chain { rules, ..Chain::default() }
}

pub(super) fn strange_chain(family: nft::Family, isolated: &str) -> Chain {
    let touches = |field| vec![Match::InSet(vec![field], isolated.to_owned())];
    let mut rules = Vec::new();
    if family == nft::Family::Ip6 {
        rules.push(rule(Vec::new(), Verdict::Jump(DISCOVERY.to_owned())));
    }
    // Where a packet comes from does not depend on what it is.
    rules.push(rule(Vec::new(), Verdict::Jump(SPOOF.to_owned())));
    rules.push(counted(touches(Field::Saddr), "from an isolated pod"));
    rules.push(counted(touches(Field::Daddr), "to an isolated pod"));
    let comment = Some("opens no connection: dropped where it touches an isolated pod".to_owned());
    Chain { comment, rules, ..Chain::default() }
}
