//! Small hostile clusters, by seed: every form that a selector, a peer, a block, a port or a pod can have, in numbers
//! that make them meet.

mod blocks;
mod cluster;
mod policy;
mod selector;
mod tiered;

use crate::random::Random;
use crate::text;
use serde_json::Value;

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// ClusterNetworkPolicies too.
    pub tiers: bool,
    /// Only what a sandbox can build: every node has addresses, and every address can be that of a host. Pods are few.
    pub buildable: bool,
}

/// A generated cluster, as the documents of its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Namespaces, nodes and pods.
    pub objects: Vec<Value>,
    /// Policies.
    pub policies: Vec<Value>,
}

impl Cluster {
    /// All documents, the objects first.
    pub fn documents(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter().chain(&self.policies)
    }

    /// All documents as YAML.
    pub fn yaml(&self) -> String {
        text::yaml(self.documents())
    }
}

/// The cluster of a seed.
pub fn generate(seed: u64, options: Options) -> Cluster {
    let mut random = Random::new(seed);
    let world = cluster::World::new(&mut random, options);
    let mut policies: Vec<Value> =
        (0..random.between(1, 6)).map(|i| policy::policy(&mut random, &world, i)).collect();
    if options.tiers {
        policies.extend((0..random.between(1, 4)).map(|i| tiered::policy(&mut random, &world, i)));
    }
    Cluster { objects: world.documents, policies }
}
