//! What is left when a sandbox ends, and who may make one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{as_root, helper, usual};
use netpolc_sandbox::Sandbox;

fn links() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/net/dev").unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_string()).collect()
}

/// The network namespaces that a process, or any of its descriptors or threads, refers to.
fn namespaces_of(process: u32) -> BTreeSet<String> {
    let base = Path::new("/proc").join(process.to_string());
    let mut found = BTreeSet::new();
    let entries = fs::read_dir(base.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.chain([base.join("ns/net")]) {
        if let Ok(target) = fs::read_link(path) {
            let target = target.to_string_lossy().into_owned();
            if target.starts_with("net:") {
                found.insert(target);
            }
        }
    }
    found
}

/// The network namespaces that any process refers to.
fn all_namespaces() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).flat_map(namespaces_of).collect()
}

fn hold() -> Child {
    let mut child =
        Command::new(helper()).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn a_killed_process_leaves_nothing() {
    as_root("lifetime::a_killed_process_leaves_nothing", || {
        let (links_before, names_before) = (links(), Path::new("/run/netns").exists());
        let mut child = hold();
        let own = namespaces_of(std::process::id());
        let made: BTreeSet<String> = namespaces_of(child.id()).difference(&own).cloned().collect();
        // Two nodes, two pods, an outside host and the fabric.
        assert_eq!(made.len(), 6, "{made:?}");
        assert_eq!(links(), links_before);
        child.kill().unwrap();
        child.wait().unwrap();
        // A process that holds one of the namespaces would be a leftover; the kernel frees the rest by itself.
        let left: BTreeSet<String> = all_namespaces().intersection(&made).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(links(), links_before);
        assert_eq!(Path::new("/run/netns").exists(), names_before);
    });
}

#[test]
fn dropping_closes_all_descriptors_and_threads() {
    as_root("lifetime::dropping_closes_all_descriptors_and_threads", || {
        // Alone in its process, since other tests open descriptors meanwhile.
        let count = |name: &str| fs::read_dir(Path::new("/proc/self").join(name)).unwrap().count();
        if std::env::var_os("NETPOLC_SANDBOX_ALONE").is_none() {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "lifetime::dropping_closes_all_descriptors_and_threads", "--nocapture"]);
            let status = command.env("NETPOLC_SANDBOX_ALONE", "1").output().unwrap();
            assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
            return;
        }
        drop(Sandbox::build(&usual()).unwrap());
        let before = (count("fd"), count("task"));
        for _ in 0..5 {
            drop(Sandbox::build(&usual()).unwrap());
        }
        // A thread that has been joined may still be on its way out of the kernel's list.
        let deadline = Instant::now() + Duration::from_secs(5);
        while (count("fd"), count("task")) != before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!((count("fd"), count("task")), before);
    });
}

/// The example as an ordinary user, who becomes root in a user namespace.
#[test]
fn an_ordinary_user_can_build_one() {
    let mut command;
    let folder = std::env::temp_dir().join(format!("netpolc-sandbox-{}", std::process::id()));
    if nix::unistd::geteuid().is_root() {
        // The build's own folder may be closed to others.
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.join("sandbox");
        fs::copy(helper(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        // "nobody"; the standard library drops the other groups too.
        command.uid(65_534).gid(65_534);
    } else {
        command = Command::new(helper());
    }
    let output = command.arg("check").current_dir("/").output();
    let _ = fs::remove_dir_all(&folder);
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Nine addresses, three ports and a ping each.
    assert_eq!(text.lines().filter(|line| line.ends_with(": reached")).count(), 9 * 4, "{text}");
}
