//! The chains that drop, which are the same on every node but for the set of isolated pods.

use super::{SELF, rule};
use netpolc_bundle::nft::{self, Chain, Field, LOCAL, Match, PODIF, Rule, Verdict};

fn counted(matches: Vec<Match>, comment: &str) -> Rule {
    Rule { counter: true, comment: Some(comment.to_owned()), ..rule(matches, Verdict::Drop) }
}

pub(super) fn deny_chain(family: nft::Family) -> Chain {
    let pair = vec![Field::Saddr, Field::Daddr];
    let mut rules = vec![rule(vec![Match::InSet(pair, SELF.to_owned())], Verdict::Accept)];
    if family == nft::Family::Ip6 {
        rules.push(rule(vec![Match::NeighbourDiscovery], Verdict::Accept));
    }
    rules.push(counted(Vec::new(), "no policy allows it"));
    Chain { rules, ..Chain::default() }
}

/// From an interface that leads to pods.
pub(super) fn from_pod() -> Match {
    Match::InSet(vec![Field::Iifname], PODIF.to_owned())
}

/// From a pod of this node, or from who claims to be one.
fn of_local() -> Match {
    Match::InSet(vec![Field::Saddr], LOCAL.to_owned())
}

/// Only what `podaddr` does not have comes here, so that the look at the routes is for those few. It is for pods whose
/// interface the loader does not know, and for rules that were loaded without it.
pub(super) fn spoof_chain(family: nft::Family) -> Chain {
    let mut rules = Vec::new();
    if family == nft::Family::Ip6 {
        // On a bridge it crosses this hook, from addresses of the link.
        rules.push(rule(vec![Match::NeighbourDiscovery], Verdict::Return));
    }
    // Both sets may have been filled after the packet was sent here. Looked up in this order, a pod whose interface is
    // there has its addresses there too.
    rules.push(counted(vec![from_pod(), Match::Unbound], "source is not the pod"));
    rules.push(counted(vec![of_local(), Match::ReversePathFails], "source is another pod"));
    Chain { rules, ..Chain::default() }
}

pub(super) fn strange_chain(isolated: &str) -> Chain {
    let touches = |field| vec![Match::InSet(vec![field], isolated.to_owned())];
    Chain {
        comment: Some("opens no connection: dropped where it touches an isolated pod".to_owned()),
        rules: vec![
            counted(touches(Field::Saddr), "from an isolated pod"),
            counted(touches(Field::Daddr), "to an isolated pod"),
        ],
        ..Chain::default()
    }
}
