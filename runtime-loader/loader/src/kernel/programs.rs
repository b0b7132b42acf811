//! Running programs: nft, the restore programs of iptables, ipset.
//!
//! A script reaches nft as a file in memory, complete before nft starts. Through a pipe, a loader killed while writing
//! would leave nft with the beginning of a script, and the beginning alone (flush, and nothing after it) is valid.

use super::{Kernel as _, Step, System};
use crate::Error;
use crate::lock::Lock;
use netpolc_bundle::limits;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long nft may take. Loading 100,000 elements takes two seconds, a listing less.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How far a program may print beyond [`limits::SCRIPT_BYTES`]: more than any writes at once.
const OVERRUN_BYTES: u64 = 1 << 20;

/// Most bytes of nft's complaints that are kept.
const STDERR_BYTES: u64 = 64 << 10;

impl System {
    pub(super) fn find(&self, name: &str) -> Result<PathBuf, Error> {
        let found = self.dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let dirs = self.dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
            Error::NoProgram { program: name.to_owned(), dirs }
        })
    }

    /// What the program prints goes into a file in memory if it is asked for: nft writes word by word, and a reader at the
    /// other end of a pipe would wake up for each (a listing of 25 KB took 31 ms instead of 12).
    fn run_to_end(&self, name: &str, args: &[&str], stdin: Stdio, printed: bool) -> Result<Ended, Error> {
        let program = self.find(name)?;
        let fail = |error: io::Error| Error::io(program.display().to_string(), error);
        let mut command = Command::new(&program);
        let mut output = printed.then(bounded).transpose().map_err(fail)?;
        let stdout = match &output {
            Some(file) => Stdio::from(file.try_clone().map_err(fail)?),
            None => Stdio::null(),
        };
        command.args(args).env_clear().stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        // The child inherits it: should the loader be killed, a successor waits until the child has ended.
        let shared = self.lock.as_ref().and_then(Lock::share);
        let mut child = command.spawn().map_err(fail)?;
        drop(shared);
        let (sender, receiver) = mpsc::channel();
        if let Some(pipe) = child.stderr.take() {
            drain(pipe, sender);
        }
        // The pipe ends when the program does, or whatever it has started.
        let complaints = match receiver.recv_timeout(TIMEOUT) {
            Ok(bytes) => bytes,
            Err(mpsc::RecvTimeoutError::Disconnected) => Vec::new(),
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(stop(name, &mut child)),
        };
        let status = child.wait().map_err(fail)?;
        let mut bytes = Vec::new();
        if let Some(file) = &mut output {
            // The child has written where this file stands. One byte more than the limit is read, so that the parser sees
            // that it is passed.
            let written = file.stream_position().map_err(fail)?.min(limits::SCRIPT_BYTES + 1);
            let read = file.rewind().and_then(|()| file.take(written).read_to_end(&mut bytes));
            read.map_err(fail)?;
        }
        Ok(Ended { status, output: bytes, complaints: String::from_utf8_lossy(&complaints).into_owned() })
    }

    /// Runs a program that must succeed; the answer is what it printed, at most [`limits::SCRIPT_BYTES`].
    pub(super) fn spawn(
        &self,
        name: &str,
        args: &[&str],
        stdin: Stdio,
        printed: bool,
    ) -> Result<Vec<u8>, Error> {
        let ended = self.run_to_end(name, args, stdin, printed)?;
        if ended.status.success() {
            return Ok(ended.output);
        }
        Err(refusal(name, &ended.complaints, &ended.status.to_string()))
    }

    /// A shell runs the steps, so that they come to their end when this process is killed. It inherits their inputs as files
    /// in memory, which another program that is started at the same moment may inherit too, without harm. Where there is no
    /// shell, or a program has a name that a shell would not take as a word, the steps are run from here.
    pub(super) fn run_steps(&mut self, steps: &[Step<'_>]) -> Result<(), Error> {
        let programs: Vec<PathBuf> =
            steps.iter().map(|step| self.find(step.program)).collect::<Result<_, _>>()?;
        let inherited = |text: &str| memory(text, MFdFlags::empty());
        let files = steps.iter().map(|step| Ok([inherited(step.input)?, inherited(step.undo)?]));
        let files: Vec<[File; 2]> = files.collect::<Result<_, Error>>()?;
        let script = shell_script(&programs, steps, &files).filter(|_| self.find("sh").is_ok());
        let Some(script) = script else {
            return in_turn(steps, &mut |step, input| self.program(step.program, step.args, input).map(drop));
        };
        let ended = self.run_to_end("sh", &["-c", &script], Stdio::null(), false)?;
        if ended.status.success() {
            return Ok(());
        }
        let failed = ended.status.code().and_then(|code| usize::try_from(code).ok()?.checked_sub(1));
        let name = failed.and_then(|i| steps.get(i)).map_or("sh", |step| step.program);
        Err(refusal(name, &ended.complaints, &ended.status.to_string()))
    }
}

/// How a program ended.
struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
    complaints: String,
}

