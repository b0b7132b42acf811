//! A rig: API server, loader, agent, all in one temporary directory.

use crate::loader::{Loader, PATIENCE};
use netpolc_standin::Standin;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

pub(crate) struct Rig {
    pub(crate) api: Standin,
    loader: Option<Loader>,
    agent: Option<Child>,
    dir: TempDir,
    arguments: Vec<String>,
}

impl Rig {
    /// API server and loader, and no agent yet.
    pub(crate) fn new(arguments: &[&str]) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let api = Standin::start().unwrap();
        let loader = Some(Loader::start(&dir.path().join("loader.sock")));
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Rig { api, loader, agent: None, dir, arguments }
    }

    /// With an agent too.
    pub(crate) fn running(arguments: &[&str]) -> Rig {
        let mut rig = Rig::new(arguments);
        crate::cluster::fill(&rig.api);
        rig.start();
        rig
    }

    pub(crate) fn loader(&self) -> &Loader {
        self.loader.as_ref().unwrap()
    }

    pub(crate) fn stop_loader(&mut self) {
        self.loader = None;
    }

    pub(crate) fn start_loader(&mut self) {
        self.loader = Some(Loader::start(&self.path("loader.sock")));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        let kubeconfig = self.api.kubeconfig(self.dir.path()).unwrap();
        self.spawn(kubeconfig);
    }

    /// Starts it with another kubeconfig.
    pub(crate) fn start_with(&mut self, kubeconfig: &serde_json::Value) {
        let path = self.path("other.kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        self.spawn(path);
    }

    fn spawn(&mut self, kubeconfig: PathBuf) {
        let log = File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_netpol-agent"))
            .args(["--node", "n1", "--metrics-listen", "127.0.0.1:0"])
            .args([
                "--kubeconfig".into(),
                kubeconfig,
                "--loader-socket".into(),
                self.path("loader.sock"),
                "--socket".into(),
                self.path("agent.sock"),
                "--state".into(),
                self.path("state.json"),
            ])
            .args(&self.arguments)
            .env_remove("KUBERNETES_SERVICE_HOST")
            // For what is outside of a cluster; nobody listens there.
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            // The system need have no certificates.
            .env("SSL_CERT_FILE", "/dev/null")
            .env_remove("SSL_CERT_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    /// Kills the agent as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Waits until the agent ends; whether with this status.
    pub(crate) fn ends_with(&mut self, status: i32) -> bool {
        self.agent.take().unwrap().wait().unwrap().code() == Some(status)
    }

    /// The process id of the agent.
    pub(crate) fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap()
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < end, "waited for {what}; the agent said:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Status and body of a path of the agent's HTTP.
    pub(crate) fn http(&self, path: &str) -> (String, String) {
        let address = || {
            let log = self.log();
            let line = log.lines().rfind(|l| l.contains("msg=metrics"))?.to_owned();
            line.split("address=").nth(1).map(str::to_owned)
        };
        self.until("the metrics' address", || address().is_some());
        let mut stream = TcpStream::connect(address().unwrap()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> String {
        let (_, body) = self.http("/metrics");
        let line = body.lines().find(|l| l.split(' ').next() == Some(name));
        line.and_then(|l| l.split(' ').nth(1)).unwrap_or("none").to_owned()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.log());
        }
    }
}
