//! A runtime, as far as plugins can tell.

use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Our plugin.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_netpol-cni");
/// Where Debian keeps the standard plugins (package containernetworking-plugins).
pub(crate) const STANDARD: &str = "/usr/lib/cni";

/// What a plugin printed, and whether it succeeded.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) good: bool,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// The error's code.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.good, "{self:?}");
        self.json()["code"].as_u64().unwrap()
    }
}

/// One attachment of a pod.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) container: String,
    pub(crate) netns: String,
    pub(crate) args: String,
}

impl Call {
    pub(crate) fn new(container: &str, netns: &str, pod: &str) -> Call {
        let (namespace, name) = pod.split_once('/').unwrap();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID=uid-of-{name}"
        );
        Call { container: container.into(), netns: netns.into(), args }
    }

    /// Calls one plugin.
    pub(crate) fn plugin(&self, program: &str, command: &str, config: &str) -> Answer {
        let mut child = Command::new(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", STANDARD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        let output = child.wait_with_output().unwrap();
        Answer { good: output.status.success(), text: String::from_utf8(output.stdout).unwrap() }
    }

    /// Calls a list of plugins as libcni does: each gets the result of those before it; for `DEL` backwards, each with
    /// the result of all.
    pub(crate) fn list(&self, command: &str, list: &Value, result: Option<&Value>) -> Answer {
        let mut plugins = list["plugins"].as_array().unwrap().clone();
        if command == "DEL" {
            plugins.reverse();
        }
        let mut previous = result.cloned();
        let mut last = Answer { good: true, text: String::new() };
        for mut plugin in plugins {
            plugin["cniVersion"] = list["cniVersion"].clone();
            plugin["name"] = list["name"].clone();
            if let Some(previous) = &previous {
                plugin["prevResult"] = previous.clone();
            }
            let kind = plugin["type"].as_str().unwrap();
            let program = if kind == "netpol-cni" { OURS.into() } else { format!("{STANDARD}/{kind}") };
            last = self.plugin(&program, command, &plugin.to_string());
            if !last.good {
                return last;
            }
            if command == "ADD" {
                previous = Some(last.json());
            }
        }
        last
    }
}

/// The list that a node of kind would have, with our plugin behind the standard ones.
pub(crate) fn conflist(version: &str, dir: &Path, socket: &Path) -> Value {
    json!({ "cniVersion": version, "name": "pods", "plugins": [
        { "type": "ptp", "ipMasq": false, "mtu": 1400,
          "ipam": { "type": "host-local", "dataDir": dir.join("ipam"), "routes": [{ "dst": "0.0.0.0/0" }],
            "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]] } },
        { "type": "netpol-cni", "agentSocket": socket, "timeoutSeconds": 2 },
    ] })
}
