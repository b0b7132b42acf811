//! The network configuration of a node without a CNI plugin of its own, from the plugins that every node has.
//!
//! ptp gives each pod a veth pair and a route to its address, host-local gives the address, portmap serves `hostPort`,
//! netpol-cni waits until the policies about the new pod are in force.

use super::cidr::Cidr;
use serde_json::{Value, json};
use std::path::Path;

/// The name of the network, and of the directory that host-local keeps its addresses in.
pub const NETWORK: &str = "netpolc";

/// The name of the file. Runtimes take the first by name.
pub const FILE: &str = "10-netpolc.conflist";

/// Our plugin, by its file's name.
pub const PLUGIN: &str = "netpol-cni";

/// Runtimes since containerd 1.6 and plugins since 1.0 know this version. A newer one would keep runtimes away that do
/// not know it, and they do not say.
const CNI_VERSION: &str = "1.0.0";

/// What the configuration is made from.
#[derive(Debug, Clone)]
pub struct Conf<'a> {
    /// The node's ranges of pods, at most one for each family.
    pub ranges: &'a [Cidr],
    /// The MTU of the pods' interfaces; the plugin's default without.
    pub mtu: Option<u32>,
    /// Whether the node has the plugin portmap.
    pub portmap: bool,
    /// Where netpol-cni finds the agent.
    pub agent_socket: &'a Path,
    /// Where host-local keeps which addresses are given out.
    pub ipam_dir: &'a Path,
}

/// The text of the file.
pub fn text(conf: &Conf<'_>) -> String {
    let ranges: Vec<Value> =
        conf.ranges.iter().map(|range| json!([{ "subnet": range.to_string() }])).collect();
    let default = |range: &Cidr| if range.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let routes: Vec<Value> = conf.ranges.iter().map(|range| json!({ "dst": default(range) })).collect();
    let mut ptp = json!({
        "type": "ptp",
        // What leaves the cluster is masqueraded by rules of our own; the plugin would do it for each pod, and for what
        // stays in the cluster too.
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": conf.ipam_dir.display().to_string(),
            "ranges": ranges,
            "routes": routes,
        },
    });
    if let (Some(mtu), Some(fields)) = (conf.mtu, ptp.as_object_mut()) {
        fields.insert("mtu".into(), mtu.into());
    }
    let mut plugins = vec![ptp];
    if conf.portmap {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    plugins.push(plugin(conf.agent_socket));
    let list = json!({ "cniVersion": CNI_VERSION, "name": NETWORK, "plugins": plugins });
    format!("{list:#}\n")
}

/// Our plugin's part of a configuration.
pub fn plugin(agent_socket: &Path) -> Value {
    json!({ "type": PLUGIN, "agentSocket": agent_socket.display().to_string() })
}