/// Runs steps, and undoes them if one fails.
pub(super) fn in_turn(
    steps: &[Step<'_>],
    run: &mut dyn FnMut(&Step<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    for (i, step) in steps.iter().enumerate() {
        if let Err(error) = run(step, step.input) {
            for done in steps.iter().take(i + 1).rev() {
                // Where there is nothing to undo, this is refused.
                let _ = run(done, done.undo);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// A text as a file in memory, to be read from its beginning.
fn memory(text: &str, flags: MFdFlags) -> Result<File, Error> {
    let memory = memfd_create(c"netpol-loader", flags);
    let mut file = File::from(memory.map_err(|errno| Error::io("memfd_create", errno))?);
    file.write_all(text.as_bytes())
        .and_then(|()| file.rewind())
        .map_err(|error| Error::io("memfd", error))?;
    Ok(file)
}

/// A file in memory that a program can print to, with an end: what goes on printing is refused, and no memory is taken for
/// it. The end is a little behind the limit, so that what passes the limit is seen to pass it.
fn bounded() -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"netpol-loader", flags)?);
    file.set_len(limits::SCRIPT_BYTES + OVERRUN_BYTES)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK))?;
    Ok(file)
}

/// The same as the standard input of a program.
pub(super) fn in_memory(text: &str) -> Result<Stdio, Error> {
    memory(text, MFdFlags::MFD_CLOEXEC).map(Stdio::from)
}

/// The script that runs steps, for `sh`: programs, constant arguments and numbers of open files, no text from elsewhere.
/// Its exit status is the number of the step that failed, from 1.
fn shell_script(programs: &[PathBuf], steps: &[Step<'_>], files: &[[File; 2]]) -> Option<String> {
    let plain = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._+-".contains(&b));
    let mut script = String::new();
    let mut undo = String::new();
    for (number, ((program, step), [input, back])) in (1..).zip(programs.iter().zip(steps).zip(files)) {
        let words: Vec<&str> = std::iter::once(program.to_str()?).chain(step.args.iter().copied()).collect();
        if number > u8::MAX.into() || !words.iter().all(|word| plain(word)) {
            return None;
        }
        let words = words.join(" ");
        undo = format!("{words} </proc/self/fd/{} >/dev/null 2>&1; {undo}", back.as_raw_fd());
        script += &format!("{words} </proc/self/fd/{} || {{ {undo}exit {number}; }}\n", input.as_raw_fd());
    }
    Some(script)
}

/// Reads what a program complains of, to the end, in a thread of its own.
fn drain(mut pipe: impl Read + Send + 'static, sender: mpsc::Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(STDERR_BYTES).read_to_end(&mut bytes);
        // Who has more to say must not wait for a reader, nor die for the lack of one.
        let _ = io::copy(&mut pipe, &mut io::sink());
        // The receiver is gone after a timeout only.
        let _ = sender.send(bytes);
    });
}

fn stop(name: &str, child: &mut Child) -> Error {
    let _ = child.kill();
    let _ = child.wait();
    complaint(name, format!("it did not end within {} seconds", TIMEOUT.as_secs()))
}

fn complaint(name: &str, complaint: String) -> Error {
    match name {
        "nft" => Error::Nft(complaint),
        _ => Error::Program { program: name.to_owned(), complaint },
    }
}

fn refusal(name: &str, complaints: &str, status: &str) -> Error {
    let text = complaints.trim();
    let text = if text.is_empty() { status } else { text };
    let permission = ["Operation not permitted", "Permission denied", "must be root", "you must be root"];
    if permission.iter().any(|phrase| text.contains(phrase)) {
        return Error::Permission(text.to_owned());
    }
    complaint(name, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step<'a>(program: &'a str, input: &'a str, undo: &'a str) -> Step<'a> {
        Step { program, args: &["-w", "60"], input, undo }
    }

    /// With a shell and without: what failed and what came before it is undone in reverse, what comes after is not run.
    #[test]
    fn a_step_that_fails_is_undone_with_those_before_it() {
        let mut ran = Vec::new();
        let steps = [step("a", "1", "-1"), step("b", "2", "-2"), step("c", "3", "-3")];
        let done = in_turn(&steps, &mut |step, input| {
            ran.push(format!("{}{input}", step.program));
            if input == "2" { Err(Error::Busy(String::new())) } else { Ok(()) }
        });
        assert!(done.is_err());
        assert_eq!(ran, ["a1", "b2", "b-2", "a-1"]);
    }

    /// A program that never stops printing is refused, and what it printed is longer than any listing may be.
    #[test]
    fn what_a_program_prints_has_an_end() {
        let printed = System::new().run_to_end("yes", &[], Stdio::null(), true).unwrap();
        assert!(!printed.status.success());
        assert_eq!(printed.output.len() as u64, limits::SCRIPT_BYTES + 1);
        let printed = System::new().run_to_end("echo", &["one"], Stdio::null(), true).unwrap();
        assert_eq!((printed.status.success(), printed.output.as_slice()), (true, &b"one\n"[..]));
    }

    #[test]
    fn a_shell_gets_numbers_of_files_and_no_texts() {
        let open = |text: &str| memory(text, MFdFlags::MFD_CLOEXEC).unwrap();
        let files = [[open("1"), open("-1")], [open("2"), open("-2")]];
        let [[a, b], [c, d]] = files.each_ref().map(|pair| pair.each_ref().map(File::as_raw_fd));
        let steps = [step("x", "1", "-1"), step("y", "2", "-2")];
        let of = |names: [&str; 2]| shell_script(&names.map(PathBuf::from), &steps, &files);
        let fd = "</proc/self/fd/";
        let quiet = ">/dev/null 2>&1";
        let wanted = format!(
            "/s/x -w 60 {fd}{a} || {{ /s/x -w 60 {fd}{b} {quiet}; exit 1; }}\n\
             /s/y -w 60 {fd}{c} || {{ /s/y -w 60 {fd}{d} {quiet}; /s/x -w 60 {fd}{b} {quiet}; exit 2; }}\n"
        );
        assert_eq!(of(["/s/x", "/s/y"]), Some(wanted));
        assert_eq!(of(["/s/x", "/s/$(y)"]), None);
        assert_eq!(of(["/s/x", "/a folder/y"]), None);
    }
}
