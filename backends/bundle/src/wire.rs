//! What agent, loader and CNI plugin say to each other over Unix sockets: one request, one answer, in frames.
//!
//! A frame is the length of a JSON text as four bytes, little-endian, and the text; a request to apply a bundle is
//! followed by the bytes of its files, in the order and with the lengths that the text names. Whoever reads trusts
//! nothing: lengths are bounded before anything is read, unknown fields are refused, and a bundle is checked as one from a
//! disk ([`Bundle::from_files`]).
//!
//! The loader's socket takes [`ToLoader`] and answers with [`FromLoader`]; the agent's takes [`ToAgent`] and answers with
//! [`FromAgent`]. A connection may carry any number of requests, one after another.

use crate::bundle::{Bundle, BundleError, limit};
use crate::limits;
use crate::rebind::Rebind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;

/// Where the loader listens unless told otherwise.
pub const LOADER_SOCKET: &str = "/run/netpolc/loader.sock";
/// Where the agent listens for the CNI plugin unless told otherwise.
pub const AGENT_SOCKET: &str = "/run/netpolc/agent.sock";
/// Where the agent remembers which pods the plugin announced. A reboot must clear it, as `/run` does.
pub const AGENT_STATE: &str = "/run/netpolc/agent-state.json";

/// A request to the loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToLoader {
    /// Bring the bundle that follows into force.
    Apply {
        /// Names and lengths of the files that follow, the manifest among them.
        files: Vec<(String, u64)>,
    },
    /// Let addresses come and go while the rules stay. Only for what is in force, at the version that the change is for;
    /// else it fails, and the agent sends a bundle.
    Rebind(Rebind),
    /// Make the node's network as the agent read it from the Node objects (mode `--cni=ptp`).
    Network(Network),
    /// Say what is in force.
    #[serde(deserialize_with = "nothing_else")]
    Status,
}

/// What a cluster without a CNI plugin of its own needs from each node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The ranges that this node's pods get their addresses from, one for each family, as `10.244.1.0/24`.
    pub pod_ranges: Vec<String>,
    /// The other nodes: for each range of pods the address of its node.
    pub routes: Vec<(String, IpAddr)>,
    /// All ranges of pods and nodes of the cluster: what goes elsewhere leaves with the node's address.
    pub cluster_ranges: Vec<String>,
}

/// The loader's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromLoader {
    /// It is done.
    Done {
        /// What `netpol-loader apply` would print, for logs.
        report: String,
        /// The version in force, after an apply.
        version: Option<String>,
    },
    /// What is in force: the JSON of `netpol-loader status --format json`.
    Status(serde_json::Value),
    /// It could not be done; what was in force still is.
    Failed {
        /// Why.
        message: String,
    },
}

/// A request to the agent, from the CNI plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToAgent {
    /// A pod's network was made. The answer comes once the policies about it are in force.
    Add(Sandbox),
    /// A pod's network is about to be taken down. The answer comes once no rule knows its addresses.
    Del(Sandbox),
    /// Whether the pod's addresses are bound as they were added.
    Check(Sandbox),
    /// Which sandboxes the runtime still has; all others are forgotten.
    Gc {
        /// Their container ids and interfaces' names.
        valid: Vec<(String, String)>,
    },
    /// Whether the agent is ready to serve `Add`.
    #[serde(deserialize_with = "nothing_else")]
    Status,
}

/// A pod's network namespace, as the runtime names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// The runtime's id of the sandbox.
    pub container: String,
    /// The interface's name inside.
    pub interface: String,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// The pod's UID, where the runtime gives it.
    #[serde(default)]
    pub uid: Option<String>,
    /// The addresses from the result of the plugins before; may be empty for `Del`.
    pub addresses: Vec<IpAddr>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromAgent {
    /// It is done.
    #[serde(deserialize_with = "nothing_else")]
    Done,
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
        /// Whether it may be tried again.
        retry: bool,
    },
}

/// Reads a message of one word. `deny_unknown_fields` does not reach variants without fields: whatever stands beside the
/// word would be passed over.
fn nothing_else<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(from).map(|Nothing {}| ())
}

/// Most bytes of the JSON text of a frame. Ours: the largest is the list of a cluster's nodes.
pub const FRAME_BYTES: u32 = 4 << 20;
/// As many bytes are made room for before they come.
const READ_AHEAD: usize = 64 << 10;

fn invalid(message: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_string())
}

/// Writes one frame.
///
/// # Errors
/// If it is too large, or the other end is gone.
pub fn send<T: Serialize>(to: &mut dyn Write, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message).map_err(invalid)?;
    let length = u32::try_from(text.len()).ok().filter(|n| *n <= FRAME_BYTES);
    let length = length.ok_or_else(|| invalid("the message is too large"))?;
    to.write_all(&[&length.to_le_bytes()[..], &text].concat())?;
    to.flush()
}

