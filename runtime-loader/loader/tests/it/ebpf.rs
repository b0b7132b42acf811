//! What is particular to the backend eBPF in the loader.

use crate::cluster;
use crate::common::{Dir, LOADER, Netns, unique};
use netpolc_bundle::{Backend, store};

fn bundle(policies: &str) -> Dir {
    let dir = Dir(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&dir.0).unwrap();
    store::write(&dir.0, &cluster::compiled_for(policies, &Backend::ALL)).unwrap();
    dir
}

/// Where no bpf file system is and none may be mounted, nothing can be pinned: another backend is taken.
#[test]
fn without_a_bpf_file_system_another_backend_is_taken() {
    let netns = Netns::new();
    netns.sh("ip link set lo up");
    let dir = bundle(&cluster::a());
    // `ip netns exec` gives a mount namespace of its own with a fresh `/sys`; what may be below `/run` is hidden. Without
    // CAP_SYS_PTRACE the file systems of other processes are out of reach.
    let apply = |backend: &str| {
        let line = format!(
            "mount -t tmpfs netpolc-t /run && exec setpriv --bounding-set -sys_admin,-sys_ptrace \
             --inh-caps -sys_admin,-sys_ptrace {LOADER} apply --backend {backend} {}",
            dir.path()
        );
        let output = netns.output(&line);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let reason = "there is no bpf file system to pin programs in: mounting a bpf file system";
    let (status, text) = apply("auto");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("backend nftables") && text.contains(&format!("not ebpf: {reason}")), "{text}");
    assert!(netns.load(&["status"], 0).contains("backend nftables"));
    // The one that was asked for by name is not replaced, and what is in force stays.
    let (status, text) = apply("ebpf");
    assert_eq!(status, Some(3), "{text}");
    assert!(text.contains(&format!("ebpf cannot be used here: {reason}")), "{text}");
    assert!(netns.load(&["status"], 0).contains("backend nftables"));
}
