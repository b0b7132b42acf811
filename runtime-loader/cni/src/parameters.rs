//! The parameters from the environment.

use crate::error::{Code, Failure};
use std::env;

/// What the plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// Which attachment is meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container: String,
    pub(crate) interface: String,
    /// `namespace/name`; empty if the runtime is none of Kubernetes.
    pub(crate) pod: String,
    pub(crate) uid: Option<String>,
}

fn wrong(details: String) -> Failure {
    Failure::new(Code::Environment, "invalid environment", details)
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `CNI_COMMAND`.
pub(crate) fn command() -> Result<Command, Failure> {
    match variable("CNI_COMMAND").as_deref() {
        Some("ADD") => Ok(Command::Add),
        Some("DEL") => Ok(Command::Del),
        Some("CHECK") => Ok(Command::Check),
        Some("STATUS") => Ok(Command::Status),
        Some("GC") => Ok(Command::Gc),
        Some("VERSION") => Ok(Command::Version),
        Some(other) => Err(wrong(format!("CNI_COMMAND {other:?} is not known"))),
        None => {
            Err(wrong("CNI_COMMAND is missing; this program is started by a container runtime".to_owned()))
        }
    }
}

/// The attachment that a command is about.
pub(crate) fn attachment(command: Command) -> Result<Attachment, Failure> {
    let needed = |name: &str| variable(name).ok_or_else(|| wrong(format!("{name} is missing")));
    let container = needed("CNI_CONTAINERID")?;
    let interface = needed("CNI_IFNAME")?;
    if command != Command::Del {
        needed("CNI_NETNS")?;
    }
    if !is_container(&container) {
        return Err(wrong(format!("CNI_CONTAINERID {container:?} is no container id")));
    }
    if !is_interface(&interface) {
        return Err(wrong(format!("CNI_IFNAME {interface:?} is no name of an interface")));
    }
    let (pod, uid) = pod(&variable("CNI_ARGS").unwrap_or_default());
    if pod.is_empty() && command != Command::Del {
        return Err(wrong("CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME".to_owned()));
    }
    Ok(Attachment { container, interface, pod, uid })
}

/// The pod of `CNI_ARGS`, which are pairs `KEY=value` with semicolons between.
fn pod(args: &str) -> (String, Option<String>) {
    let value = |key: &str| {
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(k, v)| *k == key && !v.is_empty()).map(|(_, v)| v.to_owned()).next_back()
    };
    let pod = value("K8S_POD_NAMESPACE").zip(value("K8S_POD_NAME"));
    (pod.map(|(namespace, name)| format!("{namespace}/{name}")).unwrap_or_default(), value("K8S_POD_UID"))
}

/// By the specification: letters, digits, `_`, `.`, `-`, and the first a letter or digit.
fn is_container(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// As the kernel and libcni have it: at most 15 bytes, no slash, colon or space, not `.` or `..`.
fn is_interface(text: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    text.len() <= 15 && text != "." && text != ".." && !text.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_found_among_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u";
        assert_eq!(pod(args), ("shop/db-0".to_owned(), Some("u".to_owned())));
        assert_eq!(pod("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db"), ("shop/db".to_owned(), None));
        for none in ["", ";;", "K8S_POD_NAME=db", "K8S_POD_NAMESPACE=;K8S_POD_NAME=db", "nonsense"] {
            assert_eq!(pod(none), (String::new(), None), "{none}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(is_container("0a-b_c.d") && !is_container("-a") && !is_container("a/b") && !is_container(""));
        assert!(
            is_interface("eth0")
                && !is_interface("a/b")
                && !is_interface("..")
                && !is_interface("sixteen-letters0")
        );
    }
}
