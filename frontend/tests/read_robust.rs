//! Hostile and damaged input: the reader ends soon, without a panic, and says what is wrong.

use netpolc_frontend::diagnostic::{Severity, render};
use netpolc_frontend::read::{Read, read};
use netpolc_frontend::source::Sources;

fn read_named(name: &str, bytes: impl Into<Vec<u8>>) -> (Read, String) {
    let mut sources = Sources::default();
    sources.add(name, bytes.into());
    let read = read(&sources);
    let text = render(&read.diagnostics, &sources, true);
    (read, text)
}

fn refused(name: &str, bytes: impl Into<Vec<u8>>, code: &str) {
    let (read, text) = read_named(name, bytes);
    let found = read.diagnostics.iter().any(|d| d.severity == Severity::Error && d.code == code);
    assert!(found, "{code} is not among: {}", &text[..text.len().min(500)]);
    assert!(text.len() < 400_000, "{} bytes of output", text.len());
}

const SAMPLE: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p # é\n  annotations: {\"k\": \"\\u00e9\\n\"}\nspec:\n  podSelector: &s\n    matchLabels: {a: 'b'}\n  ingress:\n  - from:\n    - podSelector: {<<: *s}\n    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}\n    ports: [{port: 80, endPort: 0x60}, {port: http, protocol: UDP}]\n  policyTypes:\n  - Ingress\n  - !!str Egress\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 10.0.0.1}]}}\n- apiVersion: policy.networking.k8s.io/v1alpha2\n  kind: ClusterNetworkPolicy\n  metadata: {name: c}\n  spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n--- |\n  text\n";

const SAMPLE_JSON: &str = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"\u0062"},"annotations":{"x":"\ud83d\ude00"}},"status":{"podIP":"10.0.0.1","n":-1.5e3}}]}{"a":[true,false,{}]}"#;

/// A small generator of pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

#[test]
fn the_samples_are_read() {
    let (yaml, text) = read_named("a.yaml", SAMPLE);
    assert_eq!(
        (yaml.objects.policies.len(), yaml.objects.pods.len(), yaml.objects.cluster_policies.len()),
        (1, 1, 1)
    );
    assert_eq!(yaml.diagnostics.len(), 1, "{text}");
    let (json, text) = read_named("a.json", SAMPLE_JSON);
    assert_eq!(json.objects.pods.len(), 1, "{text}");
}

#[test]
fn every_truncation_is_survived() {
    for (name, sample) in [("a.yaml", SAMPLE), ("a.json", SAMPLE_JSON)] {
        for end in 0..sample.len() {
            read_named(name, &sample.as_bytes()[..end]);
        }
    }
}

#[test]
fn mutations_are_survived() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let tokens: &[&str] = &[
        "{", "}", "[", "]", ":", ": ", "- ", ",", "\n", "\t", "'", "\"", "&a ", "*a", "!!int ", "!", "|",
        ">", "? ", "#", "%", "---\n", "...\n", "<<: ", "~", "\u{feff}", "\u{2028}", "é", "\\", "\u{0}", "0x",
        "1e9", "  ", "\r", "@", "`",
    ];
    for round in 0..6000 {
        let (name, sample) = if round % 4 == 0 { ("a.json", SAMPLE_JSON) } else { ("a.yaml", SAMPLE) };
        let mut bytes = sample.as_bytes().to_vec();
        for _ in 0..1 + random.below(6) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
                2 => {
                    let token = tokens[random.below(tokens.len())];
                    bytes.splice(at..at, token.bytes());
                }
                _ => {
                    let from = random.below(bytes.len());
                    let part = bytes[from..(from + 20).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
            if bytes.is_empty() {
                bytes.push(b'a');
            }
        }
        let first = read_named(name, bytes.clone());
        assert_eq!(first.1, read_named(name, bytes).1, "reading twice gives the same");
    }
}

#[test]
fn a_place_in_trailing_space_is_shown() {
    let (_, text) = read_named("a.yaml", "a  \n\tb: c\n");
    assert!(text.contains("E0003") || text.contains("E0010"), "{text}");
    let (_, text) = read_named("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [ \n \n]");
    assert!(text.contains("E0013"), "{text}");
    let (_, text) = read_named("a.yaml", "a:\n  b: [\n{\n".repeat(2000));
    assert!(text.contains("E0003"), "{text}");
}

