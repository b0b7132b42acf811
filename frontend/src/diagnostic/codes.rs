//! The registry of diagnostic codes: errors are `E....`, warnings `W....`, notes `N....`. A code is never reused.

use super::CodeInfo;

pub(crate) const ENCODING: &str = "E0001";
pub(crate) const CONTROL: &str = "E0002";
pub(crate) const SYNTAX: &str = "E0003";
pub(crate) const JSON: &str = "E0004";
pub(crate) const DUPLICATE_KEY: &str = "E0005";
pub(crate) const DEPTH: &str = "E0006";
pub(crate) const ALIAS: &str = "E0007";
pub(crate) const BAD_KEY: &str = "E0008";
pub(crate) const TAG: &str = "E0009";
pub(crate) const NOT_OBJECT: &str = "E0010";
pub(crate) const NO_KIND: &str = "E0011";
pub(crate) const UNKNOWN_FIELD: &str = "E0012";
pub(crate) const WRONG_TYPE: &str = "E0013";
pub(crate) const MANY: &str = "E0014";
pub(crate) const REQUIRED: &str = "E0020";
pub(crate) const INVALID: &str = "E0021";
pub(crate) const UNSUPPORTED: &str = "E0022";
pub(crate) const FORBIDDEN: &str = "E0023";
pub(crate) const TOO_MANY: &str = "E0024";
pub(crate) const CONFLICT: &str = "E0030";
pub(crate) const DOMAIN_NAMES: &str = "E0031";
pub(crate) const ADDRESS_TAKEN: &str = "E0202";
pub(crate) const NO_PLANNED_ADDRESS: &str = "E0203";
pub(crate) const HOST_BITS: &str = "W0101";
pub(crate) const CIDR_FORM: &str = "W0102";
pub(crate) const INERT_RULES: &str = "W0103";
pub(crate) const NAME_LABEL: &str = "W0104";
pub(crate) const EMPTY_EGRESS: &str = "W0105";
pub(crate) const EQUAL_PRIORITIES: &str = "W0204";
pub(crate) const SHARED_ADDRESS: &str = "W0207";
pub(crate) const PASSED_OVER: &str = "N0201";
pub(crate) const PLANNED_ADDRESSES: &str = "N0205";
pub(crate) const STAND_IN_RENAMED: &str = "N0206";

