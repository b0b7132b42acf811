//! The pipeline on a large unit. `cargo test -p netpolc-ir --release --test ir -- speed --ignored --nocapture` measures.

use crate::common::Rng;
use cranelift_entity::EntityRef;
use netpolc_ir::addr::{Block, Cidr};
use netpolc_ir::passes::{self, Cost};
use netpolc_ir::ports::{PortSpan, Transport};
use netpolc_ir::unit::*;
use netpolc_ir::verify::verify;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// 10,000 pods in 2,000 classes of 100 namespaces; 5,000 rules over apps, namespaces and blocks.
fn large() -> Unit {
    let rng = &mut Rng::new(7);
    let mut unit = Unit::default();
    for i in 0..200u32 {
        let addr = IpAddr::from(Ipv4Addr::from(0xc0a8_0000 + i));
        unit.hosts.push(HostData { name: format!("node-{i:04}"), addrs: vec![addr] });
    }
    for i in 0..2000 {
        unit.classes.push(format!("ns{} app=a{}", i / 20, i % 20));
    }
    for i in 0..10_000u32 {
        let addr = IpAddr::from(Ipv4Addr::from(0x0af4_0000 + i));
        let class = Class::new(i as usize % 2000);
        let host = Host::new(rng.below(200));
        unit.endpoints.push(EndpointData {
            name: format!("ns/pod-{i:05}"),
            host,
            addrs: vec![(addr, class)],
        });
    }
    for _ in 0..5000 {
        rule(&mut unit, rng);
    }
    unit
}

fn rule(unit: &mut Unit, rng: &mut Rng) {
    let ns = rng.below(100);
    let class = |i: usize| Class::new(ns * 20 + i);
    let origin = vec![Origin(unit.rules.len() as u32)];
    let whole: Vec<Class> = (0..20).map(class).collect();
    let classes = if rng.one_in(4) { whole.clone() } else { vec![class(rng.below(20))] };
    let subject = unit.sets.push(SetData { classes, blocks: vec![] });
    let peers = match rng.below(5) {
        0 => SetData {
            classes: (0..2000).map(Class::new).filter(|_| rng.one_in(20)).collect(),
            blocks: vec![],
        },
        1 => SetData { classes: vec![], blocks: blocks(rng) },
        2 => SetData { classes: whole, blocks: blocks(rng) },
        _ => SetData { classes: vec![class(rng.below(20))], blocks: vec![] },
    };
    let peers = unit.sets.push(peers);
    let ports = [80, 443, 8080, 5432, 53].map(|p| PortSpan::port(Transport::Tcp, p));
    let ports = unit.ports.push((0..1 + rng.below(3)).map(|_| rng.pick(&ports)).collect());
    let direction = rng.pick(&Direction::ALL);
    unit.isolations.push(Isolation { direction, subject, origins: origin.clone() });
    unit.rules.push(RuleData {
        tier: Tier::NetworkPolicy,
        direction,
        order: 0,
        subject,
        peers,
        ports,
        action: Action::Accept,
        origins: origin,
    });
}

fn blocks(rng: &mut Rng) -> Vec<Block> {
    let mut block = || {
        let base = [0u32, 0xac10_0000, 0x0b00_0000][rng.below(3)];
        let len = if base == 0 { 0 } else { 24 };
        let addr = Ipv4Addr::from(base + ((rng.below(200) as u32) << 8));
        let except = (0..rng.below(5)).map(|_| Ipv4Addr::from(0x0bfe_0000 + ((rng.below(200) as u32) << 8)));
        let except = except.filter(|_| base == 0).map(|e| Cidr::new(e.into(), 24).unwrap()).collect();
        Block { cidr: Cidr::new(addr.into(), len).unwrap(), except }
    };
    vec![block(), block(), block()]
}

#[test]
#[ignore = "measures; needs a release build"]
fn ten_thousand_pods_take_little_time() {
    let unit = large();
    let before = Cost::of(&unit);
    let start = Instant::now();
    let verified = verify(unit).unwrap();
    println!("verify {:?}: {before}", start.elapsed());
    let start = Instant::now();
    let mut last = start;
    let after = passes::run(verified, |stats| {
        println!("{:?} {}: {}", last.elapsed(), stats.name, stats.after);
        last = Instant::now();
    });
    let after = Cost::of(&after.unwrap());
    let taken = start.elapsed();
    println!("{taken:?}: {after}");
    assert!(after.weight() < before.weight());
    assert!(taken.as_millis() < 2000, "{taken:?}");
}

/// 100,000 addresses among thousands of blocks that cut through them, half of them the outside of a block.
#[test]
#[ignore = "measures; needs a release build"]
fn a_hundred_thousand_addresses_verify_quickly() {
    let rng = &mut Rng::new(9);
    let mut unit = Unit::default();
    let host = unit.hosts.push(HostData { name: "n".to_owned(), addrs: vec![] });
    for i in 0..100_000u32 {
        // Sixteen neighbours have one class; no block is smaller.
        if i % 16 == 0 {
            unit.classes.push(format!("c{}", i / 16));
        }
        let addr = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i));
        let addrs = vec![(addr, Class::new(i as usize / 16))];
        unit.endpoints.push(EndpointData { name: format!("x/{i:06}"), host, addrs });
    }
    for _ in 0..4000 {
        let base = Ipv4Addr::from(0x0a00_0000 + rng.below(100_000) as u32);
        let inner = Cidr::new(base.into(), 24 + rng.below(5) as u8).unwrap();
        let block = match rng.below(2) {
            0 => Block::whole(inner),
            _ => Block { cidr: Cidr::all(netpolc_ir::addr::Family::V4), except: vec![inner] },
        };
        unit.sets.push(SetData { classes: vec![], blocks: vec![block] });
    }
    let start = Instant::now();
    let verified = verify(unit);
    let taken = start.elapsed();
    println!("{taken:?}");
    assert!(verified.is_ok() && taken.as_millis() < 2000, "{taken:?}");
}
