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
    /// The connection's own state can't be changed through a pool that callers share.
    NotAllowed(String),
    /// A defect of this library.
    Internal(String),
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
            Why::Server(text) => write!(f, "the server answered: {text}"),
            Why::Protocol(text) => write!(f, "not RESP: {text}"),
            Why::Io(text) => f.write_str(text),
            Why::Stopped => f.write_str("the storage was stopped"),
            Why::Cancelled => f.write_str("cancelled"),
            Why::Layout(text) => f.write_str(text),
        }
    }
}