/// Every code with its explanation, sorted within errors, warnings and notes.
pub const CODES: &[CodeInfo] = &[
    CodeInfo {
        code: ENCODING,
        title: "the input is not UTF-8 text",
        explanation: "Kubernetes manifests are UTF-8 text. This input has a byte sequence that is not UTF-8: \
                      often it is UTF-16 (saved so by an editor or by a PowerShell redirection), Latin-1, or \
                      no text at all. Save it as UTF-8.",
    },
    CodeInfo {
        code: CONTROL,
        title: "the input has a control character",
        explanation: "YAML allows tab, line feed and carriage return, and no other control character outside \
                      of an escape in double quotes. kubectl refuses such a file too.",
    },
    CodeInfo {
        code: SYNTAX,
        title: "the text is not valid YAML",
        explanation: "The YAML parser stopped here, so nothing of this document was used. The other documents \
                      of the file were read. What follows a line of three dots is an error too: kubectl leaves it \
                      out, up to the next line of three dashes, and says nothing.",
    },
    CodeInfo {
        code: JSON,
        title: "the text is not valid JSON",
        explanation: "The input starts as JSON and is then malformed or cut off. What follows the error in \
                      this file was not read.",
    },
    CodeInfo {
        code: DUPLICATE_KEY,
        title: "a key is set twice in one mapping",
        explanation: "YAML readers disagree about which of two equal keys wins, and kubectl refuses the \
                      document. A key that is written beside a merge (`<<`) which also sets it counts as set \
                      twice, in either order. Remove one of them.",
    },
    CodeInfo {
        code: DEPTH,
        title: "the nesting is too deep",
        explanation: "Mappings and lists are nested more than 200 levels deep. No Kubernetes object needs \
                      that, so the input is taken for an attack or an accident.",
    },
    CodeInfo {
        code: ALIAS,
        title: "an alias contains itself or expands to too much",
        explanation: "An alias (`*name`) stands for everything below its anchor (`&name`). Here an anchor \
                      contains an alias to itself, or the aliases of one document expand to more than 100,000 \
                      values, as in a decompression bomb.",
    },
    CodeInfo {
        code: BAD_KEY,
        title: "a mapping key is not a string",
        explanation: "Field names and label keys are strings. Numbers and booleans are turned into strings as \
                      kubectl does it; a mapping, a list or null cannot be a key. A template that was not \
                      rendered (`{{ ... }}`) looks like this. The value of a merge key (`<<`) must be a \
                      mapping or a list of mappings.",
    },
    CodeInfo {
        code: TAG,
        title: "a YAML tag does not fit its value",
        explanation: "The value carries an explicit tag such as `!!int` or `!!binary` and cannot be read as \
                      that type.",
    },
    CodeInfo {
        code: NOT_OBJECT,
        title: "the document is not an object",
        explanation: "Each document must be one Kubernetes object or a List: a mapping with `apiVersion` and \
                      `kind`. Text, numbers and arrays are refused.",
    },
    CodeInfo {
        code: NO_KIND,
        title: "the object has no kind or no apiVersion",
        explanation: "Without `apiVersion` and `kind` nobody can tell what the object is. Files that are not \
                      Kubernetes objects (Helm values, kustomizations without a kind) do not belong among the \
                      inputs.",
    },
    CodeInfo {
        code: UNKNOWN_FIELD,
        title: "the field does not exist",
        explanation: "The API server would drop this field, or refuse it under strict validation. A dropped \
                      field of a policy usually makes it wider: a selector with a typing error selects every \
                      pod, a rule with `port` instead of `ports` allows all ports. So it is an error here.",
    },
    CodeInfo {
        code: WRONG_TYPE,
        title: "the value has the wrong type",
        explanation: "The field needs a value of another type. Unquoted `yes`, `no`, `on`, `off`, `y` and `n` \
                      are booleans and unquoted digits are numbers in the YAML that Kubernetes reads: where a \
                      string is needed, put the value in quotes.",
    },
    CodeInfo {
        code: MANY,
        title: "the object has too many errors to show",
        explanation: "Only the first errors of an object are shown one by one. Correct these and check again.",
    },
    CodeInfo {
        code: REQUIRED,
        title: "a required value is missing",
        explanation: "The API server demands a value for this field, and an empty one or `null` does not \
                      count.",
    },
    CodeInfo {
        code: INVALID,
        title: "the value is not valid",
        explanation: "The value breaks a rule of the Kubernetes API; the message is the API server's own \
                      wording where it has one.",
    },
    CodeInfo {
        code: UNSUPPORTED,
        title: "the value is not one of the supported ones",
        explanation: "The field takes one of a few fixed values, and upper and lower case matter.",
    },
    CodeInfo {
        code: FORBIDDEN,
        title: "the value is not allowed here",
        explanation: "The field cannot be set together with another one, or not in this kind of object.",
    },
    CodeInfo {
        code: TOO_MANY,
        title: "a list has too many or too few items",
        explanation: "The API limits the number of items of this list or of fields of this object.",
    },
    CodeInfo {
        code: CONFLICT,
        title: "an object is given twice with different content",
        explanation: "Two objects of the same kind, namespace and name cannot exist in one cluster, and which \
                      of them is meant cannot be known. Identical copies are no problem.",
    },
    CodeInfo {
        code: DOMAIN_NAMES,
        title: "domainNames peers are not supported",
        explanation: "A peer by domain name would need DNS to be watched in the data path. It is refused \
                      instead of being ignored.",
    },
    CodeInfo {
        code: ADDRESS_TAKEN,
        title: "an address belongs to two pods, to a pod and a node, or to two nodes",
        explanation: "The input gives one address to two running pods, to a pod and a node, or to two nodes as \
                      their InternalIP. Rules are made of addresses, so one of the two would get the other's \
                      rights. The state was probably collected at two moments: take a fresh snapshot of the \
                      cluster. Finished pods do not count, since their addresses can be given away.",
    },
    CodeInfo {
        code: NO_PLANNED_ADDRESS,
        title: "more pods without a status than made-up addresses",
        explanation: "A pod without a status gets a made-up address in 10.244.0.0/16 (see N0205), and that \
                      block is full. Give the pods their status, as `kubectl get pods -o yaml` prints it.",
    },
    CodeInfo {
        code: HOST_BITS,
        title: "a CIDR block has host bits",
        explanation: "The address has bits set beyond the prefix length. API servers since 1.36 refuse this in \
                      new objects and older ones stored it. It is read as the network that contains the \
                      address; write that network, or a longer prefix if a single address was meant.",
    },
    CodeInfo {
        code: CIDR_FORM,
        title: "a CIDR block or address is not written canonically",
        explanation: "Leading zeros in an IPv4 address (decimal here, octal elsewhere), an IPv4-mapped IPv6 \
                      address or an unusual spelling of an IPv6 address: other readers may take it for \
                      something else. It is read as the message says.",
    },
    CodeInfo {
        code: INERT_RULES,
        title: "rules of a direction that the policy does not list",
        explanation: "`policyTypes` does not list the direction, so its rules have no effect at all.",
    },
    CodeInfo {
        code: NAME_LABEL,
        title: "the name label of a namespace has another value",
        explanation: "The API server sets the label `kubernetes.io/metadata.name` to the namespace's name, \
                      whatever is written. So does this reader.",
    },
    CodeInfo {
        code: EMPTY_EGRESS,
        title: "an empty egress list without policyTypes",
        explanation: "Without `policyTypes`, a policy isolates egress only if `egress` has at least one rule. \
                      To deny all egress, write `policyTypes: [Egress]`.",
    },
    CodeInfo {
        code: EQUAL_PRIORITIES,
        title: "two policies of the Admin tier have the same priority",
        explanation: "Kubernetes leaves open which of two policies of equal priority is asked first. Here they \
                      are asked in the order of their names; another implementation may ask them the other \
                      way round. Give them different priorities.",
    },
    CodeInfo {
        code: SHARED_ADDRESS,
        title: "several nodes have one address",
        explanation: "Nodes behind one gateway can share an ExternalIP. No packet inside of the cluster comes \
                      from it, so it is not taken for an address of these nodes: a `nodes` peer does not match \
                      it, and it says nothing about a pod's own node. A node whose InternalIP it is keeps it. \
                      Where rules should match the address, name it under `networks` or in an ipBlock.",
    },
    CodeInfo {
        code: PASSED_OVER,
        title: "an object of a similar kind is passed over",
        explanation: "The object has the kind of one that is enforced, but belongs to another API group or \
                      version, or differs in upper and lower case. It is not enforced.",
    },
    CodeInfo {
        code: PLANNED_ADDRESSES,
        title: "pods without a status got made-up addresses",
        explanation: "Files of a repository describe pods that do not run yet, so they have no addresses. Each \
                      gets one in 10.244.0.0/16 that depends on its name. That is enough to review rules and \
                      to try them; the rules of a real cluster need the addresses of its pods.",
    },
    CodeInfo {
        code: STAND_IN_RENAMED,
        title: "a workload's pod has another name, since its own is taken",
        explanation: "A workload whose pods are not given stands for one pod, which has the workload's name. Where a \
                      pod or another workload of the namespace has that name, the kind is appended, as in \
                      `web-cronjob`. Flows and `explain` know the pod under this name.",
    },
];

