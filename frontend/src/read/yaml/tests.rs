//! Trees that YAML texts become.

use super::{Value, base64, parse};
use crate::read::tree::Node;

fn show(node: &Node<'_>, text: &str, out: &mut String) {
    match &node.value {
        Value::List(items) => {
            out.push('[');
            for item in items.iter() {
                show(item, text, out);
                out.push(' ');
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for e in entries.iter() {
                *out += &format!("{}<{}>: ", e.key, &text[e.start as usize..e.end as usize]);
                show(&e.value, text, out);
                out.push(' ');
            }
            out.push('}');
        }
        other => *out += &other.describe(),
    }
    *out += &format!("<{}>", &text[node.start as usize..node.end as usize]);
}

fn check(text: &str, expect: &str) {
    let parsed = parse(text, text, 0);
    let mut out = String::new();
    for document in &parsed.documents {
        show(document, text, &mut out);
        out.push(';');
    }
    for p in parsed.problems.iter().chain(&parsed.fatal) {
        out += &format!("!{} {}", p.code, p.message);
    }
    assert_eq!(out, expect, "{text}");
}

#[test]
fn places_are_bytes_of_the_text() {
    check(
        "é: ü # x\nb: [1, 'x']\n",
        r#"{é<é>: the string "ü"<ü> b<b>: [the number 1<1> the string "x"<'x'> ]<[1, 'x']> }<é: ü # x
b: [1, 'x']>;"#,
    );
    check(
        "a: b\r\nc: {}\r\n",
        r#"{a<a>: the string "b"<b> c<c>: {}<{}> }<a: b
c: {}>;"#
            .replace('\n', "\r\n")
            .as_str(),
    );
}

#[test]
fn merges_and_aliases() {
    check(
        "a: &x {k: 1}\nb: {<<: *x, l: 2}",
        "{a<a>: {k<k>: the number 1<1> }<{k: 1}> b<b>: {k<k>: the number 1<1> l<l>: the number 2<2> }<{<<: *x, l: 2}> }<a: &x {k: 1}\nb: {<<: *x, l: 2}>;",
    );
    check(
        "{<<: [{a: 1}, {b: 2}]}",
        "{a<a>: the number 1<1> b<b>: the number 2<2> }<{<<: [{a: 1}, {b: 2}]}>;",
    );
    check(
        "{<<: {a: 1}, a: 2}",
        "{a<a>: the number 1<1> }<{<<: {a: 1}, a: 2}>;!E0005 key \"a\" already set in map",
    );
    check(
        "{a: 2, <<: {a: 1}}",
        "{a<a>: the number 2<2> }<{a: 2, <<: {a: 1}}>;!E0005 key \"a\" already set in map",
    );
    check("{<<: 1}", "!E0008 map merge requires map or sequence of maps as the value");
    check("{'<<': 1}", "{<<<'<<'>: the number 1<1> }<{'<<': 1}>;");
    check("a: &x {b: *x}", "!E0007 the anchor's value contains itself");
}

#[test]
fn keys_and_tags() {
    check(
        "{on: 1, 0x10: 2, 1.5: 3}",
        "{true<on>: the number 1<1> 16<0x10>: the number 2<2> 1.5<1.5>: the number 3<3> }<{on: 1, 0x10: 2, 1.5: 3}>;",
    );
    check(
        "{on: 1, true: 2}",
        "{true<on>: the number 1<1> }<{on: 1, true: 2}>;!E0005 key \"true\" already set in map",
    );
    check("{~: 1}", "!E0008 yaml: invalid map key: null");
    check(
        "[!!str 1, !!int '2', !x 3, ! 4, !!binary aGk=]",
        "[the string \"1\"<1> the number 2<'2'> the string \"3\"<3> the string \"4\"<4> the string \"hi\"<aGk=> ]<[!!str 1, !!int '2', !x 3, ! 4, !!binary aGk=]>;",
    );
    check("[!!int x]", "!E0009 cannot decode \"x\" as a !!int");
    assert_eq!(base64("YQ==").as_deref(), Some(b"a".as_slice()));
    assert_eq!(base64("YQ="), None);
}

#[test]
fn bombs_and_depth_are_refused() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_string();
    for i in 1..9 {
        bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(","));
    }
    assert_eq!(parse(&bomb, &bomb, 0).fatal.map(|p| p.code), Some("E0007"));
    let mut chain = "a0: &a0 [x]\n".to_string();
    for i in 1..5000 {
        chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
    }
    assert_eq!(parse(&chain, &chain, 0).fatal.map(|p| p.code), Some("E0006"));
    for deep in ["{a: ", "[", "- ", "? "] {
        let deep = deep.repeat(50_000);
        assert!(parse(&deep, &deep, 0).fatal.is_some());
    }
}
