//! The pods that a change names.

use crate::common::bundle;
use crate::rebind::{change, pod};
use netpolc_bundle::rebind::Rebind;
use netpolc_bundle::{Bindings, LocalPod, limits};
use std::net::IpAddr;

#[test]
fn pods_come_go_and_change_their_addresses() {
    let before = Bindings {
        pods: vec![pod("shop/a", &["10.0.0.1"]), pod("shop/c", &["10.0.0.3"]), pod("shop/d", &["10.0.0.4"])],
    };
    let bindings = |pods: Vec<LocalPod>| change(&[], &[], pods).bindings(&before);
    assert_eq!(bindings(vec![]), Ok(before.clone()));
    let pods = vec![
        pod("shop/d", &["10.0.0.6", "fd00::6"]),
        pod("shop/b", &["10.0.0.3"]),
        pod("shop/c", &[]),
        pod("shop/unknown", &[]),
    ];
    let wanted =
        [pod("shop/a", &["10.0.0.1"]), pod("shop/b", &["10.0.0.3"]), pod("shop/d", &["10.0.0.6", "fd00::6"])];
    assert_eq!(bindings(pods).unwrap().pods, wanted);
    assert!(bindings(vec![pod("shop/b", &["10.0.0.1"])]).unwrap_err().0.contains("two pods"));
    assert!(bindings(vec![pod("shop/b", &["10.0.0.9", "10.0.0.9"])]).is_err());
}

/// What no bundle could bind, no change may: the loader could not look after it.
#[test]
fn pods_that_no_bundle_could_have_are_refused() {
    let many: Vec<String> =
        (0..=limits::ADDRESSES).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(limits::OBJECT_NAME_BYTES + 1);
    let bad = [pod("shop/\u{7}", &["10.0.0.9"]), pod(&long, &["10.0.0.9"]), pod("shop/b", &many)];
    for pod in bad {
        let change = change(&[], &[("10.0.0.9", "10.0.0.2")], vec![pod]);
        change.bindings(&Bindings::default()).unwrap_err();
        bundle().rebound(&change).unwrap_err();
    }
    let pods: Vec<LocalPod> = (0..=limits::LOCAL_PODS as u32)
        .map(|n| LocalPod { name: n.to_string(), addresses: vec![IpAddr::from(n.to_be_bytes())] })
        .collect();
    let most = Rebind { pods: pods[1..].to_vec(), ..change(&[], &[], vec![]) };
    most.bindings(&Bindings::default()).unwrap();
    let error = Rebind { pods, ..change(&[], &[], vec![]) }.bindings(&Bindings::default());
    assert!(error.unwrap_err().0.contains("too many pods"));
}
