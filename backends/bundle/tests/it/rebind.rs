//! Addresses that come and go without a new bundle.

use crate::common::{Random, SHAPE, SHAPE6, bundle, script};
use netpolc_bundle::nft::{self, Edit, Elements, Family, Key, Ruleset, Set, Verdict, Version};
use netpolc_bundle::rebind::{Rebind, Unlike};
use netpolc_bundle::{Artifact, Bundle, LocalPod, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn pod(name: &str, addresses: &[&str]) -> LocalPod {
    LocalPod { name: name.into(), addresses: addresses.iter().map(|addr| ip(addr)).collect() }
}

pub(crate) fn change(gone: &[&str], like: &[(&str, &str)], pods: Vec<LocalPod>) -> Rebind {
    Rebind {
        artifact: Artifact::Nftables,
        from: version(&script()),
        gone: gone.iter().map(|addr| ip(addr)).collect(),
        like: like.iter().map(|(new, known)| (ip(new), ip(known))).collect(),
        pods,
    }
}

fn parse(text: &str) -> Ruleset {
    nft::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn version(text: &str) -> Version {
    nft::digest(&parse(text))
}

/// The number of an address: as it stands in keys.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

/// All that a set holds of single fields.
fn holds(set: &Set) -> BTreeMap<Vec<Key>, Option<Verdict>> {
    match &set.elements {
        Elements::Addrs(list) => list.iter().map(|addr| (vec![Key::Addr(*addr, *addr)], None)).collect(),
        Elements::General(map) => map.clone(),
    }
}

/// The sets of one family that an address is in, and what it leads to there.
fn memberships(rules: &Ruleset, addr: &str) -> BTreeMap<String, Option<Verdict>> {
    let (addr, family) = (ip(addr), if addr.contains(':') { Family::Ip6 } else { Family::Ip });
    let key = Key::Addr(number(addr), number(addr));
    let sets = rules.tables[&family].sets.iter();
    let found = sets.flat_map(|(name, set)| {
        let mine = holds(set).into_iter().filter(|(fields, _)| fields.contains(&key)).collect::<Vec<_>>();
        assert!(mine.len() < 2, "{name}: {mine:?}");
        mine.into_iter().map(|(_, verdict)| (name.clone(), verdict))
    });
    found.collect()
}

/// Does to a ruleset what the kernel would: what comes must not be there, and what goes must.
fn apply(rules: &mut Ruleset, edits: &[Edit]) {
    for Edit { family, set, key, verdict, comes } in edits {
        let set = rules.tables.get_mut(family).unwrap().sets.get_mut(set).unwrap();
        match (&mut set.elements, key.as_slice()) {
            (Elements::Addrs(list), [Key::Addr(addr, last)]) => {
                assert_eq!((addr, verdict), (last, &None));
                match (list.binary_search(addr), comes) {
                    (Err(at), true) => list.insert(at, *addr),
                    (Ok(at), false) => drop(list.remove(at)),
                    other => panic!("{other:?}: {key:?}"),
                }
            }
            (Elements::General(map), key) => match comes {
                true => assert_eq!(map.insert(key.to_vec(), verdict.clone()), None),
                false => assert_eq!(map.remove(key).as_ref(), Some(verdict)),
            },
            (Elements::Addrs(_), key) => panic!("{key:?}"),
        }
    }
}

/// Changes the rules of a script, and checks all that holds of every change.
fn rebound(text: &str, change: &Rebind) -> (Ruleset, Vec<Edit>) {
    rebound_rules(&parse(text), change).unwrap()
}

fn rebound_rules(before: &Ruleset, change: &Rebind) -> Result<(Ruleset, Vec<Edit>), Unlike> {
    let mut rules = before.clone();
    let (version, edits) = nft::rebind(&mut rules, change)?;
    nft::check(&rules).unwrap();
    assert_eq!(version, nft::digest(&rules));
    for table in rules.tables.values() {
        let markers: Vec<&String> =
            table.chains.keys().filter(|name| name.starts_with(nft::MARKER_PREFIX)).collect();
        assert_eq!(markers, [&nft::marker(version)]);
    }
    // What the rules are called is all that the edits do not say.
    let mut edited = before.clone();
    apply(&mut edited, &edits);
    for (family, table) in &edited.tables {
        assert_eq!(table.sets, rules.tables[family].sets);
    }
    assert_eq!(nft::digest(&edited), version);
    // As text it means the same.
    assert_eq!(parse(&nft::emit::emit(&rules, &[])), rules);
    Ok((rules, edits))
}

fn unlike(text: &str, change: &Rebind, part: &str) {
    let error = nft::rebind(&mut parse(text), change).expect_err(part).to_string();
    assert!(error.contains(part), "{error}, wanted {part:?}");
}

#[test]
fn a_new_address_gets_every_membership_of_the_known_one() {
    let (rules, edits) = rebound(&script(), &change(&[], &[("10.0.0.5", "10.0.0.1")], vec![]));
    let known = memberships(&rules, "10.0.0.1");
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    assert_eq!(names, ["egress_1234", "ingress_1234", "isolated_11aa22bb", "local_3f2a9c01", "self_77aa"]);
    assert_eq!(known["egress_1234"], Some(Verdict::Jump("out_abcd".into())));
    assert_eq!(known["ingress_1234"], Some(Verdict::Goto("in_abcd".into())));
    assert_eq!(memberships(&rules, "10.0.0.5"), known);
    assert_eq!(edits.len(), 5);
    assert!(edits.iter().all(|edit| edit.comes && edit.family == Family::Ip), "{edits:?}");
    // With itself, and not with the one that it is like.
    let five = number(ip("10.0.0.5"));
    let own = edits.iter().find(|edit| edit.set == "self_77aa").unwrap();
    assert_eq!(own.key, [Key::Addr(five, five), Key::Addr(five, five)]);
    // A peer, by the other family.
    let (rules, edits) = rebound(&script(), &change(&[], &[("fd00::8", "fd00::7")], vec![]));
    assert_eq!(memberships(&rules, "fd00::8").keys().collect::<Vec<_>>(), ["pods_5a5a"]);
    assert_eq!((edits.len(), edits[0].family), (1, Family::Ip6));
    // One that is in no set makes no difference, and the version stays.
    let (rules, edits) = rebound(&script(), &change(&[], &[("10.0.0.5", "192.0.2.1")], vec![]));
    assert_eq!((rules, edits), (parse(&script()), vec![]));
}

#[test]
fn what_is_gone_leaves_no_trace() {
    let (rules, edits) =
        rebound(&script(), &change(&["10.0.0.1", "fd00::9", "10.0.0.7", "192.0.2.9"], &[], vec![]));
    for addr in ["10.0.0.1", "10.0.0.7", "fd00::9"] {
        assert_eq!(memberships(&rules, addr), BTreeMap::new(), "{addr}");
        assert!(!memberships(&parse(&script()), addr).is_empty(), "{addr}");
    }
    assert_eq!(edits.len(), 5 + 1 + 1);
    assert!(edits.iter().all(|edit| !edit.comes), "{edits:?}");
    // Others, and the same number in the other family, are where they were.
    for addr in ["10.0.0.2", "10.0.0.9", "fd00::1", "fd00::7"] {
        assert_eq!(memberships(&rules, addr), memberships(&parse(&script()), addr), "{addr}");
    }
}

#[test]
fn what_goes_may_be_what_others_are_like() {
    let before = memberships(&parse(&script()), "10.0.0.1");
    let (rules, edits) = rebound(&script(), &change(&["10.0.0.1"], &[("10.0.0.5", "10.0.0.1")], vec![]));
    assert_eq!(memberships(&rules, "10.0.0.5"), before);
    assert_eq!(memberships(&rules, "10.0.0.1"), BTreeMap::new());
    assert_eq!(edits.len(), 10);
    // Gone, and back as another that is alike: the kernel has nothing to do.
    let back = change(&["10.0.0.7"], &[("10.0.0.7", "10.0.0.9")], vec![]);
    let (rules, edits) = rebound(&script(), &back);
    assert_eq!((rules, edits), (parse(&script()), vec![]));
    // Gone, and back as something else.
    let (rules, edits) = rebound(&script(), &change(&["10.0.0.7"], &[("10.0.0.7", "10.0.0.2")], vec![]));
    assert_eq!(memberships(&rules, "10.0.0.7"), memberships(&rules, "10.0.0.2"));
    assert_eq!(
        edits.iter().map(|edit| (edit.set.as_str(), edit.comes)).collect::<Vec<_>>(),
        [("local_3f2a9c01", true), ("pods_5a5a", false)]
    );
    // Back, and led elsewhere by the same map.
    let two = script().replacen(
        "\t\telements = { 10.0.0.1 : jump out_abcd }",
        "\t\telements = { 10.0.0.1 : jump out_abcd, 10.0.0.2 : drop }",
        1,
    );
    let two = two.replace(&nft::marker(version(&script())), &nft::marker(version(&two)));
    let (rules, edits) = rebound(&two, &change(&["10.0.0.1"], &[("10.0.0.1", "10.0.0.2")], vec![]));
    assert_eq!(memberships(&rules, "10.0.0.1")["egress_1234"], Some(Verdict::Drop));
    let steps = edits.iter().filter(|edit| edit.set == "egress_1234").map(|edit| edit.comes);
    assert_eq!(steps.collect::<Vec<_>>(), [false, true]);
}

#[test]
fn sets_of_prefixes_and_blocks_stay() {
    // Addresses that are keys of those sets, as a block's first address may be a pod's.
    let change = change(&["10.3.4.0"], &[("10.3.4.1", "10.1.0.0"), ("fd00:3:4::1", "fd00:1::")], vec![]);
    let (rules, edits) = rebound(&script(), &change);
    assert_eq!((rules, edits), (parse(&script()), vec![]));
}

/// A block of one address is asked for it like a set of pods. It says what a policy says of that address, whoever has it.
#[test]
fn blocks_of_one_address_stay() {
    let map = "\tmap blocks32_abcd {\n\t\ttype ipv4_addr : verdict\n\t\t\
        elements = { 10.0.0.7 : goto deny_c0c0, 10.0.0.20 : return }\n\t}\n\tmap block24_9e9e {";
    let text = SHAPE.replacen("\tmap block24_9e9e {", map, 1).replacen(
        "\t\tip saddr & 255",
        "\t\tip saddr vmap @blocks32_abcd\n\t\tip saddr & 255",
        1,
    );
    let blocks = |rules: &Ruleset| holds(&rules.tables[&Family::Ip].sets["blocks32_abcd"]);
    let before = blocks(&parse(&text));
    assert_eq!(before.len(), 2);
    // One that goes, and one that comes and is like one that no block of this length has.
    let (rules, _) = rebound(&text, &change(&["10.0.0.7"], &[("10.0.0.20", "10.0.0.9")], vec![]));
    assert_eq!(blocks(&rules), before);
    let (rules, _) = rebound(&text, &change(&[], &[("10.0.0.21", "10.0.0.7")], vec![]));
    assert_eq!(blocks(&rules), before);
    assert_eq!(memberships(&rules, "10.0.0.21").keys().collect::<Vec<_>>(), ["pods_5a5a"]);
}

#[test]
fn what_cannot_be_done_by_element_is_refused() {
    let new = change(&[], &[("10.0.0.5", "10.0.0.1")], vec![]);
    for family in [SHAPE, SHAPE6] {
        let prefix =
            if family == SHAPE { "ip saddr & 255.255.255.0" } else { "ip6 saddr & ffff:ffff:ffff::" };
        let both = family.replacen(
            "\tchain out_abcd {\n",
            &format!("\tchain out_abcd {{\n\t\t{prefix} @pods_5a5a return\n"),
            1,
        );
        nft::check(&parse(&both)).unwrap();
        unlike(&both, &new, "the set pods_5a5a is asked for addresses and for more");
    }
    let more = SHAPE.replacen(
        "{ 10.0.0.1 . 10.0.0.1 }",
        "{ 10.0.0.1 . 10.0.0.1, 10.0.0.1 . 10.0.0.2, 10.0.0.2 . 10.0.0.1, 10.0.0.2 . 10.0.0.2 }",
        1,
    );
    unlike(&more, &new, "a pod with several addresses of a family");
    // Such a pod may go.
    let mut rules = parse(&more);
    nft::rebind(&mut rules, &change(&["10.0.0.1"], &[], vec![])).unwrap();
    let two = number(ip("10.0.0.2"));
    let left = holds(&rules.tables[&Family::Ip].sets["self_77aa"]);
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [[Key::Addr(two, two), Key::Addr(two, two)]]);
    unlike(SHAPE, &change(&[], &[("10.0.0.2", "10.0.0.1")], vec![]), "new and in the set local_3f2a9c01");
    unlike(SHAPE, &change(&[], &[("10.0.0.1", "10.0.0.9")], vec![]), "an address is new and in the set");
}

/// The sets that are asked for whole addresses, as this test knows them.
const ASKED: [&str; 6] =
    ["local_3f2a9c01", "isolated_11aa22bb", "pods_5a5a", "egress_1234", "ingress_1234", "self_77aa"];

/// An address of a small pool.
fn pooled(family: Family, n: usize) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([10, 0, 0, n as u8]),
        Family::Ip6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n as u16]),
    }
}

