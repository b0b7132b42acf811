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

/// Says for each of these interfaces of pods what passes by the rules; empty if nothing does.
pub fn bypassed<'n>(kernel: &mut dyn Kernel, names: impl IntoIterator<Item = &'n String>) -> Vec<String> {
    names.into_iter().filter_map(|name| said(name, kernel.bridge(name)?)).collect()
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
