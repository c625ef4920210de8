//! Where a Redis server listens.

use std::fmt;
use std::path::PathBuf;

/// The port of a server that names none.
pub const DEFAULT_PORT: u16 = 6379;

/// One entry of `redis.servers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// `host:port`; an IPv6 address stands here without its brackets.
    Tcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `unix:///path`: an absolute path.
    Unix(PathBuf),
}

impl fmt::Display for Server {
    /// The form that the configuration takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Server::Tcp { host, port } => write!(f, "{host}:{port}"),
            Server::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}