const POOL: usize = 12;

/// What one address has in one set; a set of pairs has each with itself.
fn key_in(set: &str, addr: IpAddr) -> Vec<Key> {
    let key = Key::Addr(number(addr), number(addr));
    if set == "self_77aa" { vec![key.clone(), key] } else { vec![key] }
}

/// Random members of the sets, of which the last addresses of the pool have none.
fn random_rules(random: &mut Random) -> Ruleset {
    let mut rules = parse(&script());
    for (family, table) in &mut rules.tables {
        for name in ASKED {
            let set = table.sets.get_mut(name).unwrap();
            let members: Vec<IpAddr> =
                (0..POOL - 4).filter(|_| random.below(3) > 0).map(|n| pooled(*family, n)).collect();
            let verdict = |random: &mut Random| match (name, random.below(3)) {
                ("egress_1234", 0) => Some(Verdict::Jump("out_abcd".into())),
                ("ingress_1234", 0) => Some(Verdict::Goto("in_abcd".into())),
                ("egress_1234" | "ingress_1234", 1) => Some(Verdict::Drop),
                ("egress_1234" | "ingress_1234", _) => Some(Verdict::Return),
                _ => None,
            };
            set.elements = match &set.elements {
                Elements::Addrs(_) => Elements::Addrs(members.into_iter().map(number).collect()),
                Elements::General(_) => Elements::General(
                    members.into_iter().map(|addr| (key_in(name, addr), verdict(random))).collect(),
                ),
            };
        }
    }
    let version = nft::digest(&rules);
    for table in rules.tables.values_mut() {
        table.chains.retain(|name, _| !name.starts_with(nft::MARKER_PREFIX));
        table.chains.insert(nft::marker(version), nft::Chain::default());
    }
    rules
}

