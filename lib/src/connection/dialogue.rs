//! A connection on which one question is asked at a time: what sets connections up and looks servers up.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::config::{Secret, Server};
use crate::error::Why;
use crate::resp::{Commands, Frame, Scanner};
use crate::tls::{self, Connector};

/// The path of the settings that encrypt connections to data servers.
const SERVERS: &str = "redis.ssl";

/// A byte stream to a server, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One question, one answer.
pub(crate) struct Dialogue {
    stream: Box<dyn Stream>,
    input: BytesMut,
    scanner: Scanner,
    /// The path of the settings that encrypt it: a server may refuse a certificate after the handshake.
    section: &'static str,
}

impl Dialogue {
    /// Connects to a server. Not bounded in time: the caller is.
    pub(crate) async fn connect(server: &Server, tls: Option<&Connector>) -> Result<Self, Why> {
        Ok(Dialogue {
            stream: connect(server, tls).await?,
            input: BytesMut::new(),
            scanner: Scanner::default(),
            section: tls.map_or(SERVERS, Connector::section),
        })
    }

    /// Logs in, where there is a password, and sees that the server answers.
    pub(crate) async fn log_in(
        &mut self,
        username: Option<&str>,
        password: Option<&Secret>,
    ) -> Result<(), Why> {
        if let Some(password) = password {
            let login = match username.map(str::as_bytes) {
                Some(user) => self.call(&[b"AUTH", user, password.expose()]).await?,
                None => self.call(&[b"AUTH", password.expose()]).await?,
            };
            // A server that does not know AUTH quotes what it was given.
            ok(&login).map_err(|why| hide(why, password.expose()))?;
        }
        // A server that loads its data, lets nobody in or has a backlog says so here. So does one that
        // can't write to its disk, but that one refuses nothing else than writes.
        let pong = self.call(&[b"PING"]).await?;
        let is_misconf = |text: &[u8]| text.starts_with(b"MISCONF ");
        if pong.error().is_some_and(is_misconf) {
            return Ok(());
        }
        ok(&pong)
    }

    pub(crate) async fn call(&mut self, arguments: &[&[u8]]) -> Result<Frame, Why> {
        let mut output = Vec::new();
        Commands::new(&mut output).command(arguments);
        self.write(&output).await?;
        self.read().await
    }

    pub(crate) async fn write(&mut self, output: &[u8]) -> Result<(), Why> {
        let section = self.section;
        let why = |error| why_in(error, section);
        self.stream.write_all(output).await.map_err(why)?;
        // A stream that encrypts may hold bytes back until it is flushed.
        self.stream.flush().await.map_err(why)
    }

    pub(crate) async fn read(&mut self) -> Result<Frame, Why> {
        loop {
            let whole = self.scanner.scan(&self.input);
            if let Some(length) = whole.map_err(|bad| Why::Protocol(bad.0.into()))? {
                let bytes = self.input.split_to(length).freeze();
                return Frame::parse(&bytes, &mut 0).map_err(|bad| Why::Protocol(bad.0.into()));
            }
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(|error| why_in(error, self.section))? == 0 {
                return Err(Why::Closed);
            }
        }
    }

    /// The stream, of which every answer was read.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        self.stream
    }
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

/// What a stream's error says about the connection to a data server.
pub(crate) fn io_why(error: io::Error) -> Why {
    why_in(error, SERVERS)
}

fn why_in(error: io::Error, section: &str) -> Why {
    if let Some(error) = tls::rustls_error(&error) {
        return tls::why(error, section);
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
pub(crate) fn ok(reply: &Frame) -> Result<(), Why> {
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
    use bytes::Bytes;

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
