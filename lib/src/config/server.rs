//! Where a Redis server listens.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::secret::MASK;
use super::section::{quote, Fault};
use super::value::Value;

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

const EXPECTED: &str = "host:port, [IPv6]:port or unix:///path";

/// The longest path that a unix socket's address holds on Linux, without its final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// Reads `redis.servers`: one text with entries between commas, or a list with one entry each. A
/// path with a comma needs the list. A fault carries the index of its entry, from 0.
pub(super) fn servers(value: &Value) -> Result<Vec<Server>, Vec<(Option<usize>, Fault)>> {
    let entries: Vec<Result<Server, Fault>> = match value {
        Value::Str(text) if text.trim().is_empty() => Vec::new(),
        // The comma may stand in a password that was pasted with its URL: `redis://u:a,b@host`.
        Value::Str(text) if text.contains('@') => text
            .split(',')
            .map(|entry| {
                server(entry).map_err(|fault| Fault {
                    found: MASK.to_owned(),
                    ..fault
                })
            })
            .collect(),
        Value::Str(text) => text.split(',').map(server).collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::Str(text) => server(text),
                other => Err(Fault::wrong_type(other, EXPECTED)),
            })
            .collect(),
        other => {
            let expected = format!("{EXPECTED}; several in a list, or in a string with commas");
            return Err(vec![(None, Fault::wrong_type(other, expected))]);
        }
    };
    if entries.is_empty() {
        return Err(vec![(None, Fault::bad("no server", EXPECTED))]);
    }
    let mut servers = Vec::new();
    let mut faults = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        match entry {
            Ok(server) => servers.push(server),
            Err(fault) => faults.push((Some(index), fault)),
        }
    }
    if faults.is_empty() {
        Ok(servers)
    } else {
        Err(faults)
    }
}

fn server(entry: &str) -> Result<Server, Fault> {
    let entry = entry.trim();
    let parsed = match entry.strip_prefix("unix://") {
        Some(path) => unix(path),
        None => tcp(entry),
    };
    parsed.map_err(|expected| Fault::bad(shown(entry), expected))
}

/// The entry as an error may show it: whoever pastes a URL with a password does not find it in the
/// log.
fn shown(entry: &str) -> String {
    match entry.split_once("://") {
        _ if entry.is_empty() => "an empty entry".to_owned(),
        _ if entry.contains('@') => MASK.to_owned(),
        Some((scheme, _)) if scheme != "unix" => quote(&format!("{scheme}://{MASK}")),
        _ => quote(entry),
    }
}

fn unix(path: &str) -> Result<Server, &'static str> {
    if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
        Err("unix:// and an absolute path: unix:///path")
    } else if path.len() > LONGEST_SOCKET_PATH {
        Err("a socket's path of at most 107 bytes")
    } else {
        Ok(Server::Unix(PathBuf::from(path)))
    }
}

fn tcp(entry: &str) -> Result<Server, &'static str> {
    if entry.contains("://") || entry.contains('@') {
        return Err(
            "host:port, without scheme or user; username and password are keys of their own",
        );
    }
    let (host, port) = match entry.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .ok_or("a closing bracket: [IPv6]:port")?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| "an IPv6 address between the brackets")?;
            (
                host,
                port.strip_prefix(':').or(port.is_empty().then_some("6379")),
            )
        }
        None if entry.parse::<Ipv6Addr>().is_ok() => {
            return Err("brackets around an IPv6 address: [IPv6]:port")
        }
        None => match entry.split_once(':') {
            Some((host, port)) => (named_host(host)?, Some(port)),
            None => (named_host(entry)?, Some("6379")),
        },
    };
    let port = port.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    match port.and_then(|digits| digits.parse().ok()) {
        None | Some(0) => Err("a port from 1 to 65535 after the colon"),
        Some(port) => Ok(Server::Tcp {
            host: host.to_owned(),
            port,
        }),
    }
}

fn named_host(host: &str) -> Result<&str, &'static str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (1..=253).contains(&host.len()) && host.chars().all(legal) {
        Ok(host)
    } else {
        Err(EXPECTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(entry: &str) -> Result<String, String> {
        server(entry)
            .map(|server| server.to_string())
            .map_err(|fault| fault.expected)
    }

    #[test]
    fn reads_every_form_of_an_entry() {
        for (entry, shown) in [
            ("127.0.0.1:6379", "127.0.0.1:6379"),
            (" redis-1.example_x.org ", "redis-1.example_x.org:6379"),
            ("[::1]:7000", "[::1]:7000"),
            ("[fe80::1]", "[fe80::1]:6379"),
            ("unix:///run/redis,x.sock", "unix:///run/redis,x.sock"),
        ] {
            assert_eq!(one(entry).as_deref(), Ok(shown));
        }
    }

    #[test]
    fn refuses_malformed_entries() {
        let long = format!("unix:///{}", "x".repeat(107));
        for entry in [
            "",
            ":6379",
            "h:",
            "h:0",
            "h:65536",
            "h:+1",
            "h:x",
            "a b",
            "::1",
            "[::1",
            "[::1]7",
            "[x]:1",
            "h:1:2",
            "unix://",
            "unix:///",
            "unix://x",
            "unix:/x",
            "redis://h:1",
            "u@h:1",
            "h\0:1",
            "h/1",
            long.as_str(),
        ] {
            assert!(one(entry).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn hides_passwords_pasted_with_a_url() {
        for value in [
            Value::from("redis://app:hunter2@host:1"),
            Value::from("app:hunter,2@host:1"),
            Value::from("redis://:hunter2"),
            Value::Array(vec![Value::from("app:hunter,2@host:1")]),
        ] {
            let faults = servers(&value).unwrap_err();
            assert!(faults
                .iter()
                .all(|(_, fault)| !fault.found.contains("hunter")));
        }
    }
}
