//! Running programs at the top of the repository.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Prints the command as one would type it and runs it.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, String> {
    let shown = shown(command);
    println!("\n$ {shown}");
    command.current_dir(root()).status().map_err(|e| format!("{shown}: {e}"))
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", shown(command))) }
}

/// The standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let shown = shown(command);
    let done = command.current_dir(root()).stderr(Stdio::inherit()).output();
    let done = done.map_err(|e| format!("{shown}: {e}"))?;
    if !done.status.success() {
        return Err(format!("{shown}: {}", done.status));
    }
    String::from_utf8(done.stdout).map_err(|_| format!("{shown}: its output is not UTF-8"))
}

/// The command line, with the program by its name alone.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Whether there is such a program. The folders of system programs count, whether or not `PATH` names them.
pub(crate) fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).any(|dir| dir.join(name).is_file())
}

/// Builds the two programs; the folder that they are in.
pub(crate) fn build_programs() -> Result<PathBuf, String> {
    run(cargo().args(["build", "--locked", "--package", "netpolc", "--package", "netpol-loader", "--bins"]))?;
    programs()
}

/// The folder that programs are built into.
pub(crate) fn programs() -> Result<PathBuf, String> {
    let metadata = metadata()?;
    let target = metadata["target_directory"].as_str().ok_or("cargo metadata names no target directory")?;
    Ok(Path::new(target).join("debug"))
}

/// What cargo says about the workspace.
pub(crate) fn metadata() -> Result<serde_json::Value, String> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))
}
