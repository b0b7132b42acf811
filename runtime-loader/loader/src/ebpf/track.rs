//! Conntrack must be on in the namespace: a program at a hook does not switch it on, and without it every reply would look
//! like something that opens no connection. A rule that looks at conntrack's state does; it stands in a chain of its own
//! that no packet meets.

use crate::Error;
use crate::kernel::Kernel;
use crate::tables;
use netpolc_bundle::nft::Family;

/// The table of nftables with the rule.
const TABLE: &str = "netpolc_conntrack";
/// Its chain.
const INERT: &str = "inert";
/// The chain of iptables with the rule.
const CHAIN: &str = "NETPOLC-CONNTRACK";

/// The programs of iptables, by family.
const IPTABLES: [(&str, &str); 2] =
    [("iptables-restore", "iptables-save"), ("ip6tables-restore", "ip6tables-save")];

/// Why conntrack cannot be switched on; `None` if it can.
pub(super) fn missing(kernel: &mut dyn Kernel) -> Option<String> {
    let any = kernel.has("nft") || kernel.has("iptables-restore");
    (!any).then(|| "neither nft nor iptables is installed to switch conntrack on".to_owned())
}

/// Switches it on for both families; does nothing if it is.
pub(super) fn switch_on(kernel: &mut dyn Kernel) -> Result<(), Error> {
    if is_on(kernel)? {
        return Ok(());
    }
    if kernel.has("nft") {
        // The table is emptied first, so that the rule stands there once however often this is run.
        let mut script = String::new();
        for family in ["ip", "ip6"] {
            script.push_str(&format!(
                "add table {family} {TABLE}\nflush table {family} {TABLE}\nadd chain {family} {TABLE} {INERT}\n\
                 add rule {family} {TABLE} {INERT} ct state new comment \"keeps conntrack on; no packet comes here\"\n"
            ));
        }
        return kernel.run(&script);
    }
    for (restore, save) in IPTABLES {
        if kernel.has(restore) && !has_chain(kernel, save)? {
            let rules = format!("*filter\n:{CHAIN} - [0:0]\n-A {CHAIN} -m conntrack --ctstate NEW\nCOMMIT\n");
            kernel.program(restore, &["--noflush"], &rules)?;
        }
    }
    Ok(())
}

/// Whether it is on by a rule of ours, for both families.
pub(super) fn is_on(kernel: &mut dyn Kernel) -> Result<bool, Error> {
    if kernel.has("nft") {
        return is_on_by_nft(kernel);
    }
    for (restore, save) in IPTABLES {
        if kernel.has(restore) && !has_chain(kernel, save)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the rule of nftables seems to stand, without running a program; `None` where iptables is used, which has to be run.
pub(super) fn stands(kernel: &mut dyn Kernel) -> Option<bool> {
    let has_rule = |family| tables::uses(family, TABLE, INERT).is_ok_and(|uses| uses > 0);
    kernel.has("nft").then(|| [Family::Ip, Family::Ip6].into_iter().all(has_rule))
}

/// Whether there is anything to take out.
pub(super) fn has_any(kernel: &mut dyn Kernel) -> Result<bool, Error> {
    if kernel.has("nft") {
        return Ok(!kernel.named_tables(TABLE)?.is_empty());
    }
    for (restore, save) in IPTABLES {
        if kernel.has(restore) && has_chain(kernel, save)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_chain(kernel: &mut dyn Kernel, save: &str) -> Result<bool, Error> {
    Ok(kernel.program(save, &["-t", "filter"], "")?.contains(CHAIN))
}

fn is_on_by_nft(kernel: &mut dyn Kernel) -> Result<bool, Error> {
    for family in ["ip", "ip6"] {
        match kernel.program("nft", &["list", "table", family, TABLE], "") {
            Ok(listing) if listing.contains("ct state new") => {}
            Ok(_) | Err(Error::Nft(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What is wrong with it.
pub(super) fn drift(kernel: &mut dyn Kernel) -> Result<Option<String>, Error> {
    if kernel.has("nft") && !is_on_by_nft(kernel)? {
        return Ok(Some("the rule that keeps conntrack on is gone".to_owned()));
    }
    Ok(None)
}

/// Takes the rule out.
pub(super) fn remove(kernel: &mut dyn Kernel) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    if kernel.has("nft") {
        for family in kernel.named_tables(TABLE)? {
            let name = format!("table {family} {TABLE}");
            kernel.run(&format!("delete {name}\n"))?;
            removed.push(name);
        }
        return Ok(removed);
    }
    for (restore, save) in IPTABLES {
        if kernel.has(restore) && has_chain(kernel, save)? {
            kernel.program(restore, &["--noflush"], &format!("*filter\n-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n"))?;
            removed.push(format!("chain {CHAIN}"));
        }
    }
    Ok(removed)
}