fn random_change(random: &mut Random, from: Version) -> Rebind {
    let mut change = Rebind { from, ..change(&[], &[], vec![]) };
    for family in FAMILIES {
        let gone: BTreeSet<usize> = (0..POOL).filter(|_| random.below(4) == 0).collect();
        // What has no members, and what is gone, can be new.
        let new: BTreeSet<usize> =
            (0..POOL).filter(|n| (*n >= POOL - 4 || gone.contains(n)) && random.below(2) == 0).collect();
        let old: Vec<usize> = (0..POOL).filter(|n| !new.contains(n)).collect();
        change.gone.extend(gone.iter().map(|n| pooled(family, *n)));
        let like = new.iter().map(|n| (*n, old[random.below(old.len())]));
        change.like.extend(like.map(|(new, known)| (pooled(family, new), pooled(family, known))));
    }
    change
}

#[test]
fn random_changes_do_what_they_say() {
    let mut random = Random(17);
    let (mut touched, mut back) = (0, 0);
    for round in 0..400 {
        let before = random_rules(&mut random);
        let change = random_change(&mut random, nft::digest(&before));
        change.check().unwrap();
        let (after, edits) = rebound_rules(&before, &change).unwrap_or_else(|e| panic!("{round}: {e}"));
        touched += edits.len();
        let like: BTreeMap<IpAddr, IpAddr> = change.like.iter().copied().collect();
        for (family, table) in &before.tables {
            for (name, set) in &table.sets {
                let now = holds(&after.tables[family].sets[name]);
                if !ASKED.contains(&name.as_str()) {
                    assert_eq!(now, holds(set), "{round}: {name}");
                    continue;
                }
                let had = holds(set);
                let mut wanted = BTreeMap::new();
                for addr in (0..POOL).map(|n| pooled(*family, n)) {
                    let gone = change.gone.contains(&addr);
                    let source = like.get(&addr).copied().or((!gone).then_some(addr));
                    let found = source.and_then(|source| had.get(&key_in(name, source)));
                    wanted.extend(found.map(|verdict| (key_in(name, addr), verdict.clone())));
                }
                assert_eq!(now, wanted, "{round}: {family} {name}");
                // What is as it was is not touched.
                let of_set = |e: &&Edit| e.family == *family && e.set == *name;
                let differ = had.iter().filter(|(key, v)| now.get(*key) != Some(v)).count()
                    + now.iter().filter(|(key, v)| had.get(*key) != Some(v)).count();
                assert_eq!(edits.iter().filter(of_set).count(), differ, "{round}: {name}");
            }
        }
        back += change.like.iter().filter(|(new, _)| change.gone.contains(new)).count();
    }
    assert!(touched > 1_000 && back > 100, "{touched} {back}");
}

