//! `cargo xtask demo`: the course sample from YAML to packets.

use crate::shell::{self, build_programs, has_program, root, status};
use std::fs;
use std::process::Command;

const SAMPLE: &str = "samples/course";
const OUT: &str = "target/demo";

/// Runs the task.
pub(crate) fn run() -> Result<(), String> {
    let netpolc = build_programs()?.join("netpolc");
    let netpolc = || Command::new(&netpolc);
    fs::create_dir_all(root().join("target")).map_err(|e| format!("target: {e}"))?;
    shell::run(netpolc().args(["build", SAMPLE, "--out", OUT]))?;
    show_rules()?;
    for from in ["default/backend", "default/frontend"] {
        let ends = ["--from", from, "--to", "default/mysql", "--port", "3306/TCP"];
        shell::run(netpolc().args(["explain", SAMPLE]).args(ends))?;
    }
    let missing: Vec<&str> =
        [("nft", "nftables"), ("ip", "iproute2")].iter().filter(|p| !has_program(p.0)).map(|p| p.1).collect();
    if !missing.is_empty() {
        println!("\nNot tried with real packets: install what that needs and run this again:");
        println!("  sudo apt-get install -y {}", missing.join(" "));
        return Ok(());
    }
    let tried = status(netpolc().args(["try", SAMPLE]))?;
    match tried.code() {
        Some(0) => Ok(()),
        Some(2) => {
            println!("\nNot tried with real packets: the reason is above. The trial needs root,");
            println!("or a kernel that lets everybody make user namespaces.");
            Ok(())
        }
        _ => Err(format!("netpolc try: {tried}")),
    }
}

/// The IPv4 half of the script; the other half has the same shape and, here, no pods.
fn show_rules() -> Result<(), String> {
    let path = format!("{OUT}/default/nftables.nft");
    let script = fs::read_to_string(root().join(&path)).map_err(|e| format!("{path}: {e}"))?;
    let half = script.split("\ntable ip6 ").next().unwrap_or(&script);
    println!("\n{half}");
    println!("(and the same for IPv6: {path})");
    Ok(())
}
