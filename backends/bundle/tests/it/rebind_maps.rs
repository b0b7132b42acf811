//! The same in the maps of eBPF.

use crate::rebind::{change, ip, pod};
use netpolc_bundle::bpf::contents::{Contents, Pair, Pod};
use netpolc_bundle::bpf::layout::{Map, SHARED};
use netpolc_bundle::limits;
use netpolc_bundle::rebind::{Rebind, rebind_contents};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Three pods of this node, one of them with both families, and one elsewhere.
fn contents() -> Contents {
    let pod = |column, ingress, egress, pod| Pod { column, ingress, egress, pod };
    Contents {
        columns: 3,
        rows: vec!["in".into(), "out".into()],
        pods: BTreeMap::from([
            (ip("10.0.0.1"), pod(1, 1, 0, 1)),
            (ip("fd00::1"), pod(1, 1, 0, 1)),
            (ip("10.0.0.2"), pod(2, 0, 2, 2)),
            (ip("10.0.0.3"), pod(0, 0, 0, 3)),
            (ip("10.0.1.1"), pod(2, 0, 0, 0)),
        ]),
        blocks: BTreeMap::new(),
        pairs: BTreeMap::from([((1, 1), Pair { ports: [1, 0, 0], other: 0 })]),
        ports: vec![],
    }
}

fn contents_after(change: &Rebind) -> Contents {
    let (before, mut after) = (contents(), contents());
    let changed = rebind_contents(&mut after, change).unwrap();
    // What it says has changed leads there.
    let mut stepped = before.pods.clone();
    for (addr, pod) in changed {
        match pod {
            Some(pod) => drop(stepped.insert(addr, pod)),
            None => assert!(stepped.remove(&addr).is_some(), "{addr}"),
        }
    }
    assert_eq!(stepped, after.pods);
    assert_eq!(Contents { pods: before.pods.clone(), ..after.clone() }, before);
    assert_eq!(Contents::parse(&after.text()).unwrap(), after);
    after
}

#[test]
fn a_new_pod_has_a_number_of_its_own() {
    let twin = pod("shop/twin", &["10.0.0.5", "fd00::5"]);
    let like = [("10.0.0.5", "10.0.0.1"), ("fd00::5", "fd00::1")];
    let after = contents_after(&change(&[], &like, vec![twin.clone()]));
    let wanted = Pod { column: 1, ingress: 1, egress: 0, pod: 4 };
    assert_eq!((after.pods[&ip("10.0.0.5")], after.pods[&ip("fd00::5")]), (wanted, wanted));
    assert_eq!(after.pods.len(), 7);
    // One that was there and gets another address keeps its number.
    let grown = pod("shop/other", &["10.0.0.2", "fd00::2"]);
    let after = contents_after(&change(&[], &[("fd00::2", "fd00::1")], vec![grown]));
    assert_eq!(after.pods[&ip("fd00::2")], Pod { column: 1, ingress: 1, egress: 0, pod: 2 });
    // Two new pods are two.
    let two = vec![pod("shop/a", &["10.0.0.5"]), pod("shop/b", &["10.0.0.6"])];
    let after = contents_after(&change(&[], &[("10.0.0.5", "10.0.0.2"), ("10.0.0.6", "10.0.0.2")], two));
    assert_eq!((after.pods[&ip("10.0.0.5")].pod, after.pods[&ip("10.0.0.6")].pod), (4, 5));
    // One of another node has none.
    let after = contents_after(&change(&[], &[("10.0.1.5", "10.0.1.1")], vec![]));
    assert_eq!(after.pods[&ip("10.0.1.5")], Pod { column: 2, ingress: 0, egress: 0, pod: 0 });
    // One like an address that is in no map needs none either.
    assert_eq!(contents_after(&change(&[], &[("10.0.1.5", "192.0.2.1")], vec![])), contents());
    // Like one that is gone, and at the address of one that is gone.
    let after = contents_after(&change(&["10.0.0.1", "fd00::1"], &like, vec![twin]));
    assert_eq!(after.pods.len(), 5);
    assert_eq!((after.pods[&ip("10.0.0.5")].ingress, after.pods[&ip("fd00::5")].ingress), (1, 1));
    let again = change(&["10.0.0.2"], &[("10.0.0.2", "10.0.0.3")], vec![pod("shop/new", &["10.0.0.2"])]);
    let after = contents_after(&again);
    assert_eq!((after.pods[&ip("10.0.0.2")].column, after.pods[&ip("10.0.0.3")].pod), (0, 3));
    assert!(![0, 1, 3].contains(&after.pods[&ip("10.0.0.2")].pod), "a number of its own");
    let after = contents_after(&change(&["10.0.0.2", "192.0.2.1"], &[], vec![]));
    assert_eq!(after.pods.len(), 4);
}

#[test]
fn contents_that_cannot_be_changed_so() {
    let twin = || vec![pod("shop/twin", &["10.0.0.5"])];
    let new = change(&[], &[("10.0.0.5", "10.0.0.1")], twin());
    let fail = |contents: &mut Contents, change: &Rebind, part: &str| {
        let error = rebind_contents(contents, change).expect_err(part).to_string();
        assert!(error.contains(part), "{error}, wanted {part:?}");
    };
    fail(&mut contents(), &change(&[], &[("10.0.0.5", "10.0.0.1")], vec![]), "and no pod");
    fail(&mut contents(), &change(&[], &[("10.0.0.2", "10.0.0.1")], twin()), "new and known already");
    // The greatest number is not one's own.
    let mut full = contents();
    full.pods.get_mut(&ip("10.0.0.3")).unwrap().pod = SHARED - 1;
    fail(&mut full, &new, "too many pods");
    full.pods.get_mut(&ip("10.0.0.3")).unwrap().pod = SHARED - 2;
    rebind_contents(&mut full, &new).unwrap();
    // Maps keep the room that they were made with.
    let mut many = contents();
    let room = limits::BPF_PODS_ROOM;
    let v4 = many.pods.keys().filter(|addr| addr.is_ipv4()).count();
    for n in v4 as u32..room / 2 - 1 {
        many.pods.insert(IpAddr::from((0x0a01_0000 + n).to_be_bytes()), Pod::default());
    }
    let mut fits = many.clone();
    rebind_contents(&mut fits, &new).unwrap();
    let v4 = fits.pods.keys().filter(|addr| addr.is_ipv4()).count();
    assert_eq!((v4 as u32, Map::PODS.map(|map| fits.room(map))), (room / 2, [room; 2]));
    fail(&mut fits, &change(&[], &[("10.0.0.6", "10.0.1.1")], vec![]), "too small");
    // One for another is no more than before.
    fail(&mut many, &change(&[], &[("10.0.0.6", "10.0.1.1"), ("10.0.0.7", "10.0.1.1")], vec![]), "too small");
    let mut swapped = contents();
    swapped.pods = fits.pods.clone();
    swapped.pods.remove(&ip("10.0.0.6"));
    rebind_contents(&mut swapped, &change(&["10.0.0.2"], &[("10.0.0.6", "10.0.1.1")], vec![])).unwrap();
}
