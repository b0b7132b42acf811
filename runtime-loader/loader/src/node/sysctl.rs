//! The switches of the kernel that make a node forward packets.

use super::cidr::Cidr;
use std::fs;
use std::io;
use std::path::Path;

/// Switches forwarding on for the families of these ranges, where it is off; what was done, and what could not be.
///
/// In a container the files can usually not be written. That is no reason to stop: the plugin ptp, which runs outside,
/// switches forwarding on with the first pod.
pub fn forward(proc_sys: &Path, ranges: &[Cidr]) -> (Vec<String>, Vec<String>) {
    let (mut changes, mut notes) = (Vec::new(), Vec::new());
    let families = [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")];
    for (ipv4, name) in families {
        if !ranges.iter().any(|range| range.is_ipv4() == ipv4) {
            continue;
        }
        match switch_on(&proc_sys.join(name)) {
            Ok(true) => changes.push(format!("{name} switched on")),
            Ok(false) => {}
            Err(error) => notes.push(format!("{name} is off and cannot be switched on here: {error}")),
        }
    }
    (changes, notes)
}

fn switch_on(path: &Path) -> io::Result<bool> {
    if fs::read_to_string(path)?.trim() == "1" {
        return Ok(false);
    }
    fs::write(path, "1\n").map(|()| true)
}
