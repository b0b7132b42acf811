//! Pods that send from their first instant, before their network is there, while others come and go and addresses are used
//! again at once: nothing passes that the policies deny, and once `ADD` has returned nothing is dropped that they allow.
//!
//! All send from the same port, so that a connection that an earlier pod of the address has left behind would let a later
//! one through. `NETPOLC_RACE_PODS` says how many pods there are.

use crate::netns::{Netns, inside};
use crate::node::{Node, Sandbox};
use crate::objects;
use crate::rig::{Cluster, PATIENCE};
use crate::{lan, node};
use netpolc_bundle::Backend;
use netpolc_standin::{Resource, Standin};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pods unless told otherwise.
const PODS: usize = 24;
/// How many of them live on a node at the same time.
const ALIVE: usize = 4;
/// How often a pod sends to each target once `ADD` has returned.
const AFTER: usize = 30;
/// Between two packets of a pod to the same target.
const PACE: Duration = Duration::from_millis(1);
/// Where to.
const PORT: u16 = 5000;
/// Where from, always.
const FROM: u16 = 4000;

/// What a pod may do: its label.
const KINDS: [&str; 3] = ["good", "stranger", "mute"];

/// Whether packets of a pod of this kind may come to this target.
fn may(kind: &str, target: &str) -> bool {
    match target {
        "db" => kind == "good",
        _ => kind != "mute",
    }
}

/// Takes down every message that comes to [`PORT`].
struct Recorder {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<HashSet<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    fn start(netns: &Netns) -> Recorder {
        let socket = netns.inside(|| {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
            socket.set_only_v6(false).unwrap();
            socket.set_recv_buffer_size(4 << 20).unwrap();
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into()).unwrap();
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
        let (stopped, noted) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 128];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut buffer) {
                    noted.lock().unwrap().insert(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
            }
        });
        Recorder { stop, seen, thread: Some(thread) }
    }

    fn end(mut self) -> HashSet<String> {
        // What is on its way still comes.
        std::thread::sleep(Duration::from_millis(500));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// What a pod sent to a target: messages from before `ADD` returned, and from after.
#[derive(Default)]
struct Sent {
    before: Vec<String>,
    after: Vec<String>,
}

/// Sends to all targets, and [`AFTER`] times more once `added` is set.
fn send(
    netns: &str,
    name: &str,
    targets: &[(&'static str, IpAddr)],
    added: &AtomicBool,
) -> BTreeMap<&'static str, Sent> {
    let mut sent: BTreeMap<&str, Sent> = BTreeMap::new();
    inside(netns, || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, FROM)).unwrap();
        let mut rounds_after = 0;
        for number in 0.. {
            let after = added.load(Ordering::Acquire);
            if after && rounds_after == AFTER {
                break;
            }
            rounds_after += usize::from(after);
            for (target, addr) in targets {
                let text = format!("{name} {target} {addr} {number}");
                let to = match addr {
                    IpAddr::V4(addr) => addr.to_ipv6_mapped(),
                    IpAddr::V6(addr) => *addr,
                };
                // Before there is an address and a route, the kernel refuses.
                if socket.send_to(text.as_bytes(), (to, PORT)).is_ok() {
                    let sent = sent.entry(target).or_default();
                    if after { sent.after.push(text) } else { sent.before.push(text) }
                }
            }
            std::thread::sleep(PACE);
        }
    });
    sent
}

/// Lets pods come and go on one node; gives what each sent, with its kind.
fn churn(
    api: &Standin,
    node: &Node,
    pods: usize,
    targets: &[(&'static str, IpAddr)],
) -> Vec<(&'static str, BTreeMap<&'static str, Sent>)> {
    let mut all = Vec::new();
    let mut alive: VecDeque<(Sandbox, String)> = VecDeque::new();
    let end = |(sandbox, name): (Sandbox, String)| {
        node.cni("DEL", &sandbox).unwrap();
        api.delete(Resource::Pods, "shop", &name);
    };
    for number in 0..pods {
        // Neighbours in time are of different kinds, and on both nodes not the same.
        let kind = KINDS[(number * 7 + usize::from(node.number)) % KINDS.len()];
        let (name, uid) = (format!("{kind}-{}-{number}", node.name), format!("uid-{}-{number}", node.name));
        let (pod, labels) = (format!("shop/{name}"), json!({ "app": kind }));
        api.apply(objects::pod(&pod, &uid, &labels, &node.name, &[]));
        let mut sandbox = Sandbox::new(&pod, &uid);
        let added = AtomicBool::new(false);
        let netns = sandbox.netns.path();
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| send(&netns, &name, targets, &added));
            sandbox.add(node, PATIENCE);
            // A pod that sends before the node's end of its link has an address asks in vain who the gateway is, and asks
            // again after a second. Until then its packets are lost in the pod, which says nothing about rules.
            sandbox
                .netns
                .sh("ip -6 neigh flush dev eth0 nud incomplete; ip -4 neigh flush dev eth0 nud incomplete");
            added.store(true, Ordering::Release);
            sender.join().unwrap()
        });
        api.apply(objects::pod(&pod, &uid, &labels, &node.name, &sandbox.addrs));
        all.push((kind, sent));
        alive.push_back((sandbox, name));
        if alive.len() > ALIVE {
            alive.pop_front().map(end);
        }
    }
    alive.into_iter().for_each(end);
    all
}

