//! Measures the agent: memory, and the time from an event to the bundle at the loader's socket, or, with a real loader, to
//! rules in force.

use clap::Parser;
use netpolc_bench::cluster::{Format, files, shape};
use netpolc_bench::statistics::quantile;
use netpolc_bundle::wire::{self, FromAgent, FromLoader, Sandbox, ToAgent, ToLoader};
use netpolc_standin::Standin;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many connections begin at one socket.
const PORTS: usize = 10_000;

/// Of this network namespace.
const CONNTRACK: &str = "/proc/sys/net/netfilter/nf_conntrack";

/// Runs an agent between a stand-in API server with a generated cluster and a loader, which does nothing unless it is given.
#[derive(Debug, Parser)]
struct Args {
    /// The program.
    #[arg(long, default_value = "target/release/netpol-agent")]
    agent: PathBuf,
    /// A real loader. It changes the rules of this network namespace: run it in one of its own (`unshare --net`), with `lo`
    /// up for the API server.
    #[arg(long)]
    loader: Option<PathBuf>,
    /// The generated cluster.
    #[arg(long, default_value = "l")]
    set: String,
    /// What the agent compiles for.
    #[arg(long, default_value = "nftables")]
    backend: String,
    /// How often each event is measured.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// How many milliseconds are between an answer and the next event. The agent pauses after a job as long as it took.
    #[arg(long, default_value_t = 200)]
    apart: u64,
    /// How many connections the kernel's table has meanwhile; with a loader.
    #[arg(long, default_value_t = 0)]
    connections: usize,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone, there is no one to tell.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

/// A process; it ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(args: &Args) -> io::Result<()> {
    let shape = shape(&args.set).ok_or_else(|| io::Error::other(format!("there is no set {}", args.set)))?;
    let dir = tempfile::tempdir()?;
    let api = Standin::start()?;
    let objects = fill(&api, shape)?;
    let (arrived, bundles) = channel();
    let listener = UnixListener::bind(dir.path().join("loader.sock"))?;
    let behind = args.loader.as_ref().map(|loader| start_loader(loader, args, dir.path())).transpose()?;
    let real = behind.as_ref().map(|_| dir.path().join("real.sock"));
    std::thread::spawn(move || load(&listener, &arrived, real.as_deref()));
    let kubeconfig = api.kubeconfig(dir.path())?;
    let started = Instant::now();
    let child = Command::new(&args.agent)
        .args(["--node", "node-0000", "--metrics-listen", "off", "--backend", &args.backend])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--loader-socket")
        .arg(dir.path().join("loader.sock"))
        .arg("--socket")
        .arg(dir.path().join("agent.sock"))
        .arg("--state")
        .arg(dir.path().join("state.json"))
        .stderr(Stdio::null())
        .spawn()?;
    let agent = Running(child);
    next(&bundles)?;
    say(&format!("{}, {}: first bundle after {:.0} ms", args.set, args.backend, millis(started.elapsed())))?;
    memory("the agent", &agent, "after it")?;
    // The loader's rules have the kernel keep a table of connections.
    connect(args.connections)?;

    let policy = objects.iter().find(|o| o["spec"]["ingress"][0]["ports"][0]["port"].is_u64());
    let mut policy = policy.ok_or_else(|| io::Error::other("no policy with a port"))?.clone();
    let times = measure(args, &bundles, |i| {
        policy["spec"]["ingress"][0]["ports"][0]["port"] = json!(10_000 + i);
        api.apply(policy.clone());
        Ok(())
    })?;
    report("a policy's port changed", &times)?;

    let pod = objects.iter().find(|o| o["kind"] == "Pod" && o["spec"]["nodeName"] == "node-0000");
    let mut pod = pod.ok_or_else(|| io::Error::other("no pod on node-0000"))?.clone();
    let times = measure(args, &bundles, |i| {
        let address = format!("10.200.{}.{}", i / 200, 1 + i % 200);
        pod["status"]["podIP"] = json!(address);
        pod["status"]["podIPs"] = json!([{ "ip": address }]);
        api.apply(pod.clone());
        Ok(())
    })?;
    report("a local pod's address", &times)?;

