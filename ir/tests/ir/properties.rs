//! Properties of passes, fold and text over seeded random units. `NETPOLC_UNITS` sets how many (default 3000).

use crate::common::{Rng, flows, shuffled, unit};
use netpolc_ir::eval::Bindings;
use netpolc_ir::matrix::fold;
use netpolc_ir::passes::{self, ALL, Cost};
use netpolc_ir::text;
use netpolc_ir::unit::{Flow, Unit, Verdict};
use netpolc_ir::verify::{verify, verify_matrix};

fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("NETPOLC_UNITS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

fn verdicts(unit: &Unit, flows: &[Flow]) -> Vec<Verdict> {
    let bindings = unit.bindings();
    flows.iter().map(|f| unit.decide(&bindings, f)).collect()
}

fn assert_same(before: &[Verdict], after: &[Verdict], flows: &[Flow], what: &str, unit: &Unit) {
    if let Some(i) = (0..flows.len()).find(|&i| before[i] != after[i]) {
        panic!("{what}: {} was {} and is {} in\n{}", flows[i], before[i], after[i], text::write(unit));
    }
}

/// Each pass alone and the pipeline change no verdict, keep the invariants, grow nothing, and lose origins of dead rules
/// only.
#[test]
fn passes_change_no_verdict() {
    let (mut both, mut smaller) = ([0u64; 2], [0u64; ALL.len()]);
    for seed in seeds() {
        let before = unit(seed);
        let flows = flows(&before, &mut Rng::new(seed));
        let expected = verdicts(&before, &flows);
        expected.iter().for_each(|v| both[usize::from(*v == Verdict::Deny)] += 1);
        for (i, pass) in ALL.iter().enumerate() {
            let after = passes::run_passes(&[*pass], before.clone(), |stats| {
                assert!(stats.dropped.is_empty() || pass.name == "dead-rules", "seed {seed}: {stats:?}");
            });
            let after = after.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", text::write(&before)));
            smaller[i] += u64::from(Cost::of(&after).weight() < Cost::of(&before).weight());
            let what = format!("seed {seed}, {}", pass.name);
            assert_same(&expected, &verdicts(&after, &flows), &flows, &what, &before);
        }
        let after = passes::run(before.clone(), |_| ()).unwrap();
        assert_same(&expected, &verdicts(&after, &flows), &flows, &format!("seed {seed}, all"), &before);
    }
    assert!(both.iter().all(|n| n * 6 > both[0] + both[1]), "flows are too one-sided to tell: {both:?}");
    assert!(smaller.iter().all(|&n| n > seeds().end / 50), "a pass does next to nothing: {smaller:?}");
}

/// The matrix decides as the unit, before and after the passes.
#[test]
fn the_matrix_decides_as_the_unit() {
    for seed in seeds() {
        let original = unit(seed);
        let flows = flows(&original, &mut Rng::new(seed));
        let expected = verdicts(&original, &flows);
        for (unit, what) in
            [(original.clone(), "fold"), (passes::run(original, |_| ()).unwrap(), "passes, fold")]
        {
            let matrix = fold(&unit);
            let what = format!("seed {seed}, {what}");
            verify_matrix(&matrix).unwrap_or_else(|v| {
                panic!("{what}: {v:?}\n{}{}", text::write(&unit), text::write_matrix(&matrix))
            });
            let bindings = Bindings::new(&matrix.endpoints, &matrix.hosts);
            let found: Vec<Verdict> = flows.iter().map(|f| matrix.decide(&bindings, f)).collect();
            assert_same(&expected, &found, &flows, &what, &unit);
        }
    }
}

#[test]
fn text_reads_back() {
    for seed in seeds() {
        let unit = unit(seed).into_inner();
        let written = text::write(&unit);
        assert_eq!(text::parse(&written).as_ref(), Ok(&unit), "{written}");
    }
}

/// The pipeline's result does not depend on how the input is numbered and listed.
#[test]
fn the_pipeline_ends_in_a_canonical_unit() {
    for seed in seeds() {
        let original = unit(seed);
        let rng = &mut Rng::new(seed ^ 0x5eed);
        let other = verify(shuffled(&original, rng)).unwrap();
        let first = passes::run(original.clone(), |_| ()).unwrap();
        let second = passes::run(other, |_| ()).unwrap();
        let (a, b) = (text::write(&first), text::write(&second));
        assert_eq!(a, b, "seed {seed}:\n{}", text::write(&original));
    }
}