fn check(backend: Backend, mut cluster: Cluster) {
    let pods = std::env::var("NETPOLC_RACE_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(PODS);
    cluster.api.apply(objects::policy(
        "db",
        "db",
        &json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "good" } } }] }] }),
    ));
    cluster.api.apply(objects::policy("mute", "mute", &json!({ "egress": [] })));
    cluster.start("shop/db-1", &json!({ "app": "db" }), 0);
    cluster.start("shop/db-2", &json!({ "app": "db" }), 1);
    let recorders = [
        &cluster.pod("shop/db-1").sandbox.netns,
        &cluster.pod("shop/db-2").sandbox.netns,
        &cluster.lan.outside,
    ]
    .map(Recorder::start);
    let began = Instant::now();
    let cluster = &cluster;
    let sent: Vec<_> = std::thread::scope(|scope| {
        let nodes = cluster.nodes.iter().enumerate().map(|(i, node)| {
            scope.spawn(move || {
                // The database of the same node: what another node knows of a new pod comes by way of the API server.
                let db = &cluster.pod(&format!("shop/db-{}", i + 1)).sandbox.addrs;
                let outside = lan::addrs(lan::OUTSIDE);
                let targets: Vec<(&str, IpAddr)> =
                    db.iter().map(|a| ("db", *a)).chain(outside.map(|a| ("outside", a))).collect();
                churn(&cluster.api, node, pods / 2, &targets)
            })
        });
        nodes.collect::<Vec<_>>().into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let took = began.elapsed();
    let seen: HashSet<String> = recorders.into_iter().flat_map(Recorder::end).collect();
    let (mut denied, mut allowed, mut leaked, mut lost) = (0, 0, Vec::new(), Vec::new());
    for (kind, sent) in &sent {
        for (target, Sent { before, after }) in sent {
            if may(kind, target) {
                allowed += after.len();
                lost.extend(after.iter().filter(|text| !seen.contains(*text)));
            } else {
                denied += before.len() + after.len();
                leaked.extend(before.iter().chain(after).filter(|text| seen.contains(*text)));
            }
        }
    }
    println!(
        "{backend}: {} pods in {:.1} s; {denied} packets that no one may have, {} came; {allowed} packets after ADD that \
         must come, {} did not",
        sent.len(),
        took.as_secs_f64(),
        leaked.len(),
        lost.len()
    );
    println!("{}", node::plugin_times(&cluster.nodes));
    assert!(leaked.is_empty(), "leaked: {leaked:?}\n{}", cluster.logs());
    assert!(lost.is_empty(), "lost: {lost:?}\n{}", cluster.logs());
    assert!(denied > 100 && allowed > 100, "too few packets to say anything");
}

/// Beside another CNI, whose plugin gives out the addresses.
fn check_chained(backend: Backend) {
    let mut cluster = Cluster::beside_another_cni(2, backend);
    for node in &mut cluster.nodes {
        node.start_loader();
        node.start_agent();
        let end = Instant::now() + PATIENCE;
        while !node.status().contains("addresses that no pod has: closed in") || !node.is_chained() {
            assert!(Instant::now() < end, "{}", node.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    check(backend, cluster);
}

#[test]
fn with_nftables() {
    check(Backend::Nftables, Cluster::new(2, Backend::Nftables));
}

#[test]
fn with_iptables() {
    check(Backend::Iptables, Cluster::new(2, Backend::Iptables));
}

#[test]
fn with_ebpf() {
    check(Backend::Ebpf, Cluster::new(2, Backend::Ebpf));
}

#[test]
fn race_beside_another_cni_with_nftables() {
    check_chained(Backend::Nftables);
}

#[test]
fn race_beside_another_cni_with_iptables() {
    check_chained(Backend::Iptables);
}

#[test]
fn race_beside_another_cni_with_ebpf() {
    check_chained(Backend::Ebpf);
}
