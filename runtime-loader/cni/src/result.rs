//! The result of the plugins before: passed on as it is, and read for the pod's addresses.

use crate::error::{Code, Failure};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The addresses of the pod: those of interfaces within its namespace, and those that name no interface.
pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    let interfaces = result["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut addresses = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let index = ip["interface"].as_u64().and_then(|i| usize::try_from(i).ok());
        let outside =
            |i: usize| interfaces.get(i).is_some_and(|f| f["sandbox"].as_str().unwrap_or("").is_empty());
        if index.is_some_and(outside) {
            continue;
        }
        let text = ip["address"].as_str().unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default().parse();
        let address = address.map_err(|_| format!("{text:?} is no address"))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// The result for the runtime, in the version of the configuration. The runtime hands us the previous one in that version
/// already; the two families of versions differ in form, so one is never called the other.
pub(crate) fn pass_on(mut result: Value, version: &str) -> Result<String, Failure> {
    let modern = |version: &str| version.starts_with("1.");
    let written = result["cniVersion"].as_str().unwrap_or(version).to_owned();
    if !result.is_object() || modern(&written) != modern(version) {
        let details = format!("prevResult is of version {written}, the configuration of {version}");
        return Err(Failure::new(Code::Config, "invalid network configuration", details).in_version(version));
    }
    result["cniVersion"] = json!(version);
    Ok(result.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_within_the_pod_count() {
        let result = json!({
            "interfaces": [{ "name": "veth1", "mac": "m" }, { "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "10.0.0.1/24", "interface": 0 }, { "address": "10.0.0.5/24", "interface": 1 },
                { "version": "6", "address": "fd00::5/64" }, { "address": "fd00::5/64", "interface": 1 }] });
        let found = addresses(&result).unwrap();
        assert_eq!(found, ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert_eq!(addresses(&json!({})).unwrap(), [] as [IpAddr; 0]);
        assert!(addresses(&json!({ "ips": [{ "address": "nonsense" }] })).is_err());
        assert!(addresses(&json!({ "ips": [7] })).is_err());
    }

    #[test]
    fn the_result_is_passed_on_in_order() {
        let text =
            r#"{"cniVersion":"0.4.0","zeta":1,"ips":[{"version":"4","address":"10.0.0.5/24"}],"dns":{}}"#;
        let result: Value = serde_json::from_str(text).unwrap();
        assert_eq!(pass_on(result.clone(), "0.4.0").unwrap(), text);
        assert_eq!(pass_on(result, "1.0.0").unwrap_err().code, Code::Config);
        assert_eq!(pass_on(json!([]), "1.0.0").unwrap_err().code, Code::Config);
    }
}
