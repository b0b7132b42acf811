//! Scripts for nftables that netpolc's rules are compared with.

use super::load::Load;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// No hook at all. The one rule is in a chain that nothing reaches; that it looks at the state of connections makes the
/// kernel track them in this namespace, as it does on a node of Kubernetes.
pub const FLOOR: &str = "table ip floor {\n\tchain inert {\n\t\tct state new accept\n\t}\n}\n";

/// Sends what is not established to a chain, as netpolc does; this chain is empty.
const HOOK: &str = "table ip hooked {\n\tchain judge {\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority -10\n\
    \t\tct state and ( established | related ) == 0 goto judge\n\t}\n}\n";

/// The least that can be done to drop the stranger's packets.
pub fn drop_only(load: &Load) -> String {
    format!(
        "{}table ip least {{\n\tchain forward {{\n\t\ttype filter hook forward priority -10\n\t\tip saddr {} drop\n\t}}\n}}\n",
        FLOOR,
        load.stranger()
    )
}

/// A rule for each policy, as others emit: the control that shows that the method sees growth.
pub fn naive(load: &Load) -> String {
    let mut out = String::from("table ip naive {\n");
    let list = |addrs: &[IpAddr]| addrs.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let mut rules = String::from("\t\tct state established,related accept\n");
    for i in 0..load.policies {
        let (to, port) = load.service(i);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "\tset p{i} {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}",
            list(&load.peers(i))
        );
        let _ = writeln!(rules, "\t\tip daddr {to} udp dport {port} ip saddr @p{i} accept");
    }
    let isolated = list(&load.locals());
    let _ = writeln!(out, "\tset isolated {{\n\t\ttype ipv4_addr\n\t\telements = {{ {isolated} }}\n\t}}");
    let _ = writeln!(
        out,
        "\tchain forward {{\n\t\ttype filter hook forward priority -10\n{rules}\t\tip daddr @isolated drop\n\t}}\n}}"
    );
    out
}

/// A check of sources without a look at the routes: what comes from a pod's interface has the pod's address.
const BOUND: &str = "\t\tiifname . ip saddr != @bindings jump unbound\n";

/// What [`BOUND`] needs, for the client's interface.
fn bindings(load: &Load) -> String {
    let flows = load.flows();
    let sources: BTreeSet<IpAddr> = flows.iter().map(|f| f.from).chain([load.stranger()]).collect();
    let elements: Vec<String> = sources.iter().map(|source| format!("\"p1\" . {source}")).collect();
    let local: Vec<String> = sources.iter().map(IpAddr::to_string).collect();
    format!(
        "\tset bindings {{\n\t\ttype ifname . ipv4_addr\n\t\telements = {{ {} }}\n\t}}\n\
         \tset podif {{\n\t\ttype ifname\n\t\telements = {{ \"p1\" }}\n\t}}\n\
         \tset local {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}\n\
         \tchain unbound {{\n\t\tiifname @podif drop\n\t\tip saddr @local drop\n\t}}\n",
        elements.join(", "),
        local.join(", "),
    )
}

/// The check of sources that netpolc had before: a look at the routes.
const FIB: &str = "fib saddr . iif oif missing";

/// netpolc's checks before the policies, the last as it was, as rules that can stand in another script.
fn front(ours: &str) -> String {
    let mut out = String::new();
    for (_, start) in PARTS.into_iter().filter(|(name, _)| *name != "podif") {
        let rule = ours.lines().map(str::trim).find(|line| line.starts_with(start)).unwrap_or_default();
        // All of them lead to drops of packets that are not measured.
        let matches = rule.split(" goto ").next().and_then(|r| r.split(" jump ").next()).unwrap_or_default();
        let _ = writeln!(out, "\t\t{matches} drop");
    }
    let _ = writeln!(out, "\t\t{FIB} drop");
    out
}

/// One set of all that is allowed.
fn allowed(load: &Load) -> String {
    let mut elements = BTreeSet::new();
    for i in 0..load.policies {
        let (to, port) = load.service(i);
        elements.extend(load.peers(i).into_iter().map(|from| format!("{to} . {from} . 17 . {port}")));
    }
    let elements: Vec<String> = elements.into_iter().collect();
    format!(
        "\tset allowed {{\n\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service\n\t\telements = {{ {} }}\n\t}}\n",
        elements.join(", ")
    )
}

/// netpolc's script with that set, which is asked when the source is known to be true.
fn with_allowed(load: &Load, ours: &str) -> String {
    let mut out = String::new();
    let mut judge = false;
    for line in ours.lines() {
        judge = if line.starts_with("\tchain ") { line.starts_with("\tchain judge") } else { judge };
        if line.starts_with("\tset isolated") && !out.contains("set allowed") {
            out += &allowed(load);
        }
        if judge && line.starts_with("\t\tip daddr vmap @ingress") {
            out += "\t\tip daddr . ip saddr . meta l4proto . th dport @allowed accept\n";
        }
        out += line;
        out.push('\n');
    }
    out
}

