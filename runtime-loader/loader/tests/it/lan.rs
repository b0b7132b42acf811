//! Nodes on a network as a cluster has them, pods made by real CNI plugins, and something outside.

use crate::common::{Dir, Netns};
use crate::daemon::{Daemon, PATIENCE, dir};
use netpolc_bundle::wire::{FromLoader, Network, ToLoader};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";

/// Passes on what the plugins before it did, as netpol-cni does, and writes down that it was called. What the tests
/// give it ends with `prevResult`.
const STUB: &str = "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> \"${0%/*}/called\"\n\
    input=$(cat)\ncase $CNI_COMMAND in ADD) echo \"${input%?}\" | sed 's/.*\"prevResult\"://' ;; esac\n";

/// Runs something in a network namespace, in a thread of its own.
pub(crate) fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(format!("/run/netns/{}", netns.0)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Fills the node's table of connections with some of its own, so that a walk over it takes a while.
pub(crate) fn crowd(node: &Netns, connections: u16) {
    inside(node, || {
        for host in 1..=10 {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for port in 0..connections / 10 {
                // Nobody listens there.
                let _ = socket.send_to(b"x", (Ipv4Addr::new(127, 0, 1, host), 20_000 + port));
            }
        }
    });
    let count = node.sh("cat /proc/sys/net/netfilter/nf_conntrack_count");
    assert!(count.trim().parse::<u16>().unwrap() >= connections / 2, "{count}");
}

/// Whom a server in `to` saw when `from` connected; `None` if it could not. An address of the link ends with `%` and the number
/// of the interface.
pub(crate) fn meets(from: &Netns, to: &Netns, addr: &str, patience: Duration) -> Option<IpAddr> {
    let any: SocketAddr = if addr.contains(':') { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    let server = inside(to, || TcpListener::bind(any)).unwrap();
    let port = server.local_addr().unwrap().port();
    let goal = if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") };
    let goal: SocketAddr = goal.parse().unwrap();
    let client = inside(from, || TcpStream::connect_timeout(&goal, patience)).ok()?;
    let (_, seen) = server.accept().unwrap();
    drop(client);
    Some(seen.ip().to_canonical())
}

/// A switch with an outside at `.100`, which the nodes take for their way to everything.
pub(crate) struct Lan {
    switch: Netns,
    pub(crate) outside: Netns,
}

impl Lan {
    pub(crate) fn new() -> Lan {
        let lan = Lan { switch: Netns::new(), outside: Netns::new() };
        lan.switch.sh("ip link add br0 type bridge; ip link set br0 up; ip link set lo up");
        lan.plug(&lan.outside, 100);
        lan
    }

    fn plug(&self, netns: &Netns, number: u8) {
        let port = format!("p{number}");
        let (switch, name) = (&self.switch, &netns.0);
        switch.sh(&format!("ip link add {port} mtu 1400 type veth peer name eth0 mtu 1400 netns {name}"));
        switch.sh(&format!("ip link set {port} master br0 up"));
        netns.sh("ip link set lo up; ip link set eth0 up");
        netns.sh(&format!("ip addr add 172.18.0.{number}/24 dev eth0"));
        netns.sh(&format!("ip addr add fd00:18::{number}/64 dev eth0 nodad"));
    }
}

/// A node, with the directories that are its own on a real one.
pub(crate) struct Node {
    // The daemon ends first: it would make anew what is taken away.
    daemon: Option<Daemon>,
    pub(crate) netns: Netns,
    pub(crate) dir: Dir,
    number: u8,
}

impl Node {
    pub(crate) fn new(lan: &Lan, number: u8) -> Node {
        let node = Node { netns: Netns::new(), dir: dir(), number, daemon: None };
        lan.plug(&node.netns, number);
        node.netns.sh("ip route add default via 172.18.0.100; ip -6 route add default via fd00:18::100");
        let bin = node.dir.file("bin");
        fs::create_dir(&bin).unwrap();
        for plugin in ["ptp", "host-local", "portmap"] {
            symlink(Path::new(PLUGINS).join(plugin), bin.join(plugin)).unwrap();
        }
        fs::write(node.dir.file("stub"), STUB).unwrap();
        node
    }

    /// The flags that keep to this node's directories.
    pub(crate) fn files(&self) -> Vec<String> {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.dir.file(file).display());
        vec![
            flag("cni-conf-dir", "conf"),
            flag("cni-bin-dir", "bin"),
            flag("state", "state"),
            flag("agent-socket", "agent.sock"),
            flag("agent-state", "agent-state.json"),
        ]
    }

    pub(crate) fn start(&mut self) {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.dir.file(file).display());
        let flags = [
            flag("cni-conf-dir", "conf"),
            flag("cni-bin-dir", "bin"),
            flag("ipam-dir", "ipam"),
            flag("cni-plugin", "stub"),
        ];
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.push("--cni=ptp");
        self.daemon = Some(Daemon::start(&self.netns, &self.dir, &args));
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }

    pub(crate) fn network(&mut self, network: Network) -> FromLoader {
        self.daemon().ask(&ToLoader::Network(network))
    }

    pub(crate) fn stop(&mut self) {
        self.daemon().signal("TERM");
        self.daemon = None;
    }

    pub(crate) fn remove(&self) -> String {
        let mut args = vec!["remove".to_owned(), "--cni".to_owned()];
        args.extend(self.files());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.netns.load(&args, 0)
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.dir.file("conf/10-netpolc.conflist")
    }

    /// What a node of two knows of the other.
    pub(crate) fn knows(&self, other: &Node) -> Network {
        let [v4, v6] = self.ranges();
        let [other_v4, other_v6] = other.ranges();
        let addrs = |node: &Node| [format!("172.18.0.{}", node.number), format!("fd00:18::{}", node.number)];
        let [via4, via6] = addrs(other).map(|addr| addr.parse().unwrap());
        Network {
            pod_ranges: vec![v4, v6],
            routes: vec![(other_v4, via4), (other_v6, via6)],
            cluster_ranges: ["10.244.0.0/16".into(), "fd00:244::/48".into()]
                .into_iter()
                .chain(addrs(self))
                .chain(addrs(other))
                .collect(),
        }
    }

    fn ranges(&self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.number), format!("fd00:244:0:{}::/64", self.number)]
    }

    /// Does to a pod what a runtime does with the configuration that is there.
    fn run(&self, command: &str, pod: &Netns) -> Value {
        let conf: Value = serde_json::from_slice(&fs::read(self.conflist()).unwrap()).unwrap();
        let mut plugins = conf["plugins"].as_array().unwrap().clone();
        if command == "DEL" {
            plugins.reverse();
        }
        let mut result = Value::Null;
        for plugin in &plugins {
            let mut input = json!({ "cniVersion": conf["cniVersion"], "name": conf["name"] });
            let fields = input.as_object_mut().unwrap();
            fields.extend(plugin.as_object().unwrap().clone());
            fields.shift_remove("capabilities");
            if !result.is_null() {
                fields.insert("prevResult".into(), result.clone());
            }
            let output = self.plugin(command, pod, plugin["type"].as_str().unwrap(), &input);
            if command == "ADD" {
                result = serde_json::from_slice(&output).unwrap_or_else(|e| panic!("{plugin}: {e}"));
            }
        }
        result
    }

    fn plugin(&self, command: &str, pod: &Netns, name: &str, input: &Value) -> Vec<u8> {
        let bin = self.dir.file("bin");
        let mut child = self.netns.command(bin.join(name).to_str().unwrap());
        child.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &pod.0).env("CNI_IFNAME", "eth0");
        child.env("CNI_NETNS", format!("/run/netns/{}", pod.0)).env("CNI_PATH", &bin);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        output.stdout
    }

    /// A new pod and its addresses.
    pub(crate) fn add(&self) -> (Netns, Vec<String>) {
        let pod = Netns::new();
        // A pod's addresses are used at once here, without waiting whether others have them.
        pod.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        let result = self.run("ADD", &pod);
        let ips = result["ips"].as_array().unwrap().iter();
        let addrs =
            ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect();
        (pod, addrs)
    }

    pub(crate) fn delete(&self, pod: &Netns) {
        self.run("DEL", pod);
    }
}

/// Waits until one end meets the other, and says whom the server saw.
pub(crate) fn meet(from: &Netns, to: &Netns, addr: &str) -> IpAddr {
    let end = Instant::now() + PATIENCE;
    loop {
        match meets(from, to, addr, Duration::from_secs(2)) {
            Some(seen) => return seen,
            None => assert!(Instant::now() < end, "no way to {addr}"),
        }
    }
}
