//! Bridges that pods share. Their packets to each other cross no hook of IP, and so no rule, unless the kernel passes them
//! to it on their way through the bridge (`net/bridge/br_netfilter_hooks.c`). Kubernetes asks that of nodes
//! (`net.bridge.bridge-nf-call-iptables = 1`), and kube-proxy needs it too, but nothing makes sure.

use crate::kernel::Kernel;
use std::fs;
use std::path::Path;

/// What is passed to IP's hooks of the packets that cross a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Those of IPv4.
    pub v4: bool,
    /// Those of IPv6.
    pub v6: bool,
}

/// What this network namespace's bridge of this name passes; `None` if no interface has it, or one that is no bridge.
pub fn passed(name: &str) -> Option<Passed> {
    let own = Path::new("/sys/class/net").join(name).join("bridge");
    if !own.is_dir() {
        return None;
    }
    let is_set = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    let all = Path::new("/proc/sys/net/bridge");
    let of = |kind: &str| {
        is_set(&all.join(format!("bridge-nf-call-{kind}"))) || is_set(&own.join(format!("nf_call_{kind}")))
    };
    Some(Passed { v4: of("iptables"), v6: of("ip6tables") })
}

/// Says for each of these interfaces of pods what passes by the rules, and what does whatever the interface; empty if nothing
/// does.
pub fn bypassed<'n>(kernel: &mut dyn Kernel, names: impl IntoIterator<Item = &'n String>) -> Vec<String> {
    let mut all: Vec<String> =
        names.into_iter().filter_map(|name| said(name, kernel.bridge(name)?)).collect();
    let [devices, services] = ["dev", "ip_vs"].map(|file| kernel.proc_net(file).unwrap_or_default());
    all.extend(by_ipvs(&devices, &services));
    all
}

/// kube-proxy in IPVS mode has Services' addresses on an interface of the node. What is for them ends there, gets a pod's
/// address, and is sent as the node's own (`ip_vs_nat_send_or_cont`, net/netfilter/ipvs/ip_vs_xmit.c), so it crosses no hook of
/// what is forwarded.
fn by_ipvs(devices: &str, services: &str) -> Option<String> {
    let has = devices.lines().any(|line| line.trim_start().starts_with("kube-ipvs0:"));
    let lists = services.lines().any(|line| ["TCP ", "UDP ", "SCTP "].iter().any(|p| line.starts_with(p)));
    (has && lists).then(|| {
        "kube-proxy is in IPVS mode: no rule of this node sees what pods send to Services; its modes iptables and nftables mend that"
            .to_owned()
    })
}

/// What a bridge does not pass, and what mends that.
fn said(name: &str, Passed { v4, v6 }: Passed) -> Option<String> {
    let (families, kinds): (&str, &[&str]) = match (v4, v6) {
        (true, true) => return None,
        (false, true) => ("ip", &["iptables"]),
        (true, false) => ("ip6", &["ip6tables"]),
        (false, false) => ("ip, ip6", &["iptables", "ip6tables"]),
    };
    let keys: Vec<String> = kinds.iter().map(|kind| format!("net.bridge.bridge-nf-call-{kind}=1")).collect();
    Some(format!(
        "no rule sees packets ({families}) between pods behind the bridge {name}; sysctl {} mends that, with the \
         module br_netfilter",
        keys.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxy_in_ipvs_mode() {
        let devices = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n kube-ipvs0: 0 0\n";
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n";
        let services = format!("{head}TCP  0A600001:01BB rr\n  -> 0A0A0A01:192B Masq 1 0 0\n");
        assert!(by_ipvs(devices, &services).is_some());
        // Left over, or somebody else's.
        assert_eq!(by_ipvs(devices, head), None);
        assert_eq!(by_ipvs("    lo: 1 2\n", &services), None);
        assert_eq!(by_ipvs("", ""), None);
    }
}
