//! The daemon: a real process in a network namespace of its own, and clients of its socket.

use crate::cluster;
use crate::common::{Dir, LOADER, Netns, a, b, bundle, bundle_with, fresh, unique};
use netpolc_bundle::wire::{self, FromLoader, Network, ToLoader};
use netpolc_bundle::{Artifact, Backend, Bundle};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running daemon with its directory; killed in the end.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) dir: PathBuf,
}

impl Daemon {
    /// Starts one, and waits for its socket.
    pub(crate) fn start(netns: &Netns, dir: &Dir, more: &[&str]) -> Daemon {
        let log = std::fs::File::options().create(true).append(true).open(dir.file("log")).unwrap();
        // The process itself, and not one that started it, gets the signals: ip netns exec replaces itself.
        let mut command = netns.loader();
        command.args(["run", "--socket", dir.file("run/s").to_str().unwrap()]);
        if !more.iter().any(|arg| arg.starts_with("--interval")) {
            command.arg("--interval=0.2");
        }
        command.args(["--state", dir.file("state").to_str().unwrap()]).args(more);
        let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let daemon = Daemon { child, dir: dir.0.clone() };
        wait("the socket", || UnixStream::connect(daemon.socket()).is_ok());
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/s")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request and its answer.
    pub(crate) fn ask(&self, request: &ToLoader) -> FromLoader {
        let mut stream = self.connect();
        wire::send(&mut stream, request).unwrap();
        wire::receive(&mut stream).unwrap().unwrap()
    }

    pub(crate) fn apply(&self, dir: &Dir) -> FromLoader {
        let mut stream = self.connect();
        wire::send_bundle(&mut stream, &Bundle::open(&dir.0).unwrap()).unwrap();
        wire::receive(&mut stream).unwrap().unwrap()
    }

    pub(crate) fn applied(&self, dir: &Dir) {
        let answer = self.apply(dir);
        assert!(matches!(&answer, FromLoader::Done { version: Some(_), .. }), "{answer:?}\n{}", self.log());
    }

    pub(crate) fn signal(&mut self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
        assert!(sent.unwrap().success());
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn dir() -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    dir
}

fn failed(answer: &FromLoader) -> String {
    match answer {
        FromLoader::Failed { message } => message.clone(),
        other => panic!("it should have failed: {other:?}"),
    }
}

#[test]
fn bundles_come_into_force_over_the_socket() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(daemon.socket()), mode(dir.file("run"))), (0o600, 0o755));
    // Any number of requests over one connection.
    let mut stream = daemon.connect();
    for script in [a(), b(), a()] {
        let goal = bundle(&script);
        wire::send_bundle(&mut stream, &Bundle::open(&goal.0).unwrap()).unwrap();
        let answer: FromLoader = wire::receive(&mut stream).unwrap().unwrap();
        let version = Bundle::open(&goal.0).unwrap().manifest.artifacts[&Artifact::Nftables].to_string();
        assert!(matches!(&answer, FromLoader::Done { version: Some(v), .. } if *v == version), "{answer:?}");
        assert_eq!(netns.tables(), fresh(&script));
    }
    wire::send(&mut stream, &ToLoader::Status).unwrap();
    let Some(FromLoader::Status(status)) = wire::receive(&mut stream).unwrap() else { panic!("no status") };
    assert_eq!((&status["in_force"], &status["daemon"]["applies"]), (&true.into(), &3.into()));
    // What is written down is what is in force.
    wait("a bundle on disk", || {
        Bundle::open(&dir.file("state/bundle"))
            .is_ok_and(|kept| kept == Bundle::open(&bundle(&a()).0).unwrap())
    });
    netns.load(&["status", "--bundle", dir.file("state/bundle").to_str().unwrap()], 0);
    let kept = std::fs::read_dir(dir.file("state")).unwrap().count();
    assert_eq!(kept, 3, "the link, what it leads to, and the lock");
}

#[test]
fn rules_outlive_the_daemon_and_a_successor_looks_after_them() {
    let (netns, dir) = (Netns::new(), dir());
    let mut daemon = Daemon::start(&netns, &dir, &[]);
    daemon.applied(&bundle(&a()));
    wait("a bundle on disk", || dir.file("state/bundle").exists());
    daemon.signal("KILL");
    assert_eq!(netns.tables(), fresh(&a()), "killed");
    // The socket of the one that was killed is in the way of none.
    let mut daemon = Daemon::start(&netns, &dir, &[]);
    netns.sh("nft flush ruleset");
    wait("repair by the successor", || netns.tables() == fresh(&a()));
    daemon.signal("TERM");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists());
    assert_eq!(netns.tables(), fresh(&a()), "ended");
    // After a boot nothing is in force, and what was written down comes back without an agent.
    netns.sh("nft flush ruleset");
    let mut daemon = Daemon::start(&netns, &dir, &[]);
    wait("what was written down", || netns.tables() == fresh(&a()));
    daemon.signal("INT");
    // What is in force is never older than what is written down.
    netns.apply(&bundle(&b()), "applied");
    let daemon = Daemon::start(&netns, &dir, &[]);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(netns.tables(), fresh(&b()), "{}", daemon.log());
}

