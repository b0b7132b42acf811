//! What the origins of rules are called.

use netpolc_bundle::Origin as Place;
use netpolc_frontend::model::Model;
use netpolc_frontend::source::Sources;
use netpolc_ir::unit::{Origin, Origins};
use std::collections::HashMap;

/// The names of policies, with or without places, for comments.
#[derive(Debug)]
pub struct Labels {
    labels: Vec<String>,
    policies: Vec<String>,
    places: HashMap<Origin, Place>,
}

impl Labels {
    /// With `places`, every label ends in `file:line:column`; without, labels do not change when a policy is moved.
    pub fn new(model: &Model, sources: &Sources, places: bool) -> Labels {
        let mut labels = Vec::with_capacity(model.origins.len());
        let mut known = HashMap::new();
        for (i, origin) in model.origins.iter().enumerate() {
            let place = sources.place(origin.at);
            let label = if places { format!("{} {place}", origin.policy) } else { origin.policy.clone() };
            labels.push(label);
            let place = Place {
                policy: origin.policy.clone(),
                file: place.file,
                line: place.line,
                column: place.column,
            };
            known.insert(Origin(i as u32), place);
        }
        Labels { labels, policies: policies(model), places: known }
    }

    /// Labels that name the policy alone, where there are no sources to name places in.
    pub fn of_policies(model: &Model) -> Labels {
        Labels { labels: policies(model), policies: policies(model), places: HashMap::new() }
    }

    /// The places of some origins, for a bundle's provenance.
    pub fn places(&self, origins: &[Origin]) -> Vec<&Place> {
        origins.iter().filter_map(|origin| self.places.get(origin)).collect()
    }
}

impl Origins for Labels {
    fn label(&self, origin: Origin) -> String {
        self.labels.get(origin.0 as usize).cloned().unwrap_or_default()
    }

    fn policy(&self, origin: Origin) -> String {
        self.policies.get(origin.0 as usize).cloned().unwrap_or_default()
    }
}

fn policies(model: &Model) -> Vec<String> {
    model.origins.iter().map(|origin| origin.policy.clone()).collect()
}