#[test]
fn depth_is_refused_soon() {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: ";
    for open in ["{a: ", "[", "{? ", "[? ", "- ", "!!x [", "&a ["] {
        let text = format!("{head}\n  {}", open.repeat(50_000));
        let (read, _) = read_named("a.yaml", text);
        assert!(read.diagnostics.iter().any(|d| d.severity == Severity::Error), "{open}");
    }
    let steps: String = (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    refused("a.yaml", steps, "E0006");
    refused("a.json", "[".repeat(300_000), "E0006");
    refused("a.json", r#"{"a":"#.repeat(300_000), "E0006");
    refused("a.yaml", format!("{}{}", "[".repeat(250), "]".repeat(250)), "E0006");
}

#[test]
fn bombs_are_refused_soon() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
    let mut maps = "b0: &b0 {k: v}\n".to_string();
    for i in 1..12 {
        bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(","));
        maps += &format!(
            "b{i}: &b{i} {{{}}}\n",
            (0..9).map(|k| format!("k{k}: *b{}", i - 1)).collect::<Vec<_>>().join(",")
        );
    }
    refused("a.yaml", bomb, "E0007");
    refused("a.yaml", maps, "E0007");
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 10_000].join(","));
    refused("a.yaml", long, "E0007");
    refused("a.yaml", "a: &a {b: *a}", "E0007");
    refused("a.yaml", "a: *b", "E0003");
    let merges = format!(
        "m: &m {{{}}}\nn: {{{}}}",
        (0..500).map(|k| format!("k{k}: v")).collect::<Vec<_>>().join(","),
        vec!["<<: *m"; 500].join(",")
    );
    refused("a.yaml", merges, "E0007");
}

#[test]
fn many_errors_stay_readable() {
    let peers: String = (0..20_000).map(|i| format!("    - ipBlock: {{cidr: 10.0.0.{i}/33}}\n")).collect();
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n  ingress:\n  - from:\n{peers}"
    );
    refused("a.yaml", text, "E0014");
    let documents = "a: b\n---\n".repeat(5000);
    let (read, text) = read_named("a.yaml", documents);
    assert_eq!(read.diagnostics.len(), 10_000);
    assert!(text.contains("... and 9800 more"));
    let long = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {}}}",
        "n".repeat(1_000_000)
    );
    refused("a.yaml", long, "E0021");
    let duplicates =
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{labels: {{{}}}}}", "a: b,".repeat(50_000));
    refused("a.yaml", duplicates, "E0005");
}

#[test]
fn threads_do_not_change_the_result() {
    let document = |i: usize| {
        let bad = if i.is_multiple_of(97) { "podSelecter" } else { "podSelector" };
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{i}}}\nspec: {{{bad}: {{}}}}\n---\n"
        )
    };
    let documents: Vec<String> = (0..10_000).map(document).collect();
    let (together, _) = read_named("a.yaml", documents.concat());
    let names: Vec<&str> = together.objects.policies.iter().map(|p| p.name.as_str()).collect();
    let expect: Vec<String> =
        (0..10_000usize).filter(|i| !i.is_multiple_of(97)).map(|i| format!("p{i}")).collect();
    assert_eq!(names, expect);
    assert_eq!(together.diagnostics.len(), 10_000usize.div_ceil(97));
}

#[test]
fn no_control_character_reaches_the_output() {
    let (_, text) = read_named(
        "a\u{1b}[2J.yaml",
        "apiVersion: v1\nkind: \"\\e[31mPod\"\nmetadata: 1\n---\nkind: \"a\\nb\"",
    );
    let plain = {
        let mut sources = Sources::default();
        sources.add("a\u{1b}[2J\u{202e}.yaml", b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: \"a\\e[2Jb\\u202e\"}\n\"x\\e\": 1\n".to_vec());
        render(&read(&sources).diagnostics, &sources, false)
    };
    assert!(!text.is_empty());
    assert!(plain.contains("E0021") && plain.contains("E0012"), "{plain}");
    assert!(plain.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{plain:?}");
}
