//! Kubernetes Events on policies that cannot be compiled.

use crate::log;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// Longest note that the API server takes: 1 kB (`events.k8s.io/v1`, field `note`).
const NOTE_BYTES: usize = 1000;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong with an object.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The object.
    pub object: ObjectReference,
    /// What is wrong.
    pub message: String,
}

/// Publishes faults as they come.
pub async fn publish(client: Client, node: String, mut faults: Receiver<Fault>) {
    let reporter = Reporter { controller: "netpol-agent".to_owned(), instance: Some(node) };
    let recorder = Recorder::new(client, reporter);
    while let Some(Fault { object, message }) = faults.recv().await {
        let mut note =
            format!("The policy cannot be compiled, so the pods that it selects are isolated: {message}");
        let cut =
            note.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= NOTE_BYTES).last();
        note.truncate(cut.unwrap_or(0));
        let event = Event {
            type_: EventType::Warning,
            reason: "NotCompiled".to_owned(),
            note: Some(note),
            action: "Isolate".to_owned(),
            secondary: None,
        };
        // The metric and the log say it too, so an event that is lost is no reason to try for ever.
        match timeout(PATIENCE, recorder.publish(&event, &object)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn("an event cannot be published", &[("error", &error)]),
            Err(_) => log::warn("an event cannot be published", &[("error", &"no answer")]),
        }
    }
}
