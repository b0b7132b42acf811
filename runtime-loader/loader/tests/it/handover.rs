//! From an agent of one user to one of another.

use crate::common::{Dir, Netns};
use crate::daemon::{Daemon, dir};
use std::fs;
use std::os::unix::net::UnixListener;

/// What an agent of root's leaves; what it listens at, until this is dropped.
fn left(dir: &Dir) -> UnixListener {
    fs::create_dir_all(dir.file("run")).unwrap();
    for name in ["agent-state.json", "agent.sock.new", "other"] {
        fs::write(dir.file(&format!("run/{name}")), "x").unwrap();
    }
    UnixListener::bind(dir.file("run/agent.sock")).unwrap()
}

fn names(dir: &Dir) -> Vec<String> {
    let entries = fs::read_dir(dir.file("run")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_an_agent_of_root_left_does_not_keep_one_of_the_group_out() {
    let netns = Netns::new();
    let start = |dir: &Dir, group: &[&str]| drop(Daemon::start(&netns, dir, group));
    let all = ["agent-state.json", "agent.sock", "agent.sock.new", "other"];
    let without_socket =
        |names: Vec<String>| names.into_iter().filter(|name| name != "s").collect::<Vec<_>>();
    // One of root's that still listens stays, and so does everything where root's agent is the one to come.
    let place = dir();
    let listening = left(&place);
    start(&place, &["--socket-group=65532"]);
    assert_eq!(without_socket(names(&place)), all);
    drop(listening);
    start(&place, &[]);
    assert_eq!(without_socket(names(&place)), all);
    // What one of the group has left is its own to replace.
    std::os::unix::fs::chown(place.file("run/agent-state.json"), Some(65_532), Some(65_532)).unwrap();
    start(&place, &["--socket-group=65532"]);
    assert_eq!(without_socket(names(&place)), ["agent-state.json", "other"]);
    // What root's remembers goes with it.
    std::os::unix::fs::chown(place.file("run/agent-state.json"), Some(0), Some(0)).unwrap();
    start(&place, &["--socket-group=65532"]);
    assert_eq!(without_socket(names(&place)), ["other"]);
}
