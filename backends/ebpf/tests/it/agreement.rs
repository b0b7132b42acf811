//! What the instructions of the object do is what the policies say, for every packet.

use super::common::{compiled, nodes, same_on_both};
use netpolc_ebpf::contents::Established;
use netpolc_ebpf::machine::{Machine, load};
use netpolc_frontend::reference::SetReference;
use netpolc_ir::addr::{self, Family};
use netpolc_ir::bitset::BitSet;
use netpolc_ir::ports::Protocol;
use netpolc_ir::proof::{Artifact, Atoms, Bounds, Constants, Kind, Packet, prove};
use netpolc_ir::unit::{Direction, Flow, Verdict};
use netpolc_testkit::flows::Questions;
use netpolc_testkit::generate::{Options, generate};
use netpolc_testkit::pipeline::{Compiled, seeds};
use netpolc_testkit::random::Random;
use std::net::IpAddr;

fn check(yaml: &str, seed: u64, established: Established) {
    let compiled = compiled(yaml);
    let mut nodes = nodes(&compiled, established);
    let reference = SetReference::new(&compiled.model);
    for flow in Questions::new(&compiled.model).sample(&mut Random::new(seed), 400) {
        let expected = compiled.model.decide(&flow).verdict;
        let actual = Verdict::allow_if(nodes.iter().all(|n| n.decide(&flow) == Verdict::Allow));
        assert_eq!(actual, expected, "seed {seed} {established:?}: {flow}\n{yaml}");
    }
    for node in &mut nodes {
        let mut interpreted = load(&node.object, &node.contents.text()).unwrap();
        interpreted.interpret();
        assert!(node.machine.is_compiled());
        let packets = packets(&compiled, seed);
        same_on_both(&node.machine, &interpreted, &packets, &format!("seed {seed} {established:?}"));
        if let Err(witness) = prove(&reference, &mut node.machine, &node.name) {
            panic!(
                "seed {seed} {established:?}, node {}: {witness}\n{}\n{yaml}",
                node.name,
                node.contents.text()
            );
        }
    }
}

/// Packets of every kind, on flows that the policies may tell apart and on others.
fn packets(compiled: &Compiled, seed: u64) -> Vec<Packet> {
    let random = &mut Random::new(seed);
    let flows = Questions::new(&compiled.model).sample(random, 60);
    let ends: Vec<(IpAddr, IpAddr)> = flows.iter().map(|f| (f.src, f.dst)).collect();
    let strays = ends.into_iter().map(|(src, dst)| {
        let (bits, port) = (random.bits(), random.bits() as u16);
        let dst = Family::of(dst).addr(addr::bits(dst) ^ u128::from(bits & 0xff));
        Flow { src, dst, protocol: Protocol::from_number((bits >> 8) as u8), port }
    });
    let strays: Vec<Flow> = strays.collect();
    flows.into_iter().chain(strays).flat_map(|flow| Kind::ALL.map(|kind| kind.packet(flow))).collect()
}

/// A machine that, whenever it answers for all peers at once, is asked about each of them as well.
struct Asked<'m>(&'m mut Machine);

impl Artifact for Asked<'_> {
    fn addresses(&self, family: Family) -> Constants {
        self.0.addresses(family)
    }

    fn ports(&self) -> Bounds {
        self.0.ports()
    }

    fn begin(&mut self, atoms: &Atoms) {
        self.0.begin(atoms);
    }

    fn permitted(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> BitSet {
        self.permitted_kind(atoms, local, direction, Kind::Opening, protocol, port).unwrap()
    }

    fn permitted_kind(
        &mut self,
        atoms: &Atoms,
        local: IpAddr,
        direction: Direction,
        kind: Kind,
        protocol: Protocol,
        port: u16,
    ) -> Option<BitSet> {
        let at_once = self.0.permitted_kind(atoms, local, direction, kind, protocol, port)?;
        for atom in 0..atoms.len() {
            let peer = atoms.family().addr(atoms.other_than(atom, addr::bits(local)));
            if peer == local {
                continue;
            }
            let (src, dst) = match direction {
                Direction::Ingress => (peer, local),
                Direction::Egress => (local, peer),
            };
            let packet = kind.packet(Flow { src, dst, protocol, port });
            assert_eq!(at_once.contains(atom), self.0.decide(&packet) == Verdict::Allow, "{packet}");
        }
        Some(at_once)
    }

    fn decide(&self, packet: &Packet) -> Verdict {
        self.0.decide(packet)
    }
}

#[test]
fn all_peers_at_once_and_one_by_one() {
    for seed in 0..seeds(60) {
        let compiled =
            compiled(&generate(seed, Options { tiers: seed % 3 == 0, ..Options::default() }).yaml());
        let reference = SetReference::new(&compiled.model);
        for node in &mut nodes(&compiled, established(seed)) {
            prove(&reference, &mut Asked(&mut node.machine), &node.name).unwrap();
        }
    }
}

fn established(seed: u64) -> Established {
    if seed.is_multiple_of(2) { Established::Cut } else { Established::Keep }
}

#[test]
fn network_policies() {
    for seed in 0..seeds(250) {
        check(&generate(seed, Options::default()).yaml(), seed, established(seed));
    }
}

#[test]
fn tiers() {
    let options = Options { tiers: true, ..Options::default() };
    for seed in 0..seeds(120) {
        check(&generate(seed, options).yaml(), seed, established(seed));
    }
}

#[test]
fn a_small_cluster_both_ways() {
    for established in Established::ALL {
        check(&super::common::shop(), 1, established);
    }
}
