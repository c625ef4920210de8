//! Every reason that a request can fail for.

use std::fmt;

/// Why a request failed. What each means for the caller: of all but [`Error::Timeout`],
/// [`Error::Unknown`], [`Error::Partial`] and [`Error::Internal`] it is certain that nothing was
/// changed in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The deadline passed. The request may have happened, or may yet.
    Timeout,
    /// Too many requests, or bytes of requests, are in flight.
    Overloaded,
    /// The storage was stopped before the request was sent, or is not running.
    Stopped,
    /// The caller cancelled the request before it was sent.
    Cancelled,
    /// The request may have reached Redis; its answer never came.
    Unknown(Why),
    /// Redis has been away for longer than requests may wait.
    Unavailable(Why),
    /// There is no such session.
    NotFound,
    /// Nothing was stored for a client without a session.
    NoSession,
    /// The session was claimed and the request named no epoch.
    Fenced,
    /// The session was claimed again since; this is the epoch now.
    StaleEpoch(u64),
    /// The client's queue holds as many messages as it may.
    QueueFull,
    /// Redis refused a part of the operation, as it does where a key of ours holds a foreign value.
    Partial(String),
    /// Some of the clients of a batch failed, each for its own reason.
    PartialBatch(Vec<(Vec<u8>, Error)>),
    /// A stored value is not what this library stores.
    Undecodable {
        /// The message's id, where it is a message.
        message_id: Option<Vec<u8>>,
        /// What is wrong with it.
        reason: String,
    },
    /// Redis answered with an error: its code (`OOM`, `NOPERM`, …) and its text.
    Redis {
        /// The first word of the answer.
        code: String,
        /// What follows it.
        text: String,
    },
    /// The write was done, but did not reach as many copies as its level of durability asks for.
    NotDurable(Reached),
    /// The server can't do what the request's level of durability asks for.
    Unsupported(String),
    /// The connection's own state can't be changed through a pool that callers share.
    NotAllowed(String),
    /// A defect of this library.
    Internal(String),
}

/// How many copies a write is known to have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// So many replicas (`WAIT`).
    Replicas(u32),
    /// The append-only files of the server itself (0 or 1) and of so many replicas (`WAITAOF`).
    Aof {
        /// The server itself.
        local: u32,
        /// Replicas.
        replicas: u32,
    },
}

/// What is wrong with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The first connection is still being made.
    Connecting,
    /// Nothing listens at the address.
    Refused,
    /// No connection within `connect_timeout`.
    ConnectTimeout,
    /// The server's name has no address.
    NameNotFound(String),
    /// The server closed the connection.
    Closed,
    /// The server did not answer for seconds.
    Hung,
    /// User name or password are wrong.
    WrongPassword(String),
    /// The user may not do what is needed.
    NoPermission(String),
    /// The server is loading its data.
    Loading,
    /// The server refuses more clients.
    TooManyClients,
    /// The server is no master, though it should be: a fail-over is under way.
    NotMaster,
    /// No sentinel knows a master of this name.
    UnknownMaster(String),
    /// The cluster does not serve the slot.
    ClusterDown(String),
    /// The server answered the set-up with another error.
    Server(String),
    /// The bytes received are not RESP.
    Protocol(String),
    /// The operating system's error.
    Io(String),
    /// The storage was stopped.
    Stopped,
    /// The caller cancelled.
    Cancelled,
    /// The data in Redis has a layout that this version does not know.
    Layout(String),
    /// The connection can't be encrypted.
    Tls {
        /// Whose fault it is.
        kind: TlsFailure,
        /// What is wrong and which setting is about it.
        text: String,
    },
}

/// What keeps a connection from being encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFailure {
    /// No trusted authority has signed the server's certificate.
    UnknownCa,
    /// The server's certificate is for another host.
    WrongHost,
    /// The server's certificate has expired.
    Expired,
    /// The server's certificate is not valid yet.
    NotYetValid,
    /// The server's certificate is unfit in another way.
    BadCertificate,
    /// The server wants a certificate of this client.
    ClientCertificateRequired,
    /// The server refuses this client's certificate.
    ClientCertificateRefused,
    /// The server does not speak TLS.
    NotTls,
    /// Anything else, such as no cipher in common.
    HandshakeFailed,
}

impl Error {
    /// The error for an error reply of Redis.
    pub fn from_reply(reply: &[u8]) -> Error {
        let reply = String::from_utf8_lossy(reply);
        let (code, text) = reply.split_once(' ').unwrap_or((&reply, ""));
        Error::Redis {
            code: code.to_owned(),
            text: text.to_owned(),
        }
    }

    /// What it is for an operation of which another part, or an earlier step, was done: no error is left that
    /// says that nothing was changed.
    pub fn once_begun(self) -> Error {
        match self {
            Error::Unavailable(why) => Error::Unknown(why),
            Error::Stopped => Error::Unknown(Why::Stopped),
            Error::Cancelled => Error::Unknown(Why::Cancelled),
            other => other,
        }
    }

    /// The defect that a reply of an unexpected shape is.
    pub fn unexpected_reply(operation: &str) -> Error {
        Error::Internal(format!("{operation}: unexpected reply"))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Connecting => f.write_str("still connecting"),
            Why::Refused => f.write_str("connection refused"),
            Why::ConnectTimeout => f.write_str("no connection within connect_timeout"),
            Why::NameNotFound(name) => write!(f, "{name} has no address"),
            Why::Closed => f.write_str("the server closed the connection"),
            Why::Hung => f.write_str("the server does not answer"),
            Why::WrongPassword(text) => write!(f, "authentication failed: {text}"),
            Why::NoPermission(text) => write!(f, "permission denied: {text}"),
            Why::Loading => f.write_str("the server is loading its data"),
            Why::TooManyClients => f.write_str("the server refuses more clients"),
            Why::NotMaster => f.write_str("the server is not the master"),
            Why::UnknownMaster(name) => write!(f, "no sentinel knows a master named {name}"),
            Why::ClusterDown(text) => write!(f, "the cluster is down: {text}"),
            Why::Server(text) => write!(f, "the server answered: {text}"),
            Why::Protocol(text) => write!(f, "not RESP: {text}"),
            Why::Io(text) => f.write_str(text),
            Why::Stopped => f.write_str("the storage was stopped"),
            Why::Cancelled => f.write_str("cancelled"),
            Why::Layout(text) | Why::Tls { text, .. } => f.write_str(text),
        }
    }
}
