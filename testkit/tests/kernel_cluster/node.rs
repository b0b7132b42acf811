//! A node: a network namespace with the real daemons, and a runtime that calls the real plugins.

use crate::lan::{Lan, OUTSIDE, addrs};
use crate::netns::Netns;
use crate::rig::PATIENCE;
use crate::server::Server;
use netpolc_bundle::BINDINGS;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";
/// Where each loader, in its network namespace, serves its metrics.
const METRICS: &str = "127.0.0.1:9474";
/// The configuration of the other CNI, where there is one.
const OTHER: &str = "05-other.conflist";
/// A user without any privilege, as in the manifest.
const NOBODY: &str = "65532";

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) netns: Netns,
    /// The flag `--cni` of both.
    cni: &'static str,
    /// The loader's flag, and the agent's.
    backends: (String, String),
    programs: PathBuf,
    dir: PathBuf,
    kubeconfig: PathBuf,
    loader: Option<Child>,
    agent: Option<Child>,
    /// How long each `ADD` of each plugin took.
    times: Mutex<BTreeMap<String, Vec<Duration>>>,
    _server: Server,
}

impl Node {
    /// A node without daemons. Its directories are below `dir`.
    pub(crate) fn new(
        lan: &Lan,
        number: u8,
        dir: &Path,
        programs: &Path,
        kubeconfig: &Path,
        (cni, backends): (&'static str, (&str, &str)),
    ) -> Node {
        let name = format!("n{number}");
        let (netns, dir) = (Netns::new(), dir.join(&name));
        fs::create_dir_all(dir.join("bin")).unwrap();
        for plugin in ["ptp", "host-local", "portmap"] {
            symlink(Path::new(PLUGINS).join(plugin), dir.join("bin").join(plugin)).unwrap();
        }
        // The plugin ptp gives each pod's end on the node the gateway's address. As long as the kernel asks around whether
        // others have it, up to two seconds, it does not answer for it, and what a pod sends by IPv6 is lost in the pod.
        netns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        let server = Server::start(&netns, &name);
        lan.plug(&netns, number);
        let [v4, v6] = addrs(OUTSIDE);
        netns.sh(&format!("ip route add default via {v4}; ip -6 route add default via {v6}"));
        Node {
            name,
            number,
            netns,
            cni,
            backends: (backends.0.to_owned(), backends.1.to_owned()),
            programs: programs.to_owned(),
            dir,
            kubeconfig: kubeconfig.to_owned(),
            loader: None,
            agent: None,
            times: Mutex::default(),
            _server: server,
        }
    }

    /// The path of something below its directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).to_str().unwrap().to_owned()
    }

    fn log(&self, name: &str) -> File {
        File::options().create(true).append(true).open(self.dir.join(name)).unwrap()
    }

    /// What the daemons said so far.
    pub(crate) fn logs(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        format!(
            "== {} loader\n{}== {} agent\n{}",
            self.name,
            read("loader.log"),
            self.name,
            read("agent.log")
        )
    }

    pub(crate) fn start_loader(&mut self) {
        let mut command = self.netns.command(&self.program("netpol-loader"));
        command.args(["run", "--interval=0.5", "--metrics-listen", METRICS, "--socket-group", NOBODY]);
        command.args([format!("--cni={}", self.cni), format!("--backend={}", self.backends.0)]);
        for (flag, name) in [
            ("socket", "run/loader.sock"),
            ("agent-socket", "run/agent.sock"),
            ("state", "state"),
            ("cni-conf-dir", "conf"),
            ("cni-bin-dir", "bin"),
            ("ipam-dir", "ipam"),
        ] {
            command.arg(format!("--{flag}={}", self.path(name)));
        }
        command.arg(format!("--cni-plugin={}", self.program("netpol-cni")));
        self.loader = Some(command.stdin(Stdio::null()).stderr(self.log("loader.log")).spawn().unwrap());
    }

