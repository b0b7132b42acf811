//! What every node has: the base chain, the judge, and the maps that lead from either end of a packet to a profile.

use super::fixed::{discovery_chain, from_pod, spoof_chain, strange_chain};
use super::{Builder, DISCOVERY, FORWARD, PRIORITY, SELF, SPOOF, Unsupported, addr_set, rule};
use netpolc_bundle::nft::{
    self, Chain, Elements, Field, Hook, Key, KeyType, LOCAL, Match, PODADDR, PODIF, Rule, Set, Verdict,
};
use std::collections::{BTreeMap, BTreeSet};

/// The node's pods, in one family.
#[derive(Default)]
pub(super) struct Pods {
    /// Where what each sends goes: `return` if no policy isolates it.
    pub(super) egress: BTreeMap<u128, Verdict>,
    /// Where what is sent to those that are isolated goes.
    pub(super) ingress: BTreeMap<Vec<Key>, Option<Verdict>>,
    /// Those that are isolated in either direction.
    pub(super) isolated: Vec<u128>,
    /// These, each with itself and with the other addresses of its pod.
    pub(super) pairs: BTreeMap<Vec<Key>, Option<Verdict>>,
}

/// The fixed part: base chain, judge, deny and what they use.
pub(super) fn frame(builder: &mut Builder, mut pods: Pods) -> Result<(), Unsupported> {
    pods.isolated.sort_unstable();
    let comment = |text: &str| Some(text.to_owned());
    builder.set(
        PODIF,
        Set {
            key: vec![KeyType::Ifname],
            comment: comment("interfaces of the pods of this node; filled by the loader"),
            ..Set::default()
        },
    )?;
    builder.set(
        PODADDR,
        Set {
            key: vec![KeyType::Ifname, KeyType::Addr],
            comment: comment("the same with the addresses behind them; filled by the loader"),
            ..Set::default()
        },
    )?;
    let addrs = |list, text| Set { elements: Elements::Addrs(list), ..addr_set(comment(text)) };
    let local = pods.egress.keys().copied().collect();
    builder.set(LOCAL, addrs(local, "the pods of this node"))?;
    builder.set(
        SELF,
        Set {
            key: vec![KeyType::Addr, KeyType::Addr],
            comment: comment("a pod always reaches itself"),
            elements: Elements::General(pods.pairs),
            ..Set::default()
        },
    )?;
    builder.chain(SPOOF, spoof_chain());
    if builder.family == nft::Family::Ip6 {
        builder.chain(DISCOVERY, discovery_chain());
    }
    let text = "pods that some policy isolates";
    let isolated = builder.named_set("isolated", addrs(pods.isolated, text))?;
    let strange = builder.named_chain("strange", strange_chain(builder.family, &isolated))?;
    let mut judge = vec![
        rule(vec![Match::NotTracked], Verdict::Goto(strange.clone())),
        rule(vec![Match::TcpNotSyn], Verdict::Goto(strange.clone())),
        rule(vec![Match::SctpNotInit], Verdict::Goto(strange)),
    ];
    let ingress = builder.entry("ingress", Field::Daddr, pods.ingress)?;
    judge.extend(sources(builder, pods.egress, ingress.as_ref())?);
    judge.push(to_spoof(from_pod()));
    judge.extend(ingress);
    let judge = builder.named_chain("judge", Chain { rules: judge, ..Chain::default() })?;
    builder.chain(
        FORWARD,
        Chain {
            hook: Some(Hook { priority: PRIORITY }),
            rules: vec![rule(vec![Match::NotEstablished], Verdict::Goto(judge))],
            ..Chain::default()
        },
    );
    Ok(())
}

/// The rule that sends what has the source of a pod of the node to a chain that checks the source and judges it at its own
/// end and then at the other; one chain for each profile. What has no such source is judged the same way at the other
/// end, so a map that changes under a packet on its way opens nothing.
fn sources(
    builder: &mut Builder,
    egress: BTreeMap<u128, Verdict>,
    ingress: Option<&Rule>,
) -> Result<Option<Rule>, Unsupported> {
    let mut own = BTreeMap::new();
    for verdict in egress.values().collect::<BTreeSet<_>>() {
        let mut rules = vec![to_spoof(Match::Unbound)];
        let mut origins = None;
        match verdict {
            Verdict::Return => {}
            Verdict::Goto(chain) => {
                rules.push(rule(Vec::new(), Verdict::Jump(chain.clone())));
                origins = builder.origins.get(chain).cloned();
            }
            other => rules.push(rule(Vec::new(), other.clone())),
        }
        rules.extend(ingress.cloned());
        let name = builder.named_chain("own", Chain { rules, ..Chain::default() })?;
        builder.origins.extend(origins.map(|origins| (name.clone(), origins)));
        own.insert(verdict.clone(), name);
    }
    let element = |(addr, verdict): (&u128, &Verdict)| {
        let way = own.get(verdict).map(|chain| Verdict::Goto(chain.clone()));
        (vec![Key::Addr(*addr, *addr)], way)
    };
    builder.entry("sources", Field::Saddr, egress.iter().map(element).collect())
}

fn to_spoof(found: Match) -> Rule {
    rule(vec![found], Verdict::Jump(SPOOF.to_owned()))
}
