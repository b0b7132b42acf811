//! What is compared: rules for one node, by whatever loads them.

use super::load::Load;
use super::{Error, bundles, scripts};
use netpolc_bundle::{Backend, SCRIPT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rules with a name, for a number of policies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Design {
    /// Its row in the tables.
    pub name: String,
    /// Its column.
    pub policies: usize,
    /// The rules.
    pub rules: Rules,
    /// Whether packets of the stranger pass.
    pub open: bool,
}

/// How rules come into the kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Rules {
    /// nft runs a file; after a change of one policy it runs another.
    Script(PathBuf, Option<PathBuf>),
    /// Our loader applies a bundle, and another after a change of one policy.
    Loader(Ours, [PathBuf; 2]),
}

/// One of our ways to enforce a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ours {
    /// nftables.
    Nftables,
    /// eBPF, where established packets are no longer judged.
    Ebpf,
    /// eBPF, where every packet is judged, as it is for some seconds after each change.
    EbpfJudging,
    /// iptables, whose rules are kept by nftables.
    IptablesNft,
    /// iptables, whose rules are kept by `ip_tables`.
    IptablesLegacy,
}

impl Ours {
    /// All of them, in the order of the tables.
    pub const ALL: [Ours; 5] =
        [Ours::Nftables, Ours::Ebpf, Ours::EbpfJudging, Ours::IptablesNft, Ours::IptablesLegacy];

    /// Its row in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Ours::Nftables => "nftables",
            Ours::Ebpf => "eBPF",
            Ours::EbpfJudging => "eBPF, judging",
            Ours::IptablesNft => "iptables-nft",
            Ours::IptablesLegacy => "iptables-legacy",
        }
    }

    /// What the loader is told.
    pub fn backend(self) -> Backend {
        match self {
            Ours::Nftables => Backend::Nftables,
            Ours::Ebpf | Ours::EbpfJudging => Backend::Ebpf,
            Ours::IptablesNft | Ours::IptablesLegacy => Backend::Iptables,
        }
    }

    /// The variant of iptables whose programs are to be used.
    pub fn variant(self) -> Option<&'static str> {
        match self {
            Ours::IptablesNft => Some("iptables-nft"),
            Ours::IptablesLegacy => Some("iptables-legacy"),
            _ => None,
        }
    }
}

impl Design {
    /// Its name among all designs.
    pub fn key(&self) -> String {
        key(&self.name, self.policies)
    }
}

/// What a design of a name and a number of policies is called.
pub fn key(name: &str, policies: usize) -> String {
    format!("{name} {policies}")
}

/// No hook at all.
pub const FLOOR: &str = "floor";
/// One rule that drops what is to be dropped.
pub const DROP: &str = "drop";
/// A rule for each policy.
pub const NAIVE: &str = "naive";

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Numbers of policies.
    pub policies: Vec<usize>,
    /// Also variants of our rules for nftables, and other shapes, at this number of policies.
    pub variants: Option<usize>,
    /// Leave the rule for each policy out.
    pub no_naive: bool,
}

/// All designs, and why others are left out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Designs {
    /// What was wanted.
    pub choice: Choice,
    /// Those that can be tried.
    pub designs: Vec<Design>,
    /// What a backend cannot express.
    pub left_out: BTreeMap<String, String>,
}

impl Designs {
    /// Writes all designs into a directory, or takes those that an earlier call wrote there. `progress` is told what is
    /// done.
    ///
    /// # Errors
    /// If netpolc does not compile a load, or the directory cannot be written or has designs of another choice.
    pub fn in_dir(choice: Choice, dir: &Path, progress: &dyn Fn(String)) -> Result<Designs, Error> {
        let path = dir.join("designs.json");
        if path.is_file() {
            let found: Designs = serde_json::from_slice(&fs::read(path)?)?;
            return match found.choice == choice {
                true => Ok(found),
                false => Err(Error::Wrong(format!("{} was made for other options", dir.display()))),
            };
        }
        let mut made = Designs { choice, designs: Vec::new(), left_out: BTreeMap::new() };
        for policies in made.choice.policies.clone() {
            made.add(&Load::new(policies), dir, progress)?;
        }
        fs::write(path, serde_json::to_string(&made)?)?;
        Ok(made)
    }

    /// Writes the designs of a load, scripts and bundles.
    fn add(&mut self, load: &Load, dir: &Path, progress: &dyn Fn(String)) -> Result<(), Error> {
        let n = load.policies;
        let Choice { no_naive, variants, .. } = self.choice;
        let script = |name: &str, text: String| {
            let path = dir.join(format!("{}-{n}.nft", name.replace(' ', "-")));
            fs::write(&path, text).map(|()| path)
        };
        let mut add = |name: &str, rules, open| {
            self.designs.push(Design { name: name.to_owned(), policies: n, rules, open })
        };
        add(FLOOR, Rules::Script(script(FLOOR, scripts::FLOOR.to_owned())?, None), true);
        add(DROP, Rules::Script(script(DROP, scripts::drop_only(load))?, None), false);
        if !no_naive {
            // Such programs write the whole table anew.
            let again = format!("delete table ip naive\n{}", scripts::naive(&load.changed()));
            let fresh = script(NAIVE, scripts::naive(load))?;
            add(NAIVE, Rules::Script(fresh, Some(script("naive-changed", again)?)), false);
        }
        let bundles = bundles::write(load, dir, progress)?;
        for ours in Ours::ALL {
            match bundles.get(&ours.backend()) {
                Some(Ok(pair)) => add(ours.name(), Rules::Loader(ours, pair.clone()), false),
                Some(Err(reason)) => drop(self.left_out.insert(key(ours.name(), n), reason.clone())),
                None => {}
            }
        }
        if variants == Some(n)
            && let Some(Ok([ours, _])) = bundles.get(&Backend::Nftables)
        {
            let ours = fs::read_to_string(ours.join(SCRIPT))?;
            for (name, text) in scripts::variants(load, &ours) {
                let open = name == "hook";
                add(&name, Rules::Script(script(&name, text)?, None), open);
            }
        }
        Ok(())
    }
}
