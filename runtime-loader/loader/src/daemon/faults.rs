//! Faults that may last: each is logged when it begins, when it changes, now and then, and when it is over.

use super::log::{Level, log};
use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a fault is logged that stays the same.
const REMIND: Duration = Duration::from_secs(60);

/// The kinds of lasting faults.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// What enforces the bundle.
    Rules,
    /// The node's network.
    Node,
    /// What is written down.
    Store,
    /// Established connections.
    Connections,
    /// What passes by the rules.
    Bypassed,
}

impl Part {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

#[derive(Debug, Default)]
struct Fault {
    message: String,
    said: Option<Instant>,
}

/// One of each kind, if there is one.
#[derive(Debug, Default)]
pub struct Faults([Fault; 5]);

impl Faults {
    /// Logs a fault, unless it is the same and was logged not long ago.
    pub fn fault(&mut self, part: Part, message: &dyn Display) {
        let message = message.to_string();
        let fault = &mut self.0[part as usize];
        if fault.message != message || fault.said.is_none_or(|when| when.elapsed() >= REMIND) {
            log(Level::Error, "fault", &[("part", &part.name()), ("why", &message)]);
            *fault = Fault { message, said: Some(Instant::now()) };
        }
    }

    /// Those that last, each with its part.
    pub fn all(&self) -> Vec<String> {
        let parts = [Part::Rules, Part::Node, Part::Store, Part::Connections, Part::Bypassed];
        let lasting = parts.into_iter().zip(&self.0).filter(|(_, fault)| fault.said.is_some());
        lasting.map(|(part, fault)| format!("{}: {}", part.name(), fault.message)).collect()
    }

    /// It is over, if there was one.
    pub fn mended(&mut self, part: Part) {
        let fault = &mut self.0[part as usize];
        if fault.said.is_some() {
            log(Level::Info, "mended", &[("part", &part.name())]);
            *fault = Fault::default();
        }
    }
}
