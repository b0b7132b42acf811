//! Which iptables: two variants of the programs keep their rules in different places of the kernel, and a node may have
//! both. Rules in either are in force.
//!
//! The variant that has our chains is kept. Else it is the one that the node's other tools use, found as the script
//! `iptables-wrappers` of Kubernetes finds it (kubernetes-sigs/iptables-wrappers): by the chains that the kubelet makes as a
//! hint, else by the number of rules. Else it is what the system calls `iptables`.
//!
//! Nothing of the legacy variant is looked at unless `/proc/net/ip_tables_names` says that this network namespace has
//! tables of it: its programs make a table that they are asked for, and load the modules for that.

use super::observe::Scan;
use crate::Error;
use crate::kernel::Kernel;
use netpolc_bundle::ipt::{Family, PREFIX, Table};
use std::collections::BTreeMap;
use std::fmt;

/// A variant of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Rules are kept by nftables.
    Nft,
    /// Rules are kept by `ip_tables` and `ip6_tables`.
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    fn word(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iptables-{}", self.word())
    }
}

/// The programs of a variant, which may have names without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The variant.
    pub variant: Variant,
    plain: bool,
}

impl Tools {
    /// The programs of a variant, if they are installed. Only IPv4's are looked for.
    pub fn find(kernel: &mut dyn Kernel, variant: Variant) -> Option<Tools> {
        let named = Tools { variant, plain: false };
        let plain = Tools { variant, plain: true };
        let there = |kernel: &mut dyn Kernel, tools: &Tools| {
            kernel.has(&tools.save(Family::V4)) && kernel.has(&tools.restore(Family::V4))
        };
        if there(kernel, &named) {
            return Some(named);
        }
        (there(kernel, &plain) && default_variant(kernel) == Some(variant)).then_some(plain)
    }

    fn program(&self, family: Family, what: &str) -> String {
        let tool = if family == Family::V4 { "iptables" } else { "ip6tables" };
        match self.plain {
            true => format!("{tool}-{what}"),
            false => format!("{tool}-{}-{what}", self.variant.word()),
        }
    }

    /// The program that loads rules.
    pub fn restore(&self, family: Family) -> String {
        self.program(family, "restore")
    }

    /// The program that prints rules.
    pub fn save(&self, family: Family) -> String {
        self.program(family, "save")
    }
}

