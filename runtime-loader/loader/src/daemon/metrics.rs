//! `/metrics` for Prometheus and `/healthz` for probes: as little HTTP as they need.
//!
//! One connection at a time, two seconds for each, and no more of a request is read than its first line and a few
//! headers. Nothing of a request but its path is looked at.

use super::state::{Counters, State, View};
use crate::dataplane::InForce;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of a request.
const REQUEST_BYTES: usize = 8 << 10;

/// Bytes of a page of memory, in `/proc/self/statm`. Architectures with larger pages show too little.
const PAGE_BYTES: u64 = 4096;

/// Serves for as long as the process lives. If the loop that repairs has not looked for `most`, the daemon is not well.
pub fn serve(listener: &TcpListener, state: &State, most: Duration) {
    loop {
        match listener.accept() {
            // A client that fails is its own affair.
            Ok((stream, _)) => {
                let _ = answer(stream, state, most);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn answer(mut stream: TcpStream, state: &State, most: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let (status, body) = match words.as_slice() {
        [b"GET", b"/metrics", _] => ("200 OK", text(&state.metrics())),
        [b"GET", b"/healthz", _] => health(&state.metrics(), most),
        [b"GET", _, _] => ("404 Not Found", "there are /metrics and /healthz\n".to_owned()),
        _ => ("400 Bad Request", "only GET is served\n".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes())
}

/// Reads to the empty line that ends the headers.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > REQUEST_BYTES {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => head.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        }
    }
    Ok(head)
}

/// Well is who still looks. That nothing is in force yet is no reason to start the daemon anew.
fn health(view: &View, most: Duration) -> (&'static str, String) {
    if view.looked <= most {
        return ("200 OK", "ok\n".into());
    }
    let seconds = view.looked.as_secs();
    ("503 Service Unavailable", format!("it has not looked at the kernel for {seconds} seconds\n"))
}

/// Appends a metric with its values: labels and figure.
fn metric(out: &mut String, name: &str, kind: &str, help: &str, values: &[(String, String)]) {
    let name = format!("netpolc_loader_{name}");
    // Writing into a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// Values of labels are versions and names of chains, families and policies; what else they might hold is taken out.
fn label(text: &str) -> String {
    text.chars().filter(|c| (c.is_ascii_graphic() || *c == ' ') && !matches!(c, '"' | '\\')).collect()
}

fn text(view: &View) -> String {
    let mut out = String::new();
    let plain = |value: String| vec![(String::new(), value)];
    let status = view.status.as_ref();
    let in_force = status.is_some_and(|status| status.in_force);
    metric(
        &mut out,
        "in_force",
        "gauge",
        "Whether a bundle is in force, without drift.",
        &plain(u8::from(in_force).to_string()),
    );
    if let Some(version) = status.and_then(|status| status.version.as_ref()) {
        let backend = status.and_then(|status| status.backend.as_deref()).unwrap_or("none");
        let labels = format!("{{version=\"{}\",backend=\"{}\"}}", label(version), label(backend));
        metric(&mut out, "version_info", "gauge", "The version in force.", &[(labels, "1".into())]);
    }
    if let Some(since) = view.since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()) {
        let help = "Since when the version is in force, in seconds since 1970.";
        metric(
            &mut out,
            "in_force_since_seconds",
            "gauge",
            help,
            &plain(format!("{:.3}", since.as_secs_f64())),
        );
    }
    metric(
        &mut out,
        "audit",
        "gauge",
        "Whether what would be dropped only counts.",
        &plain(u8::from(view.audit).to_string()),
    );
    metric(
        &mut out,
        "closed_ranges",
        "gauge",
        "Ranges in which addresses that no pod has are closed.",
        &plain(view.closed_ranges.to_string()),
    );
    let bypassed = status.map_or(0, |status| status.bypassed.len());
    let help = "Ways past the rules: bridges whose packets no rule sees, and kube-proxy in IPVS mode.";
    metric(&mut out, "bypassed_bridges", "gauge", help, &plain(bypassed.to_string()));
    let help = "What is wrong and lasts: rules, node, store, connections, bypassed.";
    metric(&mut out, "faults", "gauge", help, &plain(view.faults.len().to_string()));
    let help = "How long the last bundle took to come into force.";
    metric(
        &mut out,
        "last_apply_seconds",
        "gauge",
        help,
        &plain(format!("{:.6}", view.last_apply.as_secs_f64())),
    );
    let help = "How long ago the kernel was last looked at.";
    metric(&mut out, "last_look_seconds", "gauge", help, &plain(format!("{:.3}", view.looked.as_secs_f64())));
    count(&mut out, &view.counters);
    drops(&mut out, status.map(|status| status.dataplanes.as_slice()).unwrap_or_default());
    if let Some(bytes) = resident() {
        metric(
            &mut out,
            "resident_bytes",
            "gauge",
            "Memory that this process has.",
            &plain(bytes.to_string()),
        );
    }
    out
}

/// What the daemon has counted.
fn count(out: &mut String, counters: &Counters) {
    let figures = [
        ("applies_total", counters.applies, "Bundles that came into force."),
        ("rebinds_total", counters.rebinds, "Times that addresses came and went without a new bundle."),
        ("failures_total", counters.failures, "Bundles and repairs that did not."),
        ("repairs_total", counters.repairs, "Times that rules were found changed or gone, and made anew."),
        (
            "interface_updates_total",
            counters.interface_updates,
            "Times that interfaces of pods were picked up.",
        ),
        ("connections_cut_total", counters.connections_cut, "Established connections that were ended."),
        ("node_changes_total", counters.node_changes, "Changes made to routes, masquerade and CNI files."),
        ("node_faults_total", counters.node_faults, "Such changes that could not be made."),
        ("store_failures_total", counters.store_failures, "Times that a bundle could not be written down."),
        ("refused_total", counters.refused, "Requests that were none, and bundles that were not sound."),
        ("evicted_total", counters.evicted, "Connections that rested and had to make room."),
    ];
    for (name, value, help) in figures {
        metric(out, name, "counter", help, &[(String::new(), value.to_string())]);
    }
}

/// What the rules have counted.
fn drops(out: &mut String, found: &[InForce]) {
    let drops: Vec<(String, String)> = found
        .iter()
        .flat_map(|found| found.dropped_packets.iter().map(move |(by, packets)| (found, by, packets)))
        .map(|(found, by, packets)| {
            let backend = label(&found.backend.to_string());
            let labels = format!("{{backend=\"{backend}\",by=\"{}\"}}", label(by));
            (labels, packets.to_string())
        })
        .collect();
    let help = "Packets dropped (in audit mode: that would have been) since this version came into force.";
    metric(out, "dropped_packets_total", "counter", help, &drops);
    let denied = found.iter().flat_map(|found| found.denied.iter().map(move |denied| (found, denied)));
    let denied: Vec<(String, String)> = denied
        .map(|(found, denied)| {
            let [backend, direction, policies] =
                [&found.backend.to_string(), &denied.direction, &denied.policies].map(|text| label(text));
            let labels =
                format!("{{backend=\"{backend}\",direction=\"{direction}\",policies=\"{policies}\"}}");
            (labels, denied.packets.to_string())
        })
        .collect();
    let help = "Packets that no policy allows, by the policies that isolate the pod.";
    metric(out, "denied_packets_total", "counter", help, &denied);
}

fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(PAGE_BYTES)
}
