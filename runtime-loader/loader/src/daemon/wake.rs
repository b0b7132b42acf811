//! What the main loop waits for: a signal to end, a change of the node's CNI configurations, or that time has passed.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// SIGTERM or SIGINT.
    Stop,
    /// A file of the directory has changed.
    Files,
    /// Time has passed.
    Time,
}

/// Signals and files.
#[derive(Debug)]
pub struct Wake {
    signals: SignalFd,
    files: Option<(Inotify, PathBuf)>,
}

impl Wake {
    /// Takes the signals from now on, in this thread and those that it starts. Programs that are run get them as usual.
    ///
    /// # Errors
    /// If the kernel has no more descriptors to give.
    pub fn new(watched: Option<&Path>) -> io::Result<Wake> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // Without it, changes are seen when the time has passed.
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let files = watched.and_then(|dir| Some((Inotify::init(flags).ok()?, dir.to_owned())));
        Ok(Wake { signals, files })
    }

    /// Waits, at most so long.
    pub fn wait(&mut self, most: Duration) -> Woken {
        if let Some((inotify, dir)) = &self.files {
            // The directory may have been made meanwhile, or made anew; to watch it twice is the same as once.
            let kinds = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE;
            let _ = inotify.add_watch(dir.as_path(), kinds);
        }
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.files.iter().map(|(inotify, _)| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        // Rounded up, so that less than a millisecond is not no time at all.
        let timeout = PollTimeout::try_from(most + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => std::thread::sleep(most),
        }
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            return Woken::Stop;
        }
        match &self.files {
            Some((inotify, _)) if inotify.read_events().is_ok_and(|events| !events.is_empty()) => {
                Woken::Files
            }
            _ => Woken::Time,
        }
    }
}
