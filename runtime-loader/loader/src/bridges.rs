//! Bridges that pods share. Their packets to each other cross no hook of IP, and so no rule, unless the kernel passes them
//! to it on their way through the bridge (`net/bridge/br_netfilter_hooks.c`). Kubernetes asks that of nodes
//! (`net.bridge.bridge-nf-call-iptables = 1`), and kube-proxy needs it too, but nothing makes sure.

use crate::kernel::Kernel;
use netpolc_bundle::nft::Family;
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
    let said = names.into_iter().filter_map(|name| {
        let Passed { v4, v6 } = kernel.bridge(name)?;
        let lacking: Vec<(Family, &str)> =
            [(v4, Family::Ip, "iptables"), (v6, Family::Ip6, "ip6tables")]
                .into_iter()
                .filter_map(|(passed, family, kind)| (!passed).then_some((family, kind)))
                .collect();
        let families: Vec<String> = lacking.iter().map(|(family, _)| family.to_string()).collect();
        let keys: Vec<String> =
            lacking.iter().map(|(_, kind)| format!("net.bridge.bridge-nf-call-{kind}=1")).collect();
        (!lacking.is_empty()).then(|| {
            format!(
                "no rule sees packets ({}) between pods behind the bridge {name}; sysctl {} mends that, with the module br_netfilter",
                families.join(", "),
                keys.join(" "),
            )
        })
    });
    said.collect()
}
