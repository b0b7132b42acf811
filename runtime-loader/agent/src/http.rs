//! `/metrics`, `/healthz` and `/readyz`: as much of HTTP as these need, every read bounded in bytes and time.

use crate::Error;
use crate::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most bytes of a request's head.
const MOST_BYTES: usize = 8 << 10;
/// Most connections at a time; more wait.
const MOST_CONNECTIONS: usize = 16;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens, if an address is given.
///
/// # Errors
/// If the address cannot be had.
pub async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let listener =
        TcpListener::bind(address).await.map_err(|e| Error::io(format!("metrics on {address}"), e))?;
    if let Ok(address) = listener.local_addr() {
        crate::log::info("metrics", &[("address", &address)]);
    }
    Ok(Some(listener))
}

/// Answers requests for ever.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: later there may be some again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            // Who asks and goes away gets no answer.
            let _ = timeout(PATIENCE, answer(stream, &metrics)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > MOST_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path) {
        (b"GET", b"/metrics") => ("200 OK", metrics.render()),
        (b"GET", b"/healthz") => ("200 OK", "ok\n".to_owned()),
        (b"GET", b"/readyz") if metrics.is_ready() => ("200 OK", "ok\n".to_owned()),
        (b"GET", b"/readyz") => {
            ("503 Service Unavailable", "not everything that is known is in force\n".to_owned())
        }
        (b"GET", _) => ("404 Not Found", "not found\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
