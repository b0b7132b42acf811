//! `netpol-loader remove`: takes out everything of ours and nothing else.

use crate::Error;
use crate::dataplane;
use crate::kernel::Kernel;

/// Takes out what each backend has in force; the answer names what there was.
///
/// # Errors
/// If the kernel refuses; what could be removed is gone by then.
pub fn remove(kernel: &mut dyn Kernel) -> Result<Vec<String>, Error> {
    kernel.lock()?;
    let mut removed = Vec::new();
    let mut failed = None;
    for dataplane in dataplane::ALL {
        match dataplane.remove(kernel) {
            Ok(names) => removed.extend(names),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}