#[cfg(test)]
mod tests {
    use super::CODES;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    #[test]
    fn codes_are_unique_and_explained() {
        let unique: BTreeSet<_> = CODES.iter().map(|c| c.code).collect();
        assert_eq!(unique.len(), CODES.len());
        for c in CODES {
            assert!(c.code.len() == 5 && "EWN".contains(&c.code[..1]), "{}", c.code);
            assert!(c.explanation.ends_with('.') && c.explanation.len() > 60, "{}", c.code);
            assert!(!c.title.ends_with('.'), "{}", c.code);
        }
        let order = |code: &str| ("EWN".find(&code[..1]), code[1..].to_owned());
        assert!(CODES.is_sorted_by_key(|c| order(c.code)));
    }

    /// The code of every file below a folder, without comments; tests are left out.
    fn sources(dir: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let code: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
                out.insert(path, code.join("\n"));
            }
        }
    }

    fn is_code(text: &str) -> bool {
        text.len() == 5 && "EWN".contains(&text[..1]) && text[1..].bytes().all(|b| b.is_ascii_digit())
    }

    /// A code that is written where it is used could be one that nobody explains; a registered one that nothing uses
    /// would be explained for nothing.
    #[test]
    fn what_is_used_is_registered_and_what_is_registered_is_used() {
        let mut files = BTreeMap::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let (here, others): (Vec<_>, Vec<_>) = files.iter().partition(|(p, _)| p.ends_with("codes.rs"));
        for (path, text) in &others {
            let literal = text.split('"').find(|part| is_code(part));
            assert!(literal.is_none(), "{} names {literal:?} itself", path.display());
        }
        let mut registered = 0;
        for line in here.iter().flat_map(|(_, text)| text.lines()) {
            let Some(rest) = line.strip_prefix("pub(crate) const ") else { continue };
            let (name, value) = rest.split_once(": &str = ").unwrap();
            let code = value.trim_matches(['"', ';']);
            assert!(CODES.iter().any(|c| c.code == code), "{name} ({code}) is not explained");
            let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            let used = |text: &str| text.split(word).filter(|w| *w == name).count() >= 2;
            // Once where it is imported, and once more at least.
            assert!(others.iter().any(|(_, text)| used(text)), "nothing uses {name} ({code})");
            registered += 1;
        }
        assert_eq!(registered, CODES.len());
    }
}