    pub(crate) fn start_agent(&mut self) {
        let mut command = self.netns.command("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--bounding-set=-all"]);
        command.args(["--inh-caps=-all", "--no-new-privs"]).arg(self.program("netpol-agent"));
        command.args(["--metrics-listen=off", "--node", &self.name, "--cni", self.cni, "--kubeconfig"]);
        command.arg(&self.kubeconfig).arg(format!("--backend={}", self.backends.1));
        command.env_remove("KUBERNETES_SERVICE_HOST");
        for (flag, name) in [
            ("loader-socket", "run/loader.sock"),
            ("socket", "run/agent.sock"),
            ("state", "run/agent-state.json"),
        ] {
            command.arg(format!("--{flag}={}", self.path(name)));
        }
        self.agent = Some(command.stdin(Stdio::null()).stderr(self.log("agent.log")).spawn().unwrap());
    }

    /// Starts the loader with another flag from now on.
    pub(crate) fn set_loader_backend(&mut self, backend: &str) {
        self.backends.0 = backend.to_owned();
    }

    pub(crate) fn kill_loader(&mut self) {
        kill(&mut self.loader);
    }

    pub(crate) fn kill_agent(&mut self) {
        kill(&mut self.agent);
    }

    /// Runs the loader once, to its end.
    pub(crate) fn loader(&self, args: &[&str]) -> String {
        let output = self.netns.command(&self.program("netpol-loader")).args(args).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    /// What the loader says is in force; it asks the daemon too.
    pub(crate) fn status(&self) -> String {
        self.loader(&["status", "--socket", &self.path("run/loader.sock")])
    }

    /// A figure of the loader's metrics.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let body = self.netns.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            write!(stream, "GET /metrics HTTP/1.1\r\n\r\n")?;
            let mut body = String::new();
            stream.read_to_string(&mut body).map(|_| body)
        });
        let line = |body: &String| body.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        body.ok().as_ref().and_then(line)
    }

    /// Writes the configuration of another CNI anew: the plugin ptp, with this to give out addresses.
    pub(crate) fn write_other(&self, ipam: &Value) {
        let mut ipam = ipam.clone();
        if ipam["type"] == "host-local" {
            ipam["dataDir"] = self.path("ipam").into();
            ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        }
        let conf = json!({ "cniVersion": "1.0.0", "name": "other", "plugins": [
            { "type": "ptp", "ipam": ipam }, { "type": "portmap", "capabilities": { "portMappings": true } }] });
        fs::create_dir_all(self.dir.join("conf")).unwrap();
        // As runtimes and their CNIs do, so that it is whole whenever someone looks.
        fs::write(self.dir.join("conf/new"), conf.to_string()).unwrap();
        fs::rename(self.dir.join("conf/new"), self.dir.join("conf").join(OTHER)).unwrap();
    }

    /// Whether our plugin is in the configuration of the other CNI.
    pub(crate) fn is_chained(&self) -> bool {
        fs::read_to_string(self.dir.join("conf").join(OTHER)).unwrap().contains("netpol-cni")
    }

    /// Leaves half of it.
    pub(crate) fn break_other(&self) {
        fs::write(self.dir.join("conf").join(OTHER), "{ \"plugins\": [").unwrap();
    }

    /// Waits until the loader has written down a bundle with this address.
    pub(crate) fn wrote_down(&self, addr: IpAddr) {
        let (file, end) = (self.dir.join("state/bundle").join(BINDINGS), Instant::now() + PATIENCE);
        while !fs::read_to_string(&file).unwrap_or_default().contains(&format!("\"{addr}\"")) {
            assert!(Instant::now() < end, "{addr} is not in {}\n{}", file.display(), self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Calls the plugins of the configuration that is there, each with the result of those before it, as runtimes do;
    /// the answer is the result of the last, or what the first that failed said.
    pub(crate) fn cni(&self, command: &str, pod: &Sandbox) -> Result<Value, String> {
        self.cni_but(command, pod, &[])
    }

    /// The same without some plugins.
    pub(crate) fn cni_but(&self, command: &str, pod: &Sandbox, without: &[&str]) -> Result<Value, String> {
        let other = self.dir.join("conf").join(OTHER);
        let file = if other.exists() { other } else { self.dir.join("conf/10-netpolc.conflist") };
        let text = fs::read(&file).map_err(|error| format!("no network yet: {error}"))?;
        let conf: Value = serde_json::from_slice(&text).unwrap();
        let mut plugins = conf["plugins"].as_array().unwrap().clone();
        plugins.retain(|plugin| !without.iter().any(|name| plugin["type"] == *name));
        if command == "DEL" {
            plugins.reverse();
        }
        let mut result = pod.result.clone();
        for plugin in &plugins {
            let mut input = json!({ "cniVersion": conf["cniVersion"], "name": conf["name"] });
            let fields = input.as_object_mut().unwrap();
            fields.extend(plugin.as_object().unwrap().clone());
            fields.shift_remove("capabilities");
            if let Some(result) = &result {
                fields.insert("prevResult".into(), result.clone());
            }
            let (name, began) = (plugin["type"].as_str().unwrap(), Instant::now());
            let output = self.plugin(command, pod, name, &input)?;
            if command == "ADD" {
                self.times.lock().unwrap().entry(name.to_owned()).or_default().push(began.elapsed());
                result = Some(serde_json::from_str(&output).map_err(|e| format!("{plugin}: {e}"))?);
            }
        }
        Ok(result.unwrap_or_default())
    }

    fn plugin(&self, command: &str, pod: &Sandbox, name: &str, input: &Value) -> Result<String, String> {
        let mut child = self.netns.command(&self.path(&format!("bin/{name}")));
        let (namespace, pod_name) = pod.pod.split_once('/').unwrap();
        child.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &pod.netns.0).env("CNI_IFNAME", "eth0");
        child.env("CNI_NETNS", pod.netns.path()).env("CNI_PATH", self.path("bin"));
        child.env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod_name};\
                 K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                pod.netns.0, pod.uid
            ),
        );
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        // A plugin may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(format!("{name} {command}: {said}")) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_agent();
        self.kill_loader();
        // What is pinned would keep the namespace alive.
        self.loader(&["remove"]);
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A pod's network namespace as a runtime knows it.
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) result: Option<Value>,
    /// IPv4, then IPv6.
    pub(crate) addrs: Vec<IpAddr>,
}