/// That set behind a set of the isolated pods or `first`. `front` are rules before it, `extra` their sets.
fn product(load: &Load, extra: &str, front: &str, first: bool) -> String {
    let allowed = allowed(load);
    let isolated: Vec<String> = load.locals().iter().map(IpAddr::to_string).collect();
    let before = if first { "" } else { "\t\tip daddr != @isolated return\n" };
    format!(
        "table ip product {{\n{extra}\tset isolated {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}\n\
         {allowed}\tchain judge {{\n{front}{before}\t\tip daddr . ip saddr . meta l4proto . th dport @allowed return\n\
         \t\tip daddr @isolated drop\n\t}}\n\
         \tchain forward {{\n\t\ttype filter hook forward priority -10\n\
         \t\tct state and ( established | related ) == 0 goto judge\n\t}}\n}}\n",
        isolated.join(", "),
    )
}

/// A verdict map on pod, protocol and port, and a chain with one set for each distinct set of peers.
fn services(load: &Load, extra: &str, front: &str) -> String {
    let mut sets: BTreeMap<Vec<IpAddr>, usize> = BTreeMap::new();
    let (mut chains, mut elements) = (String::new(), Vec::new());
    for i in 0..load.policies {
        let peers = load.peers(i);
        let next = sets.len();
        let n = *sets.entry(peers.clone()).or_insert_with(|| {
            let list: Vec<String> = peers.iter().map(IpAddr::to_string).collect();
            let _ = writeln!(
                chains,
                "\tset s{next} {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}",
                list.join(", ")
            );
            let _ = writeln!(chains, "\tchain c{next} {{\n\t\tip saddr @s{next} return\n\t\tdrop\n\t}}");
            next
        });
        let (to, port) = load.service(i);
        elements.push(format!("{to} . 17 . {port} : goto c{n}"));
    }
    let isolated: Vec<String> = load.locals().iter().map(IpAddr::to_string).collect();
    format!(
        "table ip services {{\n{extra}\tset isolated {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}\n{chains}\
         \tmap services {{\n\t\ttype ipv4_addr . inet_proto . inet_service : verdict\n\t\telements = {{ {} }}\n\t}}\n\
         \tchain judge {{\n{front}\t\tip daddr . meta l4proto . th dport vmap @services\n\t\tip daddr @isolated drop\n\t}}\n\
         \tchain forward {{\n\t\ttype filter hook forward priority -10\n\
         \t\tct state and ( established | related ) == 0 goto judge\n\t}}\n}}\n",
        isolated.join(", "),
        elements.join(", "),
    )
}

/// Rules of the judge that can be left out one by one, and how they begin.
const PARTS: [(&str, &str); 3] =
    [("state", "ct state invalid "), ("flags", "tcp flags "), ("podif", "iifname @podif jump ")];

/// A script without the rules that begin in one of some ways.
fn without(script: &str, starts: &[&str]) -> String {
    let keep = |line: &&str| !starts.iter().any(|start| line.trim_start().starts_with(start));
    script.lines().filter(keep).flat_map(|line| [line, "\n"]).collect()
}

/// Variants of netpolc's script, and other shapes: a name and a script each.
pub fn variants(load: &Load, ours: &str) -> Vec<(String, String)> {
    let front = front(ours);
    let bound = format!("{}{}", without(&front, &["fib "]), BOUND);
    let extra = bindings(load);
    let mut all = vec![("hook".to_owned(), HOOK.to_owned())];
    all.extend(PARTS.map(|(name, start)| (format!("nftables -{name}"), without(ours, &[start]))));
    all.push(("nftables -all three".to_owned(), without(ours, &PARTS.map(|p| p.1))));
    let looks = without(ours, &["iifname @podif jump "]);
    let looks = looks.lines().map(|line| match line.trim_start().starts_with("ip saddr vmap @sources_") {
        true => format!("\t\t{FIB} jump spoof\n"),
        false => format!("{line}\n"),
    });
    all.push(("nftables +fib".to_owned(), looks.collect()));
    all.push(("nftables +allowed".to_owned(), with_allowed(load, ours)));
    let shapes = [
        ("product", product(load, "", "", false)),
        ("product +front", product(load, "", &front, false)),
        ("product +bound", product(load, &extra, &bound, false)),
        ("allowed first", product(load, "", "", true)),
        ("allowed first +bound", product(load, &extra, &bound, true)),
        ("services", services(load, "", "")),
        ("services +front", services(load, "", &front)),
        ("services +bound", services(load, &extra, &bound)),
    ];
    all.extend(shapes.map(|(name, script)| (name.to_owned(), script)));
    all
}
