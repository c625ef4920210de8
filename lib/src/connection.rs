//! Opening a connection: everything that happens between a socket and the first request on it.

use std::io;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::{self, Server};
use crate::context::Context;
use crate::error::Why;
use crate::repair::KEPT_MS;
use crate::resp::{Commands, Frame, Scanner};
use crate::scripts::{self, Script};
use crate::server::ServerReport;
use crate::tls::{self, Connector};

/// A byte stream to a server, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The newest layout of the data that this version reads and writes; see `docs/data-layout.md`.
pub const LAYOUT_VERSION: i64 = 1;
/// The version of the encoding of stored terms.
pub const ENCODING_VERSION: i64 = 1;

/// A connection that is ready for requests.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) report: ServerReport,
    pub(crate) identity: Option<Identity>,
}

/// What the server calls a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `CLIENT ID`, unique in the life of a server.
    client: i64,
    /// `run_id`, which tells the server's lives apart.
    run: String,
}

/// Connects to the one server of a `single` topology, logs in, and makes sure that the server is fit to
/// be used: that it has loaded its data, knows the scripts, and holds no newer layout.
///
/// `previous` is the connection that was lost before. The server may still have bytes of it to read,
/// and so would do older writes after newer ones: it is closed there first.
pub(crate) async fn open(
    config: &config::Redis,
    tls: Option<&Connector>,
    context: &Context,
    previous: Option<&Identity>,
) -> Result<Opened, Why> {
    let opening = async {
        let stream = connect(&config.servers[0], tls).await?;
        let mut setup = Setup {
            stream,
            input: BytesMut::new(),
            scanner: Scanner::default(),
        };
        setup.log_in(config).await?;
        let (report, run) = setup.inspect_server().await?;
        let identity = setup.identify(run).await?;
        if let (Some(previous), Some(own)) = (previous, &identity) {
            setup.close_there(previous, own).await?;
        }
        setup.synchronize_clock(context).await?;
        setup.load_scripts(context).await?;
        setup.check_layout(context).await?;
        Ok(Opened {
            stream: setup.stream,
            report,
            identity,
        })
    };
    timeout(config.connect_timeout, opening)
        .await
        .unwrap_or(Err(Why::ConnectTimeout))
}

async fn connect(server: &Server, tls: Option<&Connector>) -> Result<Box<dyn Stream>, Why> {
    match server {
        Server::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(io_why)?)),
        Server::Tcp { host, port } => {
            let addresses = tokio::net::lookup_host((host.as_str(), *port))
                .await
                .map_err(|_| Why::NameNotFound(host.clone()))?;
            let mut last = Why::NameNotFound(host.clone());
            for address in addresses {
                match connect_tcp(address, host, tls).await {
                    Ok(stream) => return Ok(stream),
                    Err(why) => last = why,
                }
            }
            Err(last)
        }
    }
}

async fn connect_tcp(
    address: std::net::SocketAddr,
    host: &str,
    tls: Option<&Connector>,
) -> Result<Box<dyn Stream>, Why> {
    let stream = open_socket(address).await.map_err(io_why)?;
    Ok(match tls {
        Some(tls) => Box::new(tls.connect(host, stream).await?),
        None => Box::new(stream),
    })
}