impl Sandbox {
    pub(crate) fn new(pod: &str, uid: &str) -> Sandbox {
        let netns = Netns::new();
        // A pod's addresses are used at once here, without waiting whether others have them.
        netns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        Sandbox { netns, pod: pod.to_owned(), uid: uid.to_owned(), result: None, addrs: Vec::new() }
    }

    /// Gives the pod its network; tries again as kubelet does.
    pub(crate) fn add(&mut self, node: &Node, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            match node.cni("ADD", self) {
                Ok(result) => return self.took(result),
                Err(error) => {
                    assert!(Instant::now() < end, "{}: {error}\n{}", self.pod, node.logs());
                    let _ = node.cni("DEL", self);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Takes down which addresses it got.
    pub(crate) fn took(&mut self, result: Value) {
        let ips = result["ips"].as_array().unwrap().iter();
        let addr = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse();
        self.addrs = ips.map(|ip| addr(ip).unwrap()).collect();
        self.addrs.sort();
        self.result = Some(result);
    }
}

/// What the `ADD` of each plugin cost, over all nodes.
pub(crate) fn plugin_times(nodes: &[Node]) -> String {
    let mut all: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for node in nodes {
        for (name, times) in node.times.lock().unwrap().iter() {
            all.entry(name.clone()).or_default().extend(times);
        }
    }
    let line = |(name, times): (&String, &mut Vec<Duration>)| {
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1000.0;
        format!("ADD of {name}: p50 {:.1} ms, p99 {:.1} ms of {}\n", at(50), at(99), times.len())
    };
    all.iter_mut().map(line).collect()
}

/// Puts the programs where anyone may start them.
pub(crate) fn install(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in ["netpol-loader", "netpol-agent", "netpol-cni"] {
        if fs::hard_link(from.join(name), to.join(name)).is_err() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}
