//! `netpol-loader remove`: takes out our tables and nothing else.

use crate::Error;
use crate::kernel::Kernel;
use crate::plan;
use netpolc_bundle::nft::Family;
use std::collections::BTreeSet;

/// Deletes our tables in one transaction; the answer is which there were.
///
/// # Errors
/// If nft cannot be run or refuses; then nothing has changed.
pub fn remove(kernel: &mut dyn Kernel) -> Result<BTreeSet<Family>, Error> {
    kernel.lock()?;
    let tables = kernel.tables()?;
    if !tables.is_empty() {
        kernel.run(&plan::remove(tables.iter()))?;
    }
    Ok(tables)
}