/// Reads one frame; `None` if the other end has closed the connection before one began.
///
/// # Errors
/// If it is cut off, too large, or not a message of this type.
pub fn receive<T: DeserializeOwned>(from: &mut dyn Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let first = from.read(&mut length)?;
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(length.get_mut(first..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length);
    if length > FRAME_BYTES {
        return Err(invalid(format!("a message of {length} bytes; at most {FRAME_BYTES} are taken")));
    }
    let text = read_all(from, u64::from(length))?;
    serde_json::from_slice(&text).map(Some).map_err(invalid)
}

/// Reads so many bytes. Room is made for what comes, not for what was announced, but for the first [`READ_AHEAD`].
fn read_all(from: &mut dyn Read, length: u64) -> io::Result<Vec<u8>> {
    let room = usize::try_from(length).unwrap_or(READ_AHEAD).min(READ_AHEAD);
    let mut bytes = Vec::with_capacity(room);
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Sends a bundle: the request, then its files.
///
/// # Errors
/// If its manifest is beyond its limit, or the other end is gone.
pub fn send_bundle(to: &mut dyn Write, bundle: &Bundle) -> io::Result<()> {
    let files = bundle.to_files().map_err(invalid)?;
    let names = files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
    send(to, &ToLoader::Apply { files: names })?;
    files.values().try_for_each(|bytes| to.write_all(bytes))?;
    to.flush()
}

/// Reads the files of a bundle that a request has announced, and checks it.
///
/// # Errors
/// If a file is unknown, repeated or too large, if the connection breaks off, or if the bundle is not sound.
pub fn receive_bundle(
    from: &mut dyn Read,
    files: &[(String, u64)],
) -> io::Result<Result<Bundle, BundleError>> {
    let mut read = BTreeMap::new();
    for (name, size) in files {
        let most = limit(name).ok_or_else(|| invalid(format!("{name:?} is no file of a bundle")))?;
        if *size > most {
            return Err(invalid(format!("{name}: more than {most} bytes")));
        }
        let bytes = read_all(from, *size)?;
        if read.insert(name.clone(), bytes).is_some() || read.len() > limits::FIGURES {
            return Err(invalid(format!("{name}: twice")));
        }
    }
    Ok(Bundle::from_files(read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Artifact, LocalPod};

    #[test]
    fn fields_that_are_not_known_are_refused_in_every_message() {
        fn check<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(messages: &[T]) {
            for message in messages {
                let mut value = serde_json::to_value(message).unwrap();
                assert_eq!(&serde_json::from_value::<T>(value.clone()).unwrap(), message);
                value.as_object_mut().unwrap().insert("more".into(), 1.into());
                let refused = serde_json::from_value::<T>(value).unwrap_err().to_string();
                assert!(refused.contains("unknown field `more`"), "{message:?}: {refused}");
            }
        }
        let sandbox = Sandbox {
            container: "c".into(),
            interface: "eth0".into(),
            pod: "shop/db".into(),
            uid: None,
            addresses: Vec::new(),
        };
        let rebind = Rebind {
            artifact: Artifact::Nftables,
            from: "0123456789abcdef".parse().unwrap(),
            gone: vec!["10.0.0.1".parse().unwrap()],
            like: vec![("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap())],
            pods: vec![LocalPod { name: "shop/db".into(), addresses: Vec::new() }],
        };
        check(&[
            ToLoader::Apply { files: Vec::new() },
            ToLoader::Rebind(rebind.clone()),
            ToLoader::Network(Network::default()),
            ToLoader::Status,
        ]);
        // So are those of what is in a message.
        let value = |part: &str, more: &str| {
            let text = serde_json::to_string(&ToLoader::Rebind(rebind.clone())).unwrap();
            assert!(text.contains(part), "{text}");
            serde_json::from_str::<ToLoader>(&text.replacen(part, more, 1))
        };
        assert!(value("\"name\":", "\"more\":1,\"name\":").is_err());
        assert!(value("\"gone\":", "\"went\":").is_err());
        assert!(value("[\"fd00::2\",\"fd00::1\"]", "[\"fd00::2\"]").is_err());
        check(&[
            FromLoader::Done { report: String::new(), version: None },
            FromLoader::Failed { message: String::new() },
        ]);
        check(&[
            ToAgent::Add(sandbox.clone()),
            ToAgent::Del(sandbox.clone()),
            ToAgent::Check(sandbox),
            ToAgent::Gc { valid: Vec::new() },
            ToAgent::Status,
        ]);
        check(&[FromAgent::Done, FromAgent::Failed { message: String::new(), retry: false }]);
    }

    #[test]
    fn frames_go_there_and_back() {
        let sandbox = Sandbox {
            container: "c".into(),
            interface: "eth0".into(),
            pod: "shop/db".into(),
            uid: None,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let mut bytes = Vec::new();
        for message in [ToAgent::Add(sandbox.clone()), ToAgent::Status] {
            send(&mut bytes, &message).unwrap();
        }
        let mut from = bytes.as_slice();
        assert_eq!(receive(&mut from).unwrap(), Some(ToAgent::Add(sandbox)));
        assert_eq!(receive(&mut from).unwrap(), Some(ToAgent::Status));
        assert_eq!(receive::<ToAgent>(&mut from).unwrap(), None);
        let mut cut = &bytes[..bytes.len() - 1];
        assert!(receive::<ToAgent>(&mut cut).is_ok());
        assert!(receive::<ToAgent>(&mut cut).is_err(), "cut off");
        let length = (FRAME_BYTES + 1).to_le_bytes();
        let mut large = length.as_slice().chain(io::repeat(b' '));
        assert!(receive::<ToAgent>(&mut large).is_err());
    }
}