#[test]
fn what_can_be_said_of_a_change_without_the_rules() {
    let check = |gone: &[&str], like: &[(&str, &str)]| change(gone, like, vec![]).check();
    assert_eq!(check(&[], &[]), Ok(()));
    assert_eq!(check(&["10.0.0.1"], &[("10.0.0.5", "10.0.0.1"), ("fd00::5", "fd00::1")]), Ok(()));
    assert_eq!(check(&["10.0.0.5"], &[("10.0.0.5", "10.0.0.1"), ("10.0.0.6", "10.0.0.1")]), Ok(()));
    let twice = check(&[], &[("10.0.0.5", "10.0.0.1"), ("10.0.0.6", "10.0.0.1"), ("10.0.0.5", "10.0.0.2")]);
    assert!(twice.unwrap_err().0.contains("new twice"));
    for like in [[("10.0.0.5", "fd00::1")], [("fd00::5", "10.0.0.1")], [("10.0.0.5", "10.0.0.5")]] {
        assert!(check(&[], &like).unwrap_err().0.contains("another family"), "{like:?}");
    }
    check(&["10.0.0.6"], &[("10.0.0.5", "10.0.0.6"), ("10.0.0.6", "10.0.0.1")]).unwrap_err();
    let mut many = change(&[], &[], vec![]);
    many.gone = vec![ip("10.0.0.1"); 2 * limits::LOCAL_PODS];
    assert_eq!(many.check(), Ok(()));
    many.gone.push(ip("10.0.0.1"));
    assert!(many.check().unwrap_err().0.contains("too many"));
    many.gone.clear();
    many.pods = vec![pod("shop/a", &[]); 2 * limits::LOCAL_PODS + 1];
    many.check().unwrap_err();
}

