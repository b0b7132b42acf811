//! The agent's socket: requests of the CNI plugin in, answers of the engine out.

use crate::engine::Message;
use crate::{Error, log};
use netpolc_bundle::wire::{self, FRAME_BYTES, FromAgent, ToAgent};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// Most connections at a time; more wait. A runtime starts some tens of pods at once.
const MOST_CONNECTIONS: usize = 256;
/// How long a connection may be silent, or take for a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the loader may take to let this user into its directory, where both are started at once.
const NEWCOMER: Duration = Duration::from_secs(10);

/// Listens on a path. What an earlier agent left there is replaced. Where this user may not yet, it is tried again for a
/// while.
///
/// # Errors
/// If the path cannot be used.
pub async fn listen(path: &Path) -> Result<UnixListener, Error> {
    let begun = Instant::now();
    loop {
        match try_listen(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && begun.elapsed() < NEWCOMER => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result.map_err(|e| Error::io(path.display().to_string(), e)),
        }
    }
}

fn try_listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Bound beside the path and renamed, so that at no moment others than the owner could connect.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, engine: mpsc::Sender<Message>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn("a connection could not be accepted", &[("error", &error)]);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(stream, &engine).await {
                log::warn("a connection of the CNI plugin broke", &[("error", &error)]);
            }
            drop(permit);
        });
    }
}

async fn connection(mut stream: UnixStream, engine: &mpsc::Sender<Message>) -> io::Result<()> {
    while let Some(request) = timeout(PATIENCE, receive(&mut stream)).await?? {
        let (reply, answer) = oneshot::channel();
        let gone = || FromAgent::Failed { message: "the agent is stopping".to_owned(), retry: true };
        let answer = match engine.send(Message::Asked(request, reply)).await {
            // The engine answers in bounded time.
            Ok(()) => answer.await.unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        };
        let mut bytes = Vec::new();
        wire::send(&mut bytes, &answer)?;
        timeout(PATIENCE, stream.write_all(&bytes)).await??;
    }
    Ok(())
}

/// Reads one frame; `None` if the other end has closed the connection.
async fn receive(stream: &mut UnixStream) -> io::Result<Option<ToAgent>> {
    let mut frame = vec![0; 4];
    match stream.read_exact(&mut frame).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = <[u8; 4]>::try_from(frame.as_slice()).map_or(u32::MAX, u32::from_le_bytes);
    if length > FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    // Grows with what really comes, not with what was announced.
    (&mut *stream).take(u64::from(length)).read_to_end(&mut frame).await?;
    wire::receive(&mut frame.as_slice())
}
