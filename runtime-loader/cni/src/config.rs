//! The network configuration from standard input.

use crate::error::{Code, Failure};
use netpolc_bundle::wire::AGENT_SOCKET;
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// The versions of the specification that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
pub(crate) const NEWEST: &str = "1.1.0";
/// Most bytes of a configuration: it may list all sandboxes of a node.
const MOST: u64 = 4 << 20;
/// How long the agent may take unless the configuration says otherwise: longer than it lets a pod wait by itself (10 s),
/// so that its own words reach the runtime.
const PATIENCE: Duration = Duration::from_secs(15);

/// The configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// Its version.
    pub(crate) version: String,
    /// Where the agent listens: `agentSocket`.
    pub(crate) socket: PathBuf,
    /// How long it may take: `timeoutSeconds`.
    pub(crate) patience: Duration,
    /// The result of the plugins before.
    pub(crate) previous: Option<Value>,
    /// The attachments that still exist, for `GC`: container and interface.
    pub(crate) valid: Option<Vec<(String, String)>>,
}

/// Reads standard input as JSON.
pub(crate) fn read(from: &mut dyn Read) -> Result<Value, Failure> {
    let mut bytes = Vec::new();
    from.take(MOST + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::new(Code::Io, "the configuration cannot be read", e.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(Failure::new(
            Code::Decode,
            "the configuration is too large",
            format!("more than {MOST} bytes"),
        ));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| Failure::new(Code::Decode, "the configuration is no JSON", e.to_string()))
}

/// The version that a configuration is written in.
pub(crate) fn version(value: &Value) -> Result<&'static str, Failure> {
    let written = value["cniVersion"].as_str().unwrap_or("0.1.0");
    VERSIONS.into_iter().find(|v| *v == written).ok_or_else(|| {
        let details = format!("the configuration has {written}; known are {}", VERSIONS.join(", "));
        Failure::new(Code::Version, "incompatible CNI version", details)
    })
}

impl Config {
    /// Takes what is needed; fields of others are theirs.
    pub(crate) fn new(mut value: Value) -> Result<Config, Failure> {
        let version = version(&value)?;
        let wrong = |details: String| {
            Failure::new(Code::Config, "invalid network configuration", details).in_version(version)
        };
        let socket = match &value["agentSocket"] {
            Value::Null => PathBuf::from(AGENT_SOCKET),
            Value::String(path) if path.starts_with('/') => PathBuf::from(path),
            other => return Err(wrong(format!("agentSocket must be an absolute path, not {other}"))),
        };
        let patience = match &value["timeoutSeconds"] {
            Value::Null => PATIENCE,
            other => match other.as_u64() {
                Some(seconds @ 1..=600) => Duration::from_secs(seconds),
                _ => return Err(wrong(format!("timeoutSeconds must be 1 to 600, not {other}"))),
            },
        };
        // The specification's name, and the one of libcni before 1.2.
        let valid = ["cni.dev/valid-attachments", "cni.dev/attachments"].into_iter().map(|k| &value[k]);
        let valid = match valid.into_iter().find(|v| !v.is_null()) {
            None => None,
            Some(list) => Some(attachments(list).ok_or_else(|| wrong(format!("attachments: {list}")))?),
        };
        let previous = Some(value["prevResult"].take()).filter(|p| !p.is_null());
        Ok(Config { version: version.to_owned(), socket, patience, previous, valid })
    }
}

fn attachments(list: &Value) -> Option<Vec<(String, String)>> {
    let text = |item: &Value, key: &str| item[key].as_str().map(str::to_owned);
    list.as_array()?.iter().map(|item| Some((text(item, "containerID")?, text(item, "ifname")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(value: Value) -> Code {
        Config::new(value).unwrap_err().code
    }

    #[test]
    fn fields_are_checked() {
        let config =
            Config::new(json!({ "cniVersion": "0.4.0", "name": "n", "type": "netpol-cni" })).unwrap();
        assert_eq!((config.version.as_str(), config.socket), ("0.4.0", PathBuf::from(AGENT_SOCKET)));
        assert!(config.previous.is_none() && config.valid.is_none());
        let config = Config::new(json!({ "cniVersion": "1.1.0", "timeoutSeconds": 3, "agentSocket": "/s",
            "cni.dev/attachments": [{ "containerID": "c", "ifname": "eth0" }], "prevResult": {} }));
        let config = config.unwrap();
        assert_eq!(config.patience, Duration::from_secs(3));
        assert_eq!(config.valid, Some(vec![("c".to_owned(), "eth0".to_owned())]));
        for (wrong, code) in [
            (json!({}), Code::Version),
            (json!({ "cniVersion": "9.0.0" }), Code::Version),
            (json!([]), Code::Version),
            (json!({ "cniVersion": "1.0.0", "agentSocket": "relative" }), Code::Config),
            (json!({ "cniVersion": "1.0.0", "timeoutSeconds": 0 }), Code::Config),
            (json!({ "cniVersion": "1.0.0", "timeoutSeconds": "9" }), Code::Config),
            (json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [{}] }), Code::Config),
        ] {
            assert_eq!(refused(wrong.clone()), code, "{wrong}");
        }
        assert_eq!(read(&mut "{".as_bytes()).unwrap_err().code, Code::Decode);
        assert_eq!(read(&mut std::io::repeat(b' ')).unwrap_err().code, Code::Decode);
    }
}
