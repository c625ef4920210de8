//! What a failed handshake does not tell by itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::SignatureScheme;

/// A handshake that takes longer may never end.
pub(super) const SILENCE: Duration = Duration::from_secs(1);
/// A server without TLS answers PING sooner.
const PROBE: Duration = Duration::from_secs(1);

/// The identity of a client that has none. Of one connection: it knows whether the server asked, as
/// in TLS 1.2 a server that wants one refuses the handshake with the alert of all other reasons.
#[derive(Debug, Default)]
pub(super) struct NoIdentity {
    was_asked: AtomicBool,
}

impl NoIdentity {
    pub(super) fn was_asked(&self) -> bool {
        self.was_asked.load(Relaxed)
    }
}

impl ResolvesClientCert for NoIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Whether a server that does not answer the handshake is a Redis without TLS: to that the
/// handshake is the beginning of a command, whose end it awaits for ever.
pub(super) async fn answers_without_tls(address: SocketAddr) -> bool {
    let probe = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        let first = stream.read_u8().await.ok()?;
        // `+PONG`, or an error such as that of a missing password.
        Some(matches!(first, b'+' | b'-'))
    };
    timeout(PROBE, probe).await.ok().flatten().unwrap_or(false)
}
