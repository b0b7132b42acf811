//! Running programs to their end, with a bound on time and on output.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Longest time a program started in the sandbox may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes kept of each of a program's two output streams; the rest is read and dropped.
pub const COMMAND_OUTPUT_LIMIT: u64 = 16 << 20;

/// Administrators' programs live here, and an ordinary user's `PATH` often lacks them.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Finds a program in `PATH` and in the administrators' folders.
///
/// # Errors
///
/// [`Error::MissingProgram`], which names the package to install.
pub fn find_program(program: &str, package: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| Error::MissingProgram { program: program.into(), package: package.into() })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs `command` with `stdin` as its whole input, and collects its output. The exit status is the caller's to judge.
pub(crate) fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Output, Error> {
    let name = describe(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|e| Error::System { what: format!("run `{name}`"), source: e })?;
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // All three streams move at once: a program that fills one pipe while we serve another would hang.
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A program may end without reading its input; its status then tells the story.
                let _ = input.write_all(stdin);
            }
        });
        let stdout = scope.spawn(move || drain(out));
        let stderr = scope.spawn(move || drain(err));
        let status = wait(&mut child, limit);
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        match status {
            Ok(Some(status)) => Ok(Output { status, stdout, stderr }),
            Ok(None) => Err(Error::Timeout { command: name.clone(), limit }),
            Err(e) => Err(Error::System { what: format!("wait for `{name}`"), source: e }),
        }
    })
}

/// Runs `command` and turns a status other than success into [`Error::Command`].
pub(crate) fn run_checked(command: Command, stdin: &[u8]) -> Result<Output, Error> {
    let name = describe(&command);
    let output = run(command, stdin, COMMAND_TIMEOUT)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Command {
        command: name,
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_string(),
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn drain(stream: Option<impl Read>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        // A read error ends the stream; what came before it is kept.
        let _ = stream.by_ref().take(COMMAND_OUTPUT_LIMIT).read_to_end(&mut kept);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    kept
}

/// Waits for the child, and kills it when the time is up (`None`).
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_larger_than_a_pipe_does_not_hang() {
        let input = vec![b'x'; 1 << 20];
        let output = run(Command::new("cat"), &input, COMMAND_TIMEOUT).unwrap();
        assert_eq!(output.stdout, input);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("100");
        let result = run(command, b"", Duration::from_millis(50));
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    }

    #[test]
    fn failure_carries_what_the_program_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo bad line 7 >&2; exit 3"]);
        let text = run_checked(command, b"").unwrap_err().to_string();
        assert!(text.contains("bad line 7") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let text = find_program("netpolc-no-such-program", "iproute2").unwrap_err().to_string();
        assert!(text.contains("install iproute2"), "{text}");
    }
}
