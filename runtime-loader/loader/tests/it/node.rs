//! The node's network: made by the daemon, used by real plugins, looked after, taken out.

use crate::common::Netns;
use crate::daemon::{Daemon, dir, wait};
use crate::lan::{Lan, Node, meet, meets};
use netpol_loader::node::chain::{Place, chain, unchain};
use netpol_loader::node::conflist;
use netpolc_bundle::wire::{FromLoader, Network};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

/// How long is waited for what must not come.
const SHORT: Duration = Duration::from_millis(700);

fn done(answer: &FromLoader) -> &str {
    match answer {
        FromLoader::Done { report, .. } => report,
        other => panic!("{other:?}"),
    }
}

/// What a namespace has of what the loader makes.
fn traces(netns: &Netns) -> String {
    netns.sh("ip route show proto 110; ip -6 route show proto 110; nft list ruleset")
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_the_outside() {
    let lan = Lan::new();
    let (mut one, mut two) = (Node::new(&lan, 1), Node::new(&lan, 2));
    let before = traces(&one.netns);
    one.start();
    two.start();
    // First the control: without routes, and with the outside taken for a part of the cluster.
    let (mut first, mut second) = (one.knows(&two), two.knows(&one));
    for network in [&mut first, &mut second] {
        network.routes.clear();
        network.cluster_ranges.extend(["172.18.0.0/24".into(), "fd00:18::/64".into()]);
    }
    done(&one.network(first));
    done(&two.network(second));
    check_conflist(&one);
    let ((a, a_addrs), (b, b_addrs), (c, c_addrs)) = (one.add(), one.add(), two.add());
    assert_eq!(fs::read_to_string(one.dir.file("bin/called")).unwrap().lines().count(), 2);
    assert_eq!(a.sh("cat /sys/class/net/eth0/mtu").trim(), "1400");
    for family in 0..2 {
        assert_eq!(meet(&a, &b, &b_addrs[family]).to_string(), a_addrs[family], "on the same node");
        assert_eq!(meets(&a, &c, &c_addrs[family], SHORT), None, "no route");
        assert_eq!(
            meets(&a, &lan.outside, ["172.18.0.100", "fd00:18::100"][family], SHORT),
            None,
            "no way back"
        );
    }
    // And now as it should be.
    let (first, second) = (one.knows(&two), two.knows(&one));
    done(&one.network(first.clone()));
    done(&two.network(second));
    assert_eq!(done(&one.network(first)), "unchanged");
    let reach = |node: &str| {
        for family in 0..2 {
            assert_eq!(meet(&a, &c, &c_addrs[family]).to_string(), a_addrs[family], "{node}");
            assert_eq!(meet(&c, &b, &b_addrs[family]).to_string(), c_addrs[family], "{node}");
            let outside = ["172.18.0.100", "fd00:18::100"][family];
            let seen = meet(&a, &lan.outside, outside).to_string();
            assert_eq!(seen, ["172.18.0.1", "fd00:18::1"][family], "{node}: masqueraded");
            let seen = meet(&c, &lan.outside, outside).to_string();
            assert_eq!(seen, ["172.18.0.2", "fd00:18::2"][family], "{node}: masqueraded");
        }
    };
    reach("made");
    let made = traces(&one.netns);
    // Another hand.
    for damage in ["ip route flush proto 110", "ip -6 route flush proto 110", "nft flush ruleset"] {
        one.netns.sh(damage);
        wait(damage, || traces(&one.netns) == made);
    }
    fs::remove_file(one.conflist()).unwrap();
    wait("the configuration", || one.conflist().exists());
    reach("repaired");
    // All that goes on without a daemon, and a successor finds nothing to do.
    one.stop();
    reach("without a daemon");
    one.netns.sh("ip route flush proto 110; nft flush ruleset");
    one.start();
    wait("what was written down", || traces(&one.netns) == made);
    for (node, pod) in [(&one, &a), (&one, &b), (&two, &c)] {
        node.delete(pod);
    }
    let kept = fs::read_dir(one.dir.file("ipam/netpolc")).unwrap();
    let kept: Vec<String> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!kept.iter().any(|name| name.starts_with("10.") || name.starts_with("fd00")), "{kept:?}");
    one.stop();
    let text = one.remove();
    for wanted in
        ["10-netpolc.conflist removed", "netpol-cni removed", "route 10.244.2.0/24", "ip6 netpolc_masq"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(traces(&one.netns), before);
    assert!(!one.dir.file("state").exists() && !one.dir.file("bin/netpol-cni").exists());
    assert!(fs::read_dir(one.dir.file("conf")).unwrap().next().is_none());
    assert!(!one.remove().contains("removed: /"), "a second time there is nothing");
}

fn check_conflist(node: &Node) {
    let conf: Value = serde_json::from_slice(&fs::read(node.conflist()).unwrap()).unwrap();
    let types: Vec<&str> =
        conf["plugins"].as_array().unwrap().iter().filter_map(|p| p["type"].as_str()).collect();
    assert_eq!(types, ["ptp", "portmap", "netpol-cni"]);
    assert_eq!(conf["plugins"][0]["mtu"], 1400, "the MTU of the way out");
    let sysctl = |name: &str| node.netns.sh(&format!("cat /proc/sys/{name}"));
    assert_eq!(sysctl("net/ipv4/ip_forward") + &sysctl("net/ipv6/conf/all/forwarding"), "1\n1\n");
}

/// Two that give out the same addresses would give them to two pods.
#[test]
fn a_plugin_that_gives_out_the_nodes_addresses_already_stays() {
    let lan = Lan::new();
    let (mut node, other) = (Node::new(&lan, 1), Node::new(&lan, 2));
    let theirs = node.dir.file("conf/10-ptp.conflist");
    fs::create_dir_all(node.dir.file("conf")).unwrap();
    let ranges = |subnet: &str| json!([[{ "subnet": subnet }]]);
    let write = |subnet: &str| {
        let ptp = json!({ "type": "ptp", "ipMasq": true, "ipam": { "type": "host-local", "ranges": ranges(subnet) } });
        let list = json!({ "cniVersion": "1.0.0", "name": "theirs", "plugins": [ptp] });
        fs::write(&theirs, list.to_string()).unwrap();
    };
    write("10.244.1.0/24");
    node.start();
    done(&node.network(node.knows(&other)));
    assert!(!node.conflist().exists());
    let list: Value = serde_json::from_slice(&fs::read(&theirs).unwrap()).unwrap();
    assert_eq!(list["plugins"][1]["type"], "netpol-cni", "{list}");
    let log = fs::read_to_string(node.dir.file("log")).unwrap();
    assert!(log.contains("gives out this node's addresses already"), "{log}");
    assert!(log.contains("masquerades (ipMasq) what pods send to"), "{log}");
    assert!(!log.contains("does the runtime look there?"), "{log}");
    // The control: one with other addresses does not keep ours away.
    write("10.88.0.0/16");
    done(&node.network(node.knows(&other)));
    wait("ours", || node.conflist().exists());
}

#[test]
fn a_network_that_makes_no_sense_changes_nothing() {
    let lan = Lan::new();
    let (mut node, other) = (Node::new(&lan, 1), Node::new(&lan, 2));
    node.start();
    let good = node.knows(&other);
    let mut bad = vec![Network::default(), good.clone(), good.clone(), good.clone(), good.clone()];
    bad[1].pod_ranges.push("10.244.1.0/33; flush ruleset".into());
    bad[2].routes.push(("0.0.0.0/0".into(), "172.18.0.2".parse().unwrap()));
    bad[3].cluster_ranges.push("}".into());
    bad[4].cluster_ranges.retain(|range| range != "10.244.0.0/16");
    let before = traces(&node.netns);
    for network in bad {
        let answer = node.network(network);
        assert!(matches!(answer, FromLoader::Failed { .. }), "{answer:?}");
    }
    assert_eq!(traces(&node.netns), before);
    assert!(!node.conflist().exists());
    // What can be made is, although one next hop is no neighbour and one route belongs to another hand. One that leads where it
    // should may be another hand's.
    let mut partly = good.clone();
    partly.routes.push(("10.244.9.0/24".into(), "192.0.2.1".parse().unwrap()));
    partly.routes.push(("10.244.8.0/24".into(), "172.18.0.2".parse().unwrap()));
    partly.routes.push(("10.244.7.0/24".into(), "172.18.0.2".parse().unwrap()));
    partly.routes.push(("fd00:244:0:7::/64".into(), "fd00:18::2".parse().unwrap()));
    node.netns.sh("ip route add 10.244.8.0/24 via 172.18.0.100; ip route add 10.244.7.0/24 via 172.18.0.2");
    node.netns.sh("ip -6 route add fd00:244:0:7::/64 via fd00:18::2");
    let FromLoader::Failed { message } = node.network(partly) else { panic!("not all can be made") };
    assert!(message.contains("10.244.9.0/24") && message.contains("10.244.8.0/24"), "{message}");
    assert!(!message.contains("10.244.7.0/24") && !message.contains("fd00:244:0:7::/64"), "{message}");
    assert!(node.conflist().exists() && traces(&node.netns).contains("10.244.2.0/24 via 172.18.0.2"));
    assert!(node.netns.sh("ip route show 10.244.8.0/24").contains("via 172.18.0.100"));
    // A node that has moved, and one that is gone.
    let mut moved = good;
    moved.routes[0].1 = "172.18.0.100".parse().unwrap();
    moved.routes.truncate(1);
    done(&node.network(moved));
    let text = traces(&node.netns);
    assert!(
        text.contains("10.244.2.0/24 via 172.18.0.100") && !text.contains("fd00:244:0:2::/64 via"),
        "{text}"
    );
}

/// What is done where the node has no nft.
#[test]
fn masquerade_without_nft() {
    let netns = Netns::new();
    let ranges = ["10.244.1.0/24", "fd00::/64"].map(|t| netpol_loader::node::cidr::Cidr::parse(t).unwrap());
    let save = || netns.sh("iptables -t nat -S; ip6tables -t nat -S");
    let changes = crate::lan::inside(&netns, || netpol_loader::node::masquerade::by_iptables(&ranges, &[]));
    assert_eq!(changes.unwrap().len(), 2);
    let text = save();
    assert!(text.contains("-A NETPOLC-MASQ -s 10.244.1.0/24 -j MASQUERADE --random-fully"), "{text}");
    let again = crate::lan::inside(&netns, || netpol_loader::node::masquerade::by_iptables(&ranges, &[]));
    assert_eq!((again.unwrap().len(), save()), (0, text));
    netns.sh("iptables -t nat -F; ip6tables -t nat -F NETPOLC-MASQ");
    let repaired = crate::lan::inside(&netns, || netpol_loader::node::masquerade::by_iptables(&ranges, &[]));
    assert_eq!(repaired.unwrap().len(), 2);
    let gone = crate::lan::inside(&netns, || netpol_loader::node::masquerade::by_iptables(&[], &[]));
    assert_eq!(gone.unwrap().len(), 2);
    assert!(!save().contains("NETPOLC"));
}

/// As other CNIs write theirs.
const FOREIGN: &str = "{\n  \"cniVersion\":\"0.3.1\",\n \"name\": \"cbr0\", \"plugins\": [\n\
    {\"type\": \"flannel\", \"delegate\": {\"isDefaultGateway\": true}}, {\"type\": \"portmap\"}\n]}\n";

#[test]
fn our_plugin_is_chained_in_and_taken_out() {
    let dir = dir();
    let (conf, kept) = (dir.file("conf"), dir.file("kept"));
    let place = Place { conf_dir: &conf, backup_dir: &kept };
    let plugin = conflist::plugin(Path::new("/run/netpolc/agent.sock"));
    assert!(chain(&place, &plugin).is_err(), "no CNI is there yet");
    fs::create_dir(&conf).unwrap();
    // Others that runtimes do not take, or take later.
    fs::write(conf.join("00-not-one.txt"), "x").unwrap();
    fs::write(conf.join("90-other.conflist"), FOREIGN).unwrap();
    let file = conf.join("10-flannel.conflist");
    for broken in ["", "[]", "{", "{\"plugins\": 1}", "{\"plugins\": []}"] {
        fs::write(&file, broken).unwrap();
        assert!(chain(&place, &plugin).is_err(), "{broken}");
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
    fs::write(&file, FOREIGN).unwrap();
    assert_eq!(chain(&place, &plugin).unwrap().as_ref(), Some(&file));
    assert_eq!(chain(&place, &plugin).unwrap(), None);
    let now: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut wanted: Value = serde_json::from_str(FOREIGN).unwrap();
    wanted["plugins"].as_array_mut().unwrap().push(plugin.clone());
    assert_eq!(now, wanted);
    assert_eq!(fs::read_to_string(conf.join("90-other.conflist")).unwrap(), FOREIGN);
    // The other CNI writes its file anew, now with something else in it; then it is put back byte for byte.
    let newer = FOREIGN.replace("cbr0", "cbr1");
    fs::write(&file, &newer).unwrap();
    assert_eq!(chain(&place, &plugin).unwrap().as_ref(), Some(&file));
    assert_eq!(unchain(&place).unwrap(), std::slice::from_ref(&file));
    assert_eq!(fs::read_to_string(&file).unwrap(), newer);
    assert!(unchain(&place).unwrap().is_empty());
    // Our own plugin moves, and others come after it: it is put last once.
    let mut other: Value = serde_json::from_str(FOREIGN).unwrap();
    let list = other["plugins"].as_array_mut().unwrap();
    list.insert(0, json!({ "type": "netpol-cni", "agentSocket": "/old" }));
    fs::write(&file, other.to_string()).unwrap();
    chain(&place, &plugin).unwrap();
    let now: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(now, wanted);
    unchain(&place).unwrap();
    let now: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(now, serde_json::from_str::<Value>(FOREIGN).unwrap());
}

#[test]
fn a_single_plugin_becomes_a_list_and_comes_back() {
    let dir = dir();
    let (conf, kept) = (dir.file("conf"), dir.file("kept"));
    let place = Place { conf_dir: &conf, backup_dir: &kept };
    let plugin = conflist::plugin(Path::new("/run/netpolc/agent.sock"));
    fs::create_dir(&conf).unwrap();
    let single = "{ \"cniVersion\": \"0.4.0\", \"name\": \"net\", \"type\": \"bridge\" }";
    let file = conf.join("10-bridge.conf");
    // The name that we need is another's.
    fs::write(&file, single).unwrap();
    fs::write(conf.join("10-bridge.conflist"), FOREIGN).unwrap();
    assert!(chain(&place, &plugin).is_err());
    fs::remove_file(conf.join("10-bridge.conflist")).unwrap();
    for _ in 0..2 {
        fs::write(&file, single).unwrap();
        let list = chain(&place, &plugin).unwrap().unwrap();
        assert_eq!(list, conf.join("10-bridge.conflist"));
        assert!(!file.exists());
        let now: Value = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
        assert_eq!((&now["cniVersion"], &now["name"]), (&json!("0.4.0"), &json!("net")));
        assert_eq!(now["plugins"], json!([serde_json::from_str::<Value>(single).unwrap(), plugin]));
        assert_eq!(chain(&place, &plugin).unwrap(), None);
    }
    assert_eq!(unchain(&place).unwrap(), std::slice::from_ref(&file));
    assert_eq!(fs::read_to_string(&file).unwrap(), single);
    assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);
}

#[test]
fn the_daemon_chains_in_as_soon_as_it_can() {
    let (netns, dir) = (Netns::new(), dir());
    let (conf, bin, stub) = (dir.file("conf"), dir.file("bin"), dir.file("stub"));
    fs::create_dir(&conf).unwrap();
    fs::write(&stub, "#!/bin/sh\n").unwrap();
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let flags = [flag("cni-conf-dir", &conf), flag("cni-bin-dir", &bin), flag("cni-plugin", &stub)];
    let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
    // A long interval: it is the change of the directory that wakes it.
    args.extend(["--cni=chain", "--interval=600"]);
    let mut daemon = Daemon::start(&netns, &dir, &args);
    wait("the complaint", || daemon.log().contains("no CNI has put its configuration there yet"));
    let file = conf.join("10-flannel.conflist");
    let chained = || fs::read_to_string(&file).unwrap().contains("netpol-cni");
    for _ in 0..3 {
        fs::write(&file, FOREIGN).unwrap();
        wait("our plugin", chained);
    }
    assert!(bin.join("netpol-cni").is_file());
    wait("a doubt", || daemon.log().contains("10-flannel.conflist is in"));
    assert!(daemon.log().contains("does the runtime look there?"));
    daemon.signal("TERM");
    assert!(chained(), "it stays");
    let state = flag("state", &dir.file("state"));
    // What the agent remembers would be wrong as soon as pods come and go without the plugin.
    let (socket, memory) = (dir.file("agent.sock"), dir.file("agent-state.json"));
    drop(UnixListener::bind(&socket).unwrap());
    fs::write(&memory, "{}").unwrap();
    let agent = [flag("agent-socket", &socket), flag("agent-state", &memory)];
    netns.load(&["remove", "--cni", &flags[0], &flags[1], &state, &agent[0], &agent[1]], 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), FOREIGN);
    assert!(!socket.exists() && !memory.exists());
    assert!(!bin.join("netpol-cni").exists() && !dir.file("state").exists());
}

#[test]
fn what_a_predecessor_closed_is_opened_where_nothing_is_closed() {
    for args in [&["--audit", "--cni=ptp"][..], &["--cni=none"]] {
        let (netns, dir) = (Netns::new(), dir());
        netns.nft("table ip netpolc_closed {\n}\ntable ip6 netpolc_closed {\n}\n");
        let daemon = Daemon::start(&netns, &dir, args);
        wait("opened", || !netns.sh("nft list tables").contains("netpolc_closed"));
        drop(daemon);
    }
    // Where addresses are closed, a successor waits until it is told which.
    let (netns, dir) = (Netns::new(), dir());
    netns.nft("table ip netpolc_closed {\n}\n");
    let daemon = Daemon::start(&netns, &dir, &["--cni=ptp"]);
    wait("looks", || daemon.log().contains("event=started"));
    std::thread::sleep(Duration::from_millis(500));
    assert!(netns.sh("nft list tables").contains("netpolc_closed"));
}