#[test]
fn what_another_hand_changes_is_repaired_and_counted() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    daemon.applied(&bundle(&a()));
    let repairs = || match daemon.ask(&ToLoader::Status) {
        FromLoader::Status(status) => status["daemon"]["repairs"].as_u64().unwrap(),
        other => panic!("{other:?}"),
    };
    let changes = ["nft flush ruleset", "nft flush table ip netpolc", "nft delete table ip6 netpolc"];
    for (before, change) in changes.iter().enumerate() {
        assert_eq!(repairs(), before as u64, "{}", daemon.log());
        netns.sh(change);
        wait(change, || netns.tables() == fresh(&a()));
        wait("a count", || repairs() > before as u64);
    }
    // The tables of others are none of its business.
    netns.sh("nft add table ip other");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(repairs(), 3);
    assert_eq!(netns.tables(), fresh(&a()));
}

/// A look changes nothing that is as it should be, and makes anew what is gone, whatever enforces it.
fn check_looks(backend: Backend) {
    let (netns, dir) = (Netns::new(), dir());
    netns.sh("ip link set lo up");
    let daemon = Daemon::start(&netns, &dir, &[&format!("--backend={backend}")]);
    let bundle = cluster::compiled_for(&cluster::a(), &Backend::ALL);
    let mut stream = daemon.connect();
    wire::send_bundle(&mut stream, &bundle).unwrap();
    let answer: FromLoader = wire::receive(&mut stream).unwrap().unwrap();
    assert!(matches!(&answer, FromLoader::Done { .. }), "{backend}: {answer:?}");
    let status = || match daemon.ask(&ToLoader::Status) {
        FromLoader::Status(status) => status,
        other => panic!("{other:?}"),
    };
    let version = status()["version"].clone();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status()["daemon"]["repairs"], 0, "{backend}: {}", daemon.log());
    let socket = daemon.socket();
    let remove = || netns.load(&["remove", "--socket", socket.to_str().unwrap()], 0);
    let said = remove();
    assert!(said.contains("will make it anew: end it"), "{backend}: {said}");
    wait("repair", || status()["daemon"]["repairs"].as_u64() >= Some(1));
    let after = status();
    assert_eq!((&after["in_force"], &after["version"]), (&true.into(), &version), "{backend}");
    assert_eq!(after["backend"], backend.to_string());
    drop(daemon);
    let said = remove();
    assert!(!said.contains("will make it anew"), "{backend}: {said}");
}

#[test]
fn looks_with_nftables() {
    check_looks(Backend::Nftables);
}

#[test]
fn looks_with_iptables() {
    check_looks(Backend::Iptables);
}

#[test]
fn looks_with_ebpf() {
    check_looks(Backend::Ebpf);
}

#[test]
fn new_interfaces_of_pods_are_picked_up() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    daemon.applied(&bundle_with(&a(), &[("shop/db", &["10.0.0.1"])]));
    netns.sh("ip link set lo up; ip link add veth1 type veth peer name peer1; ip link set veth1 up");
    netns.sh("ip link set peer1 up; ip route add 10.0.0.1 dev veth1");
    wait("the interface", || netns.sh("nft list set ip netpolc podif").contains("veth1"));
    netns.sh("ip link del veth1");
    wait("no interface", || !netns.sh("nft list set ip netpolc podif").contains("veth1"));
}

