//! Other programs, run to their end: a text goes in, what they print comes out.

use crate::Error;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most bytes of what a program prints that are kept.
const OUTPUT_BYTES: u64 = 4 << 20;

/// The first of these programs that is installed.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    names.iter().find_map(|name| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file()))
}

/// Runs a program; the answer is what it printed.
///
/// # Errors
/// [`Error::Tool`] with what it printed to standard error, if it does not end well or not in time.
pub fn run(program: &Path, args: &[&str], input: &str) -> Result<String, Error> {
    let fail = |error: io::Error| Error::io(program.display().to_string(), error);
    // Files in memory instead of pipes: the input is whole before the program starts, and no one has to keep reading.
    let mut stdin = memory().map_err(fail)?;
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(fail)?;
    let (mut stdout, mut stderr) = (memory().map_err(fail)?, memory().map_err(fail)?);
    let share = |file: &File| file.try_clone().map(Stdio::from).map_err(fail);
    let mut command = Command::new(program);
    command.args(args).env_clear().stdin(Stdio::from(stdin)).stdout(share(&stdout)?).stderr(share(&stderr)?);
    let mut child = command.spawn().map_err(fail)?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(fail)? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                let message = format!("it did not end within {} seconds", PATIENCE.as_secs());
                return Err(Error::Tool { program: program.display().to_string(), message });
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.success() {
        return text(&mut stdout).map_err(fail);
    }
    let complaints = text(&mut stderr).map_err(fail)?;
    let message =
        if complaints.trim().is_empty() { status.to_string() } else { complaints.trim().to_owned() };
    Err(Error::Tool { program: program.display().to_string(), message })
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"netpol-loader", MFdFlags::MFD_CLOEXEC)?))
}

fn text(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
