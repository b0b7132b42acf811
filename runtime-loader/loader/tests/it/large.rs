//! Requests as large as they may be.

use crate::common::Netns;
use crate::daemon::{Daemon, dir};
use netpolc_bundle::wire::{self, FromLoader, ToLoader};
use std::io::Write as _;

/// Most memory that the daemon has had, in KiB.
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What costs most for its length: a list of files whose names are empty.
fn send(daemon: &Daemon) {
    let most = wire::FRAME_BYTES as usize;
    let (head, file, tail) = ("{\"do\":\"apply\",\"files\":[", "[\"\",0],", "[\"\",0]]}");
    let files = (most - head.len() - tail.len()) / file.len();
    let text = [head, &file.repeat(files), tail].concat();
    let mut stream = daemon.connect();
    stream.write_all(&(text.len() as u32).to_le_bytes()).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let answer = wire::receive::<FromLoader>(&mut stream).unwrap();
    assert!(
        matches!(&answer, Some(FromLoader::Failed { message }) if message.contains("no file")),
        "{answer:?}"
    );
}

#[test]
fn many_that_send_much_take_little_more_memory_than_one() {
    let (netns, dir) = (Netns::new(), dir());
    let daemon = Daemon::start(&netns, &dir, &[]);
    let small = peak(&daemon);
    send(&daemon);
    let one = peak(&daemon);
    assert!(one > small + 8_000, "{small} and {one} KiB: it was not much");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| send(&daemon));
        }
    });
    let eight = peak(&daemon);
    assert!(eight < 3 * one, "{one} KiB for one, {eight} for eight");
    assert!(matches!(daemon.ask(&ToLoader::Status), FromLoader::Status(_)));
}
