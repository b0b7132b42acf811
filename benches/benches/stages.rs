//! Times of the stages, on generated clusters that are made at the start. `cargo bench -p netpolc-bench`.

#![expect(clippy::expect_used, reason = "a benchmark whose input is broken has nothing to measure")]

use divan::{Bencher, black_box};
use netpolc_bench::cluster::{Format, files, shape};
use netpolc_bench::compile::{Front, Names, sources};
use netpolc_frontend::model::{Model, resolve};
use netpolc_frontend::reference::SetReference;
use netpolc_frontend::source::Sources;
use netpolc_frontend::{lower, read};
use netpolc_ir::matrix::fold;
use netpolc_ir::passes;
use netpolc_ir::proof::prove;
use netpolc_ir::verify::verify;
use netpolc_nftables::decode::decode;
use netpolc_nftables::emit::emit;
use netpolc_nftables::select::Selector;

const SETS: [&str; 3] = ["s", "m", "l"];
/// The node whose share is measured. All sets have it.
const NODE: &str = "node-0000";

fn main() {
    divan::main();
}

fn input(set: &str, format: Format) -> Sources {
    sources(files(shape(set).expect("a known set"), format))
}

fn model(set: &str) -> Model {
    resolve(read::read(&input(set, Format::Yaml)).objects).0
}

fn front(set: &str) -> Front {
    Front::read(files(shape(set).expect("a known set"), Format::Yaml)).expect("sound input")
}

#[divan::bench(args = SETS)]
fn a_read_yaml(bencher: Bencher<'_, '_>, set: &str) {
    let sources = input(set, Format::Yaml);
    bencher.bench(|| read::read(black_box(&sources)));
}

#[divan::bench(args = SETS)]
fn b_read_json(bencher: Bencher<'_, '_>, set: &str) {
    let sources = input(set, Format::Json);
    bencher.bench(|| read::read(black_box(&sources)));
}

#[divan::bench(args = SETS)]
fn c_resolve(bencher: Bencher<'_, '_>, set: &str) {
    let objects = read::read(&input(set, Format::Yaml)).objects;
    bencher.with_inputs(|| objects.clone()).bench_values(resolve);
}

#[divan::bench(args = SETS)]
fn d_lower(bencher: Bencher<'_, '_>, set: &str) {
    let model = model(set);
    bencher.bench(|| lower::lower(black_box(&model)));
}

#[divan::bench(args = SETS)]
fn e_verify_and_passes(bencher: Bencher<'_, '_>, set: &str) {
    let unit = lower::lower(&model(set));
    let work = |unit| passes::run(verify(unit).expect("sound IR"), |_| {}).expect("sound passes");
    bencher.with_inputs(|| unit.clone()).bench_values(work);
}

#[divan::bench(args = SETS)]
fn f_fold(bencher: Bencher<'_, '_>, set: &str) {
    let verified = verify(lower::lower(&model(set))).expect("sound IR");
    let optimized = passes::run(verified, |_| {}).expect("sound passes");
    bencher.bench(|| fold(black_box(&optimized)));
}

/// A fresh selector, so that nothing is shared with other nodes.
#[divan::bench(args = SETS)]
fn g_plan_one_node(bencher: Bencher<'_, '_>, set: &str) {
    let front = front(set);
    let (names, host) = (Names(&front.model), front.host(NODE).expect("a node"));
    bencher.bench(|| Selector::new(black_box(&front.matrix), &names).plan(host));
}

#[divan::bench(args = SETS)]
fn h_emit_one_node(bencher: Bencher<'_, '_>, set: &str) {
    let front = front(set);
    let (names, host) = (Names(&front.model), front.host(NODE).expect("a node"));
    let plan = Selector::new(&front.matrix, &names).plan(host).expect("rules that fit");
    bencher.bench(|| emit(black_box(&plan.ruleset), &[]));
}

#[divan::bench(args = SETS)]
fn i_decode_one_node(bencher: Bencher<'_, '_>, set: &str) {
    let script = front(set).script(NODE).expect("a script");
    bencher.bench(|| decode(black_box(&script)));
}

/// With a fresh reference, which a build of several nodes shares.
#[divan::bench(args = SETS)]
fn j_prove_one_node(bencher: Bencher<'_, '_>, set: &str) {
    let front = front(set);
    let script = front.script(NODE).expect("a script");
    let machine = || decode(&script).expect("a script of ours");
    let work = |mut machine| prove(&SetReference::new(&front.model), &mut machine, NODE).expect("proven");
    bencher.with_inputs(machine).bench_values(work);
}