    let times = measure(args, &bundles, |i| add(&dir.path().join("agent.sock"), &pod, i))?;
    report("ADD of a known pod", &times)?;
    memory("the agent", &agent, "at the end")?;
    api.expire(false);
    api.apply(policy.clone());
    std::thread::sleep(Duration::from_secs(3));
    memory("the agent", &agent, "after new lists")?;
    behind.as_ref().map_or(Ok(()), |loader| memory("the loader", loader, "at the end"))
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// All objects of the set; pods get as many other fields as real ones have.
fn fill(api: &Standin, shape: netpolc_bench::cluster::Shape) -> io::Result<Vec<Value>> {
    let ballast =
        json!([{ "manager": "kubelet", "operation": "Update", "fieldsV1": { "f:x": "y".repeat(5000) } }]);
    let mut all = Vec::new();
    for (_, text) in files(shape, Format::Json) {
        let mut list: Value = serde_json::from_str(&text)?;
        for object in list["items"].as_array_mut().into_iter().flatten() {
            let object = object.take();
            all.push(object.clone());
            let mut object = object;
            if object["kind"] == "Pod" {
                object["metadata"]["managedFields"] = ballast.clone();
            }
            api.apply(object);
        }
    }
    api.expire(false);
    Ok(all)
}

/// Fills this network namespace's table of connections with some that last as long as the measurement.
fn connect(connections: usize) -> io::Result<()> {
    if connections == 0 {
        return Ok(());
    }
    fs::write(format!("{CONNTRACK}_udp_timeout"), "600")?;
    for i in 0..connections.div_ceil(PORTS) {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let [_, _, high, low] = (i as u32 + 1).to_be_bytes();
        for port in 0..PORTS.min(connections - i * PORTS) {
            // Nobody listens there.
            let _ = socket.send_to(b"x", (Ipv4Addr::new(127, 1, high, low), 20_000 + port as u16));
        }
    }
    let count = fs::read_to_string(format!("{CONNTRACK}_count"))?;
    say(&format!("connections in the kernel's table: {}", count.trim()))
}

/// What the manifests give the loader, so that freed memory goes back to the system.
const ENVIRONMENT: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// A real loader, which listens once this returns.
fn start_loader(program: &Path, args: &Args, dir: &Path) -> io::Result<Running> {
    let socket = dir.join("real.sock");
    let child = Command::new(program)
        .args(["run", "--backend", &args.backend, "--socket"])
        .arg(&socket)
        .arg("--state")
        .arg(dir.join("loader-state"))
        .envs(ENVIRONMENT)
        .stderr(Stdio::null())
        .spawn()?;
    let running = Running(child);
    let started = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        if started.elapsed() > PATIENCE {
            return Err(io::Error::other("the loader does not listen"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(running)
}

/// Takes every request, hands it on to the real loader if there is one, and tells when it was answered.
fn load(listener: &UnixListener, arrived: &Sender<Instant>, real: Option<&Path>) {
    for stream in listener.incoming() {
        // A connection that breaks is the agent's end.
        let Ok(mut stream) = stream else { return };
        let mut real = real.and_then(|path| UnixStream::connect(path).ok());
        while let Ok(Some(request)) = wire::receive::<ToLoader>(&mut stream) {
            let changes = matches!(request, ToLoader::Apply { .. } | ToLoader::Rebind(_));
            let Ok(answer) = answer(&mut stream, real.as_mut(), &request) else { return };
            if changes {
                let _ = arrived.send(Instant::now());
            }
            let _ = wire::send(&mut stream, &answer);
        }
    }
}

/// What the real loader says, or else that it is done.
fn answer(
    from: &mut UnixStream,
    real: Option<&mut UnixStream>,
    request: &ToLoader,
) -> io::Result<FromLoader> {
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let bundle = match request {
        ToLoader::Apply { files } => Some(wire::receive_bundle(from, files)?.map_err(io::Error::other)?),
        _ => None,
    };
    let Some(real) = real else {
        let version = match (request, &bundle) {
            // As versions go, any other will do.
            (ToLoader::Rebind(change), _) => Some(change.from),
            (_, Some(bundle)) => bundle.manifest.artifacts.values().next().copied(),
            _ => None,
        };
        let version = version.map(|version| version.to_string());
        return Ok(FromLoader::Done { report: String::new(), version });
    };
    match &bundle {
        Some(bundle) => wire::send_bundle(real, bundle)?,
        None => wire::send(real, request)?,
    }
    wire::receive(real)?.ok_or_else(gone)
}

fn next(bundles: &Receiver<Instant>) -> io::Result<Instant> {
    bundles.recv_timeout(PATIENCE).map_err(|_| io::Error::other("no bundle came"))
}

/// From just before an event to the bundle that it leads to, in milliseconds.
fn measure(
    args: &Args,
    bundles: &Receiver<Instant>,
    mut event: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<Vec<f64>> {
    let mut times = Vec::new();
    for i in 0..args.rounds {
        // What came of itself, since addresses have rested.
        bundles.try_iter().for_each(drop);
        let started = Instant::now();
        event(i)?;
        times.push(millis(next(bundles)?.duration_since(started)));
        std::thread::sleep(Duration::from_millis(args.apart));
    }
    Ok(times)
}

fn add(socket: &Path, pod: &Value, i: usize) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    let sandbox = Sandbox {
        container: format!("c{i}"),
        interface: "eth0".to_owned(),
        pod: format!("{}/{}", text("namespace"), text("name")),
        uid: None,
        addresses: vec![std::net::Ipv4Addr::new(10, 201, (i / 200) as u8, (1 + i % 200) as u8).into()],
    };
    wire::send(&mut stream, &ToAgent::Add(sandbox))?;
    match wire::receive(&mut stream)? {
        Some(FromAgent::Done) => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

fn report(what: &str, times: &[f64]) -> io::Result<()> {
    say(&format!("{what}: p50 {:.1} ms, p99 {:.1} ms", quantile(times, 0.5), quantile(times, 0.99)))
}

fn memory(whose: &str, process: &Running, when: &str) -> io::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let mib = |field: &str| {
        let line = status.lines().find(|l| l.starts_with(field)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    let (now, most) = (mib("VmRSS"), mib("VmHWM"));
    say(&format!("memory of {whose} {when}: {now:.1} MiB, at most {most:.1} MiB"))
}