/// What the system calls `iptables`; `None` if it has none. Versions before 1.8 knew no other variant than legacy.
pub fn default_variant(kernel: &mut dyn Kernel) -> Option<Variant> {
    let text = kernel.program("iptables", &["--version"], "").ok()?;
    Some(if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// The rules of one variant: what its save programs print.
#[derive(Debug, Clone)]
pub struct View {
    /// The programs.
    pub tools: Tools,
    /// Everybody's rules; a family is missing where its programs are, or where it is not of use.
    pub texts: BTreeMap<Family, String>,
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The tables that our chains are in.
    Ours,
    /// The same, with the counters of rules.
    Counters,
    /// Everybody's tables: who uses the variant?
    All,
}

impl View {
    /// Looks at the families that can be looked at.
    ///
    /// # Errors
    /// If IPv4 cannot, or if IPv6 cannot although the namespace has it.
    pub fn take(kernel: &mut dyn Kernel, tools: Tools, scope: Scope) -> Result<View, Error> {
        let mut texts = BTreeMap::new();
        for family in Family::ALL {
            match saved(kernel, &tools, family, scope) {
                Ok(text) => drop(texts.insert(family, text)),
                Err(Error::NoProgram { .. } | Error::Program { .. })
                    if family == Family::V6 && !has_ipv6(kernel) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(View { tools, texts })
    }

    /// Whether there is a chain of ours.
    pub fn has_ours(&self) -> bool {
        let tables = self.texts.values().flat_map(|text| Table::ALL.map(|table| Scan::of(text, table)));
        tables.into_iter().any(|scan| !scan.is_empty())
    }

    /// Whether the kubelet has left its mark, and how many rules of others there are.
    fn others(&self) -> (bool, usize) {
        const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];
        let lines = || self.texts.values().flat_map(|text| text.lines());
        let is_rule = |line: &&str| {
            line.strip_prefix("-A ").is_some_and(|rule| !rule.starts_with(PREFIX) && !rule.contains(PREFIX))
        };
        let hinted = lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
        (hinted, lines().filter(is_rule).count())
    }
}

/// Whether this network namespace has IPv6: the file is there from when the kernel switches IPv6 on for it
/// (`net/ipv6/addrconf.c`), even if no interface has an address.
pub fn has_ipv6(kernel: &mut dyn Kernel) -> bool {
    kernel.proc_net("if_inet6").is_some()
}

/// What a save program prints. That of nftables reads all rules whatever it is asked for, the legacy one only the tables
/// that it prints; kube-proxy's table `nat` can be large.
fn saved(kernel: &mut dyn Kernel, tools: &Tools, family: Family, scope: Scope) -> Result<String, Error> {
    let program = tools.save(family);
    let counters: &[&str] = if scope == Scope::Counters { &["-c"] } else { &[] };
    if tools.variant == Variant::Nft {
        return kernel.program(&program, counters, "");
    }
    let names = legacy_tables(kernel, family);
    if names.is_empty() || scope == Scope::All {
        return if names.is_empty() { Ok(String::new()) } else { kernel.program(&program, counters, "") };
    }
    let mut text = String::new();
    for table in Table::ALL.map(|table| table.to_string()) {
        if names.lines().any(|name| name == table) {
            let args = [&["-t", table.as_str()], counters].concat();
            text.push_str(&kernel.program(&program, &args, "")?);
        }
    }
    Ok(text)
}

/// The tables that the legacy variant has in this network namespace, one a line.
fn legacy_tables(kernel: &mut dyn Kernel, family: Family) -> String {
    let file = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
    kernel.proc_net(file).unwrap_or_default()
}

/// Whether a variant may have chains of ours, found out without reading everybody's rules.
fn may_have_ours(kernel: &mut dyn Kernel, variant: Variant) -> Result<bool, Error> {
    match variant {
        Variant::Legacy => Ok(Family::ALL.iter().any(|family| !legacy_tables(kernel, *family).is_empty())),
        Variant::Nft => match kernel.program("nft", &["list", "chains"], "") {
            Ok(text) => Ok(text.contains(&format!("chain {PREFIX}"))),
            Err(error @ Error::Permission(_)) => Err(error),
            // There is no nft, or the kernel has no nftables. The save program knows.
            Err(_) => Ok(true),
        },
    }
}

/// Both variants, as far as they are installed.
#[derive(Debug, Default)]
pub struct Views {
    /// The variants' rules.
    pub views: Vec<View>,
    /// Why a variant cannot be used that is installed.
    pub unusable: Vec<String>,
}

impl Views {
    /// Looks at both variants.
    ///
    /// # Errors
    /// If permission lacks.
    pub fn take(kernel: &mut dyn Kernel) -> Result<Views, Error> {
        Views::of(kernel, Variant::ALL.to_vec(), Scope::All)
    }

    /// Looks at those that may have chains of ours.
    ///
    /// # Errors
    /// If permission lacks.
    pub fn take_ours(kernel: &mut dyn Kernel, scope: Scope) -> Result<Views, Error> {
        let mut variants = Vec::new();
        for variant in Variant::ALL {
            if may_have_ours(kernel, variant)? {
                variants.push(variant);
            }
        }
        Views::of(kernel, variants, scope)
    }

    fn of(kernel: &mut dyn Kernel, variants: Vec<Variant>, scope: Scope) -> Result<Views, Error> {
        let mut views = Views::default();
        for variant in variants {
            let Some(tools) = Tools::find(kernel, variant) else { continue };
            match View::take(kernel, tools, scope) {
                Ok(view) => views.views.push(view),
                Err(error @ (Error::NoProgram { .. } | Error::Program { .. })) => {
                    views.unusable.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(views)
    }

    /// The variant to use and why, and then the others.
    pub fn choose(mut self, kernel: &mut dyn Kernel) -> Option<(View, &'static str, Vec<View>)> {
        let (at, why) = self.best(kernel)?;
        let chosen = self.views.remove(at);
        Some((chosen, why, self.views))
    }

    fn best(&self, kernel: &mut dyn Kernel) -> Option<(usize, &'static str)> {
        let find = |wanted: &dyn Fn(&View) -> bool| self.views.iter().position(wanted);
        if let [_] = self.views.as_slice() {
            return Some((0, "the only one that can be used"));
        }
        let ours: Vec<usize> =
            self.views.iter().enumerate().filter(|(_, view)| view.has_ours()).map(|(i, _)| i).collect();
        if let [only] = ours.as_slice() {
            return Some((*only, "our chains are there"));
        }
        if let Some(hinted) = find(&|view| view.others().0) {
            return Some((hinted, "the kubelet uses it"));
        }
        let rules: Vec<usize> = self.views.iter().map(|view| view.others().1).collect();
        let most = rules.iter().max().copied().unwrap_or(0);
        let leaders: Vec<usize> =
            rules.iter().enumerate().filter(|(_, n)| **n == most).map(|(i, _)| i).collect();
        if let [leader] = leaders.as_slice() {
            return Some((*leader, "most rules of others are there"));
        }
        let default = default_variant(kernel);
        let default = find(&|view| Some(view.tools.variant) == default);
        Some((default.unwrap_or(0), "the system's own choice")).filter(|_| !self.views.is_empty())
    }
}