#[test]
fn what_is_no_request_is_refused_without_effect() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    daemon.applied(&bundle(&a()));
    let frame = |text: &[u8]| [&(text.len() as u32).to_le_bytes()[..], text].concat();
    let oversized = [&(wire::FRAME_BYTES + 1).to_le_bytes()[..], b"{"].concat();
    let bad: Vec<Vec<u8>> = vec![
        oversized,
        u32::MAX.to_le_bytes().to_vec(),
        frame(b"not json"),
        frame(b"{\"do\":\"format-the-disk\"}"),
        frame(b"{\"do\":\"apply\",\"files\":[[\"../../etc/passwd\",1]]}"),
        frame(b"{\"do\":\"apply\",\"files\":[[\"manifest.json\",99999999999]]}"),
        frame(&[b'['; 100_000]),
        frame(&[0xff; 64]),
        (0..=255).collect(),
    ];
    for bytes in &bad {
        let mut stream = daemon.connect();
        stream.write_all(bytes).unwrap();
        let answer = wire::receive::<FromLoader>(&mut stream).unwrap().unwrap();
        failed(&answer);
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "the connection is over");
    }
    // A bundle whose bytes are not what its manifest says: the connection goes on.
    let goal = Bundle::open(&bundle(&b()).0).unwrap();
    let mut changed = goal.clone();
    changed.files.get_mut(netpolc_bundle::SCRIPT).unwrap().push(b'\n');
    let mut stream = daemon.connect();
    wire::send_bundle(&mut stream, &changed).unwrap();
    failed(&wire::receive(&mut stream).unwrap().unwrap());
    // A sound one that the kernel or the loader refuses.
    let refused = bundle(&a().replace("flush table ip6 netpolc\n", ""));
    wire::send_bundle(&mut stream, &Bundle::open(&refused.0).unwrap()).unwrap();
    assert!(failed(&wire::receive(&mut stream).unwrap().unwrap()).contains("does not flush"));
    // One that breaks off.
    let mut bytes = Vec::new();
    wire::send_bundle(&mut bytes, &goal).unwrap();
    let mut cut = daemon.connect();
    cut.write_all(&bytes[..bytes.len() / 2]).unwrap();
    drop(cut);
    assert_eq!(netns.tables(), fresh(&a()), "nothing of that had an effect");
    wire::send_bundle(&mut stream, &goal).unwrap();
    assert!(matches!(wire::receive(&mut stream).unwrap(), Some(FromLoader::Done { .. })));
    assert_eq!(netns.tables(), fresh(&b()));
    let FromLoader::Status(status) = daemon.ask(&ToLoader::Status) else { panic!("no status") };
    assert_eq!(status["daemon"]["failures"], 1, "{}", daemon.log());
}

#[test]
fn clients_that_are_stuck_or_rest_keep_no_one_out() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    // Some stop in the middle of a frame, many never say anything.
    let mut stuck: Vec<UnixStream> = (0..3).map(|_| daemon.connect()).collect();
    stuck.iter_mut().for_each(|stream| stream.write_all(&[9, 0]).unwrap());
    let resting: Vec<UnixStream> = (0..40).map(|_| daemon.connect()).collect();
    daemon.applied(&bundle(&a()));
    // One that stops in the middle of a bundle keeps other bundles out for as long as it may take, and no longer; but
    // not other requests.
    let mut bytes = Vec::new();
    wire::send_bundle(&mut bytes, &Bundle::open(&bundle(&b()).0).unwrap()).unwrap();
    let mut slow = daemon.connect();
    slow.write_all(&bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(daemon.ask(&ToLoader::Status), FromLoader::Status(_)));
    // It goes on.
    slow.write_all(&bytes[bytes.len() - 1..]).unwrap();
    assert!(matches!(wire::receive(&mut slow).unwrap(), Some(FromLoader::Done { .. })));
    assert_eq!(netns.tables(), fresh(&b()));
    // Those in the middle of a frame are told that they took too long.
    for mut stream in stuck {
        let answer = wire::receive::<FromLoader>(&mut stream).unwrap().unwrap();
        assert!(failed(&answer).contains("timed out"), "{answer:?}");
    }
    drop(resting);
}