#[test]
fn a_bundle_after_a_change_is_sound() {
    let before = bundle();
    let pods = vec![pod("shop/db", &["10.0.0.5"]), pod("shop/more", &["10.0.0.6", "fd00::6"])];
    let like = [("10.0.0.5", "10.0.0.1"), ("10.0.0.6", "10.0.0.2"), ("fd00::6", "fd00::2")];
    let change = change(&["10.0.0.1"], &like, pods.clone());
    let after = before.rebound(&change).unwrap();
    let after = Bundle::from_files(after.to_files().unwrap()).unwrap();
    let (rules, _) = rebound(&script(), &change);
    assert_eq!(after.read_back().unwrap().nftables.unwrap(), rules);
    assert_eq!(after.manifest.artifacts, BTreeMap::from([(Artifact::Nftables, nft::digest(&rules))]));
    assert_ne!(after.manifest.artifacts, before.manifest.artifacts);
    assert_eq!(after.bindings().unwrap().pods, pods);
    let same = |bundle: &Bundle| {
        let manifest = bundle.manifest.clone();
        (manifest.node, manifest.node_addresses, manifest.compiler)
    };
    assert_eq!(same(&after), same(&before));
    // And once more, from there.
    let from = nft::digest(&rules);
    let back = Rebind { from, ..self::change(&["10.0.0.5"], &[("10.0.0.1", "10.0.0.5")], vec![]) };
    let again = after.rebound(&back).unwrap().read_back().unwrap().nftables.unwrap();
    assert_eq!(memberships(&again, "10.0.0.1"), memberships(&parse(&script()), "10.0.0.1"));
}

#[test]
fn bundles_that_cannot_be_changed_so() {
    let fail = |change: &Rebind, file: &str, part: &str| {
        let error = bundle().rebound(change).unwrap_err().to_string();
        assert!(error.starts_with(file) && error.contains(part), "{error}, wanted {part:?}");
    };
    let good = change(&[], &[("10.0.0.5", "10.0.0.1")], vec![]);
    bundle().rebound(&good).unwrap();
    let other = version(&SHAPE.replace("10.0.0.9", "10.0.0.8"));
    fail(&Rebind { from: other, ..good.clone() }, "nftables.nft", "it is not of version");
    fail(&Rebind { artifact: Artifact::Ebpf, ..good.clone() }, "ebpf-cut.o", "it is not of version");
    let twice = change(&[], &[("10.0.0.5", "10.0.0.1"), ("10.0.0.5", "10.0.0.2")], vec![]);
    fail(&twice, "nftables.nft", "new twice");
    fail(&change(&[], &[], vec![pod("shop/b", &["10.0.0.1"])]), "nftables.nft", "two pods");
}
