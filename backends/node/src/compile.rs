//! The stages that all nodes have in common.

use netpolc_frontend::lower;
use netpolc_frontend::model::Model;
use netpolc_ir::matrix::{Matrix, fold};
use netpolc_ir::passes::{self, PassStats};
use netpolc_ir::unit::Unit;
use netpolc_ir::verify::verify;

/// A compiled cluster.
#[derive(Debug)]
pub struct Compiled {
    /// The IR as lowered.
    pub unit: Unit,
    /// The IR after all passes.
    pub optimized: Unit,
    /// The matrix.
    pub matrix: Matrix,
    /// What each pass gained.
    pub passes: Vec<PassStats>,
}

/// Compiles a model. `lap` is told the name of each stage when it is done.
///
/// # Errors
/// A stage that broke its promise, which is a bug of ours.
pub fn compile(model: &Model, lap: &mut dyn FnMut(&'static str)) -> Result<Compiled, String> {
    let unit = lower::lower(model);
    lap("lower");
    let verified = verify(unit.clone()).map_err(|v| format!("lowering broke the IR: {v:?}"))?;
    let mut stats = Vec::new();
    let optimized = passes::run(verified, |s| stats.push(s.clone())).map_err(|e| e.to_string())?;
    lap("passes");
    let matrix = fold(&optimized);
    lap("fold");
    Ok(Compiled { unit, optimized: optimized.into_inner(), matrix, passes: stats })
}