#[test]
fn one_daemon_for_a_socket_and_for_a_directory() {
    let (netns, dir) = (Netns::new(), dir());
    let mut daemon = Daemon::start(&netns, &dir, &["--socket-group", "65532"]);
    let data = std::fs::metadata(daemon.socket()).unwrap();
    assert_eq!(data.permissions().mode() & 0o7777, 0o660);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&data), 65_532);
    let (socket, state) = (daemon.socket(), dir.file("other"));
    let run = |socket: &Path, state: &Path| {
        let mut command = netns.command("timeout");
        command.args(["20", LOADER, "run", "--socket", socket.to_str().unwrap()]);
        let output = command.args(["--state", state.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let second = || run(&socket, &state);
    assert!(second().contains("another netpol-loader"));
    // Both would repair the rules, each to its own.
    assert!(run(&dir.file("run/other"), &dir.file("state")).contains("another netpol-loader"));
    daemon.signal("TERM");
    std::fs::write(&socket, "a file").unwrap();
    assert!(second().contains("something else than a socket"));
    assert_eq!(std::fs::read(&socket).unwrap(), b"a file");
}

#[test]
fn without_a_disk_the_rules_are_in_force_all_the_same() {
    let (netns, dir) = (Netns::new(), dir());
    // A file where the directory should be: nothing can be written below.
    std::fs::write(dir.file("state"), "").unwrap();
    let daemon = Daemon::start(&netns, &dir, &[]);
    daemon.applied(&bundle(&a()));
    wait("a complaint", || daemon.log().contains("part=store"));
    let faults = || crate::audit::status(&daemon)["daemon"]["faults"].to_string();
    assert!(faults().starts_with("[\"store: "), "{}", faults());
    netns.sh("nft flush ruleset");
    wait("repair", || netns.tables() == fresh(&a()));
    std::fs::remove_file(dir.file("state")).unwrap();
    wait("a bundle on disk", || dir.file("state/bundle").exists());
    wait("nothing wrong", || faults() == "[]");
    assert!(daemon.log().lines().filter(|line| line.contains("part=store")).count() < 4, "{}", daemon.log());
}

#[test]
fn audit_counts_and_drops_nothing() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &["--audit"]);
    daemon.applied(&bundle(&a()));
    let rules = netns.sh("nft list ruleset");
    assert!(!rules.contains("drop") && rules.contains("counter packets 0 bytes 0 accept"), "{rules}");
    netns.sh("nft flush ruleset");
    wait("repair", || netns.output("nft list table ip netpolc").status.success());
    assert!(!netns.sh("nft list ruleset").contains("drop"));
    let FromLoader::Status(status) = daemon.ask(&ToLoader::Status) else { panic!("no status") };
    assert_eq!(status["daemon"]["audit"], true);
    assert_eq!(status["dataplanes"][0]["dropped_packets"]["deny"], 0);
}

/// An answer to one request over HTTP, asked in the namespace.
fn get(netns: &Netns, port: u16, request: &str) -> String {
    let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; timeout 5 cat <&3");
    let output = netns.command("bash").args(["-c", &line]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn metrics_and_health() {
    let (netns, dir) = (Netns::new(), dir());
    netns.sh("ip link set lo up");
    let daemon = Daemon::start(&netns, &dir, &["--metrics-listen", "127.0.0.1:9100"]);
    daemon.applied(&bundle(&a()));
    netns.sh("nft flush ruleset");
    wait("repair", || netns.tables() == fresh(&a()));
    wait("metrics", || get(&netns, 9100, "GET /metrics HTTP/1.1\\r\\n\\r\\n").contains("repairs_total 1\n"));
    let text = get(&netns, 9100, "GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for wanted in [
        "\nnetpolc_loader_in_force 1\n",
        "\nnetpolc_loader_applies_total 1\n",
        "\nnetpolc_loader_dropped_packets_total{backend=\"nftables\",by=\"deny\"} 0\n",
        "{backend=\"nftables\",direction=\"ingress\",policies=\"shop/all, shop/db\"} 0\n",
        "backend=\"nftables\"} 1\n",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let resident = text.lines().find_map(|l| l.strip_prefix("netpolc_loader_resident_bytes ")).unwrap();
    assert!(resident.parse::<u64>().unwrap() < 10 << 20, "{resident}");
    assert!(get(&netns, 9100, "GET /healthz HTTP/1.0\\r\\n\\r\\n").ends_with("\r\n\r\nok\n"));
    assert!(get(&netns, 9100, "GET / HTTP/1.0\\r\\n\\r\\n").starts_with("HTTP/1.1 404"));
    assert!(get(&netns, 9100, "POST /metrics HTTP/1.0\\r\\n\\r\\n").starts_with("HTTP/1.1 400"));
    // Whoever says nothing, or does not stop talking, is left behind.
    assert_eq!(get(&netns, 9100, "GET /metrics"), "");
    assert!(get(&netns, 9100, "GET /healthz HTTP/1.0\\r\\n\\r\\n").ends_with("ok\n"));
    // It is there in the namespace alone.
    assert!(TcpStream::connect(("127.0.0.1", 9100)).is_err() || netns.0.is_empty());
}

#[test]
fn without_cni_a_network_is_not_made() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    let answer = daemon.ask(&ToLoader::Network(Network::default()));
    assert!(matches!(&answer, FromLoader::Done { report, .. } if report.contains("--cni=ptp")), "{answer:?}");
}

#[test]
fn the_status_says_which_backends_it_takes() {
    let netns = Netns::new();
    let usable = |flag: &str| {
        let dir = dir();
        let daemon = Daemon::start(&netns, &dir, &[flag]);
        let FromLoader::Status(status) = daemon.ask(&ToLoader::Status) else { panic!("no status") };
        status["daemon"]["backends"]["usable"].clone()
    };
    assert_eq!(usable("--backend=nftables"), serde_json::json!(["nftables"]));
    assert_eq!(usable("--backend=auto"), serde_json::json!(["ebpf", "nftables", "iptables"]));
}
