//! A loader that is killed at any of its system calls leaves the old rules in force or the new ones, never a mix and never
//! none; and the next one finishes the work. Real packets say which rules are in force.
//!
//! strace stops the loader at its n-th system call and kills it there. `NETPOLC_KILL_EVERY=1` goes through all of them;
//! without it every few are tried, other ones for each backend.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use netpolc_bundle::Backend;
use netpolc_sandbox::{HostId, NodeSpec, Outcome, PodSpec, Probe, Protocol, Sandbox, Spec, find_program};
use netpolc_testkit::bundles;
use netpolc_testkit::pipeline::{compile, model};
use netpolc_testkit::samples::programs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// How long an answer is waited for, and how long when the first look was no clear answer.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(600), Duration::from_secs(3)];
/// Every how many system calls the loader is killed unless told otherwise.
const EVERY: usize = 17;
/// More than any run makes.
const MOST: usize = 20_000;

/// Two clients and a server, of both families.
const PODS: [&str; 3] = ["one", "two", "server"];

fn addrs(pod: usize) -> Vec<IpAddr> {
    vec![format!("10.1.0.{}", pod + 1).parse().unwrap(), format!("fd00:1::{}", pod + 1).parse().unwrap()]
}

/// A cluster in which one client may reach the server.
fn yaml(client: &str) -> String {
    let mut yaml = "apiVersion: v1\nkind: Node\nmetadata: {name: alpha}\n---\n".to_owned();
    for (i, name) in PODS.iter().enumerate() {
        let [v4, v6] = &addrs(i)[..] else { panic!() };
        yaml += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nspec: \
             {{nodeName: alpha, containers: [{{name: main, image: example/main}}]}}\nstatus: {{phase: Running, podIPs: \
             [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n---\n"
        );
    }
    yaml + &format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: server, namespace: shop}}\nspec: \
         {{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: \
         {client}}}}}}}]}}]}}\n"
    )
}

struct World {
    sandbox: Sandbox,
    loader: PathBuf,
    backend: Backend,
    _dir: tempfile::TempDir,
    /// Bundles that let the first client through, and the second.
    bundles: [PathBuf; 2],
}

impl World {
    fn new(backend: Backend) -> World {
        let dir = tempfile::tempdir().unwrap();
        let bundles = ["one", "two"].map(|client| {
            let compiled = compile(model(&[("a.yaml", yaml(client))]).unwrap()).unwrap();
            let out = dir.path().join(client);
            std::fs::create_dir(&out).unwrap();
            bundles::write(&compiled, &[backend], &out).unwrap();
            out.join("alpha")
        });
        let mut spec =
            Spec { nodes: vec![NodeSpec { name: "alpha".into(), ..NodeSpec::default() }], ..Spec::default() };
        for (i, name) in PODS.iter().enumerate() {
            let listen = vec![(Protocol::Udp, 53)];
            spec.pods.push(PodSpec { name: (*name).to_owned(), node: 0, addrs: addrs(i), listen });
        }
        let sandbox = Sandbox::build(&spec).unwrap();
        World { sandbox, loader: programs().unwrap().join("netpol-loader"), backend, _dir: dir, bundles }
    }

    fn run(&self, command: Command) -> Output {
        self.sandbox.run_in_node(0, command, b"").unwrap()
    }

    fn arguments(&self, command: &mut Command, bundle: &Path) {
        command.args(["apply", "--backend", &self.backend.to_string()]).arg(bundle);
    }

    fn apply(&self, bundle: usize) {
        let mut command = Command::new(&self.loader);
        self.arguments(&mut command, &self.bundles[bundle]);
        let output = self.run(command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Applies the second bundle and kills the loader at its n-th system call. Whether it came so far.
    fn kill(&self, n: usize) -> bool {
        let mut command = Command::new(find_program("strace", "strace").unwrap());
        command.args([
            "--quiet=all",
            "-o",
            "/dev/null",
            "-e",
            &format!("inject=all:signal=SIGKILL:when={n}"),
        ]);
        command.arg(&self.loader);
        self.arguments(&mut command, &self.bundles[1]);
        !self.run(command).status.success()
    }

    /// Which clients reach the server, in both families: `[one, two]` for each family.
    fn reached(&self, patience: Duration) -> [bool; 4] {
        let probe = |client: usize, family: usize| Probe {
            from: HostId::Pod(client),
            from_addr: None,
            to: addrs(2)[family],
            protocol: Protocol::Udp,
            port: 53,
        };
        let probes = [probe(0, 0), probe(1, 0), probe(0, 1), probe(1, 1)];
        let outcomes = self.sandbox.probe_all(&probes, patience);
        [0, 1, 2, 3].map(|i| outcomes[i] == Outcome::Reached)
    }

    /// The bundle that is in force, if it is one of the two and nothing else.
    fn in_force(&self) -> Result<usize, [bool; 4]> {
        let mut seen = [false; 4];
        for patience in PATIENCE {
            seen = self.reached(patience);
            match seen {
                [true, false, true, false] => return Ok(0),
                [false, true, false, true] => return Ok(1),
                // A program that the loader has started may have finished between two of the packets.
                _ => {}
            }
        }
        Err(seen)
    }
}

fn check(backend: Backend) {
    let world = World::new(backend);
    assert_eq!(world.reached(PATIENCE[2]), [true; 4], "without rules all arrive");
    world.apply(0);
    assert_eq!(world.in_force(), Ok(0));
    world.apply(1);
    assert_eq!(world.in_force(), Ok(1));
    let every = std::env::var("NETPOLC_KILL_EVERY").ok().and_then(|n| n.parse().ok()).unwrap_or(EVERY);
    let (mut old, mut new) = (0, 0);
    for n in (1 + backend as usize..MOST).step_by(every) {
        world.apply(0);
        if !world.kill(n) {
            assert!(old > 0, "{backend}: never killed");
            println!(
                "{backend}: killed {} times: {old} times the old rules were in force, {new} times the new",
                old + new
            );
            return;
        }
        match world.in_force() {
            Ok(0) => old += 1,
            Ok(_) => new += 1,
            Err(seen) => panic!("{backend}: killed at call {n}, neither is in force: {seen:?}"),
        }
        // The successor finishes, whatever it finds.
        world.apply(1);
        assert_eq!(world.in_force(), Ok(1), "{backend}: after call {n}");
    }
    panic!("{backend}: more than {MOST} system calls");
}

#[test]
fn ebpf() {
    check(Backend::Ebpf);
}

#[test]
fn nftables() {
    check(Backend::Nftables);
}

#[test]
fn iptables() {
    check(Backend::Iptables);
}
