//! Whether a version lets the packet that opens a connection pass.

use crate::ebpf::judging;
use netpolc_bundle::bpf::contents::Contents;
use netpolc_bundle::bpf::run::Tables;
use netpolc_bundle::ipt;
use netpolc_bundle::nft::run::{Bases, Packet, passes};
use netpolc_bundle::{ReadBack, Version};
use std::sync::Arc;

/// A version, ready to judge many packets. It has what it needs for itself, so that no lock is held meanwhile.
#[derive(Debug)]
pub struct Judge {
    version: Version,
    by: By,
}

#[derive(Debug)]
enum By {
    Nftables(Arc<ReadBack>, Bases),
    Ebpf(Tables),
    Iptables(Arc<ipt::Ruleset>, ipt::run::Script),
}

impl Judge {
    /// By rules of nftables that were read back, if they were.
    pub fn nftables(version: Version, read: &Arc<ReadBack>) -> Option<Judge> {
        let bases = Bases::of(read.nftables.as_ref()?);
        Some(Judge { version, by: By::Nftables(read.clone(), bases) })
    }

    /// By the contents of eBPF's maps.
    pub fn ebpf(version: Version, contents: &Contents) -> Judge {
        Judge { version, by: By::Ebpf(Tables::of(contents.entries())) }
    }

    /// By rules of iptables.
    pub fn iptables(version: Version, rules: &Arc<ipt::Ruleset>) -> Judge {
        Judge { version, by: By::Iptables(rules.clone(), ipt::run::Script::new(rules)) }
    }

    /// By which version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a packet passes.
    pub fn passes(&self, packet: &Packet) -> bool {
        match &self.by {
            By::Nftables(read, bases) => {
                read.nftables.as_ref().is_none_or(|rules| passes(rules, bases, packet))
            }
            By::Ebpf(tables) => judging::passes(tables, packet),
            By::Iptables(rules, script) => script.passes(&rules.sets, packet),
        }
    }
}