async fn open_socket(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        std::net::SocketAddr::V4(_) => TcpSocket::new_v4()?,
        std::net::SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_keepalive(true)?;
    let stream = socket.connect(address).await?;
    // Requests are coalesced here already; Nagle's algorithm would only hold the last one back.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What a stream's error says about the connection.
pub(crate) fn io_why(error: io::Error) -> Why {
    if let Some(error) = tls::rustls_error(&error) {
        return tls::why(error, "redis.ssl");
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Why::Refused,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::UnexpectedEof => Why::Closed,
        io::ErrorKind::TimedOut => Why::ConnectTimeout,
        _ => Why::Io(error.to_string()),
    }
}

/// A connection that is being set up: one question, one answer.
struct Setup {
    stream: Box<dyn Stream>,
    input: BytesMut,
    scanner: Scanner,
}

impl Setup {
    async fn log_in(&mut self, config: &config::Redis) -> Result<(), Why> {
        if let Some(password) = &config.password {
            let user = config.username.as_deref().map(str::as_bytes);
            let login = match user {
                Some(user) => self.call(&[b"AUTH", user, password.expose()]).await?,
                None => self.call(&[b"AUTH", password.expose()]).await?,
            };
            // A server that does not know AUTH quotes what it was given.
            ok(&login).map_err(|why| hide(why, password.expose()))?;
        }
        // A server that loads its data, lets nobody in or has a backlog says so here.
        ok(&self.call(&[b"PING"]).await?)?;
        if config.database > 0 {
            let number = config.database.to_string();
            ok(&self.call(&[b"SELECT", number.as_bytes()]).await?)?;
        }
        // Only a convenience for whoever reads CLIENT LIST: a user may be denied it.
        self.call(&[b"CLIENT", b"SETNAME", b"emqx_redis_storage"])
            .await?;
        Ok(())
    }

    async fn synchronize_clock(&mut self, context: &Context) -> Result<(), Why> {
        context.clock.distrust();
        for _ in 0..3 {
            let sent = Instant::now();
            let reply = self.call(&[b"TIME"]).await?;
            let received = Instant::now();
            ok(&reply)?;
            let micros = time_reply(&reply).ok_or(Why::Protocol("TIME".into()))?;
            context.clock.measure(micros, sent, received);
        }
        Ok(())
    }

    async fn check_layout(&mut self, context: &Context) -> Result<(), Why> {
        let meta = context.keys.meta();
        for (field, version) in [
            (&b"layout"[..], LAYOUT_VERSION),
            (&b"encoding"[..], ENCODING_VERSION),
        ] {
            let own = version.to_string();
            // A read-only replica can't take it, and every operation will say so.
            self.call(&[b"HSETNX", &meta, field, own.as_bytes()])
                .await?;
            let mut stored = self.call(&[b"HGET", &meta, field]).await?;
            if stored
                .error()
                .is_some_and(|text| text.starts_with(b"WRONGTYPE"))
            {
                self.quarantine(context, &meta).await?;
                self.call(&[b"HSETNX", &meta, field, own.as_bytes()])
                    .await?;
                stored = self.call(&[b"HGET", &meta, field]).await?;
            }
            ok(&stored)?;
            let name = String::from_utf8_lossy(field);
            match &stored {
                Frame::Bulk(number) => match std::str::from_utf8(number).map(str::parse::<i64>) {
                    Ok(Ok(found)) if found <= version => {}
                    _ => {
                        return Err(Why::Layout(format!(
                            "`meta` holds {name} version {}, this version knows up to {version}",
                            String::from_utf8_lossy(number)
                        )))
                    }
                },
                Frame::Nil => {}
                _ => return Err(Why::Protocol("HGET".into())),
            }
        }
        Ok(())
    }

    async fn load_scripts(&mut self, context: &Context) -> Result<(), Why> {
        let mut output = Vec::new();
        scripts::load_all(&mut Commands::new(&mut output));
        self.write(&output).await?;
        for (script, _) in Script::ALL {
            let reply = self.read().await?;
            ok(&reply)?;
            if !context.scripts.learn(*script, &reply) {
                return Err(Why::Protocol("SCRIPT LOAD".into()));
            }
        }
        Ok(())
    }

    /// A foreign value at `meta` must not keep the storage away from its data.
    async fn quarantine(&mut self, context: &Context, meta: &[u8]) -> Result<(), Why> {
        let mut output = Vec::new();
        let mut commands = Commands::new(&mut output);
        scripts::call(context, &mut commands, Script::Quarantine, &[meta], 3)
            .arg(context.keys.prefix())
            .int(KEPT_MS)
            .arg(b"hash");
        self.write(&output).await?;
        ok(&self.read().await?)?;
        tracing::warn!(key = %meta.escape_ascii(), "a foreign value stood at this key; it was moved to `foreign:…` for a week");
        Ok(())
    }

    /// What the server calls this connection, as far as the user may know.
    async fn identify(&mut self, run: Option<String>) -> Result<Option<Identity>, Why> {
        let id = self.call(&[b"CLIENT", b"ID"]).await?;
        Ok(match (id, run) {
            (Frame::Integer(client), Some(run)) => Some(Identity { client, run }),
            _ => None,
        })
    }

    async fn close_there(&mut self, previous: &Identity, own: &Identity) -> Result<(), Why> {
        if previous.run != own.run {
            return Ok(());
        }
        let id = previous.client.to_string();
        let reply = self
            .call(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])
            .await?;
        if let Some(text) = reply.error() {
            tracing::warn!(
                error = %String::from_utf8_lossy(text),
                "CLIENT KILL failed: writes of the lost connection may yet be done"
            );
        }
        Ok(())
    }

    /// The report, and the server's `run_id`.
    async fn inspect_server(&mut self) -> Result<(ServerReport, Option<String>), Why> {
        // INFO without arguments, as users may be allowed nothing more; denied, it tells nothing.
        let info = match self.call(&[b"INFO"]).await? {
            Frame::Bulk(text) => text,
            _ => Bytes::new(),
        };
        let info = String::from_utf8_lossy(&info);
        let run = info
            .lines()
            .find_map(|line| line.strip_prefix("run_id:"))
            .map(|run| run.trim().to_owned());
        Ok((ServerReport::from_info(&info), run))
    }

    async fn call(&mut self, arguments: &[&[u8]]) -> Result<Frame, Why> {
        let mut output = Vec::new();
        Commands::new(&mut output).command(arguments);
        self.write(&output).await?;
        self.read().await
    }

    async fn write(&mut self, output: &[u8]) -> Result<(), Why> {
        self.stream.write_all(output).await.map_err(io_why)?;
        // A stream that encrypts may hold bytes back until it is flushed.
        self.stream.flush().await.map_err(io_why)
    }

    async fn read(&mut self) -> Result<Frame, Why> {
        loop {
            let whole = self.scanner.scan(&self.input);
            if let Some(length) = whole.map_err(|bad| Why::Protocol(bad.0.into()))? {
                let bytes = self.input.split_to(length).freeze();
                return Frame::parse(&bytes, &mut 0).map_err(|bad| Why::Protocol(bad.0.into()));
            }
            if self
                .stream
                .read_buf(&mut self.input)
                .await
                .map_err(io_why)?
                == 0
            {
                return Err(Why::Closed);
            }
        }
    }
}

/// Microseconds since 1970 from the reply to `TIME`.
pub(crate) fn time_reply(reply: &Frame) -> Option<i64> {
    let Frame::Array(parts) = reply else {
        return None;
    };
    let number = |part: Option<&Frame>| match part {
        Some(Frame::Bulk(digits)) => std::str::from_utf8(digits).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    Some(number(parts.first())? * 1_000_000 + number(parts.get(1))?)
}

fn hide(why: Why, secret: &[u8]) -> Why {
    let text = match &why {
        Why::Server(text) | Why::NoPermission(text) | Why::WrongPassword(text) => text,
        _ => return why,
    };
    if !text.contains(String::from_utf8_lossy(secret).as_ref()) {
        return why;
    }
    let code = text.split(' ').next().unwrap_or_default();
    Why::Server(format!("{code} in answer to AUTH"))
}

/// Tells error replies to the set-up apart.
fn ok(reply: &Frame) -> Result<(), Why> {
    let Some(error) = reply.error() else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(error).into_owned();
    let code = text.split(' ').next().unwrap_or_default();
    Err(match code {
        "WRONGPASS" | "NOAUTH" => Why::WrongPassword(text),
        "NOPERM" => Why::NoPermission(text),
        "LOADING" | "BUSY" | "MASTERDOWN" => Why::Loading,
        _ if text.contains("invalid password") || text.contains("AUTH <password>") => {
            Why::WrongPassword(text)
        }
        _ if text.contains("max number of clients") => Why::TooManyClients,
        _ => Why::Server(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_are_told_apart() {
        let why = |text: &'static str| ok(&Frame::Error(Bytes::from_static(text.as_bytes())));
        assert!(matches!(
            why("NOAUTH Authentication required."),
            Err(Why::WrongPassword(_))
        ));
        assert!(matches!(
            why("ERR invalid password"),
            Err(Why::WrongPassword(_))
        ));
        assert!(matches!(why("NOPERM no"), Err(Why::NoPermission(_))));
        assert_eq!(
            why("LOADING Redis is loading the dataset in memory"),
            Err(Why::Loading)
        );
        assert_eq!(
            why("ERR max number of clients reached"),
            Err(Why::TooManyClients)
        );
        assert!(matches!(
            why("ERR DB index is out of range"),
            Err(Why::Server(_))
        ));
    }
}
