//! The configuration: one validated struct, whatever it was read from.
//!
//! A HOCON file, an Erlang map and `sys.config` all become a [`Value`] tree, and
//! [`Config::from_value`] is the only way from there. `docs/configuration.md` documents every key.

mod durability;
mod error;
mod explain;
mod file;
mod hocon;
mod mqtt;
mod password;
pub(crate) mod pem;
mod routes;
mod scan;
mod secret;
mod section;
mod server;
mod show;
mod ssl;
mod substitutions;
mod suggest;
mod text;
mod units;
mod validate;
mod value;

use std::time::Duration;

pub use durability::Durability;
pub use error::{ConfigError, ErrorKind};
pub use mqtt::{Mqtt, WhenUnavailable};
pub use routes::{Routes, WhenOutOfSync};
pub use secret::{Secret, MASK};
pub use server::{Server, DEFAULT_PORT};
pub use ssl::{PemFile, ServerNameIndication, Ssl, Verify};
pub use value::{Value, MAX_DEPTH};

/// A valid configuration. Two that are equal need no change of anything that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether the storage takes part at all.
    pub enable: bool,
    /// Stands before every key.
    pub key_prefix: String,
    /// How Redis is reached.
    pub redis: Redis,
    /// How long data lives, and what the server is expected to persist.
    pub persistence: Persistence,
    /// How routes are kept in memory.
    pub routes: Routes,
    /// What the plugin does in a broker.
    pub mqtt: Mqtt,
    /// Bounds of the work in flight.
    pub limits: Limits,
}

/// How Redis is reached: the section `redis`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// The key `type`.
    pub topology: Topology,
    /// The servers, at least one; exactly one for [`Topology::Single`].
    pub servers: Vec<Server>,
    /// The master's name; always there with [`Topology::Sentinel`], unused otherwise.
    pub sentinel: Option<String>,
    /// Upper bound of connections, 1 to 1,024.
    pub pool_size: usize,
    /// The number of the database; 0 with [`Topology::Cluster`].
    pub database: u32,
    /// The ACL user; never without a password.
    pub username: Option<String>,
    /// The password, already read where a file was named.
    pub password: Option<Secret>,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// The deadline of a call that sets none of its own.
    pub request_timeout: Duration,
    /// How long requests wait for a Redis that has gone away before they fail at once.
    pub outage_grace: Duration,
    /// TLS to the servers that hold the data.
    pub ssl: Ssl,
    /// The sentinels' own user; never without a password. Unused with other topologies, as all of
    /// the sentinels' settings are.
    pub sentinel_username: Option<String>,
    /// The sentinels' own password.
    pub sentinel_password: Option<Secret>,
    /// TLS to the sentinels.
    pub sentinel_ssl: Ssl,
}

/// How the servers belong together: the key `redis.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topology {
    /// One server.
    Single,
    /// A master that sentinels watch.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

impl Topology {
    /// The value of `redis.type` that names this.
    pub fn as_str(self) -> &'static str {
        match self {
            Topology::Single => "single",
            Topology::Sentinel => "sentinel",
            Topology::Cluster => "cluster",
        }
    }
}

/// How long data lives, and what the server is expected to persist: the section `persistence`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persistence {
    /// How long a session lives after its last save.
    pub session_ttl: Ttl,
    /// How long a message lives after it was stored.
    pub message_ttl: Ttl,
    /// Whether the server is expected to write RDB snapshots.
    pub rdb_enabled: bool,
    /// Whether the server is expected to write an append-only file.
    pub aof_enabled: bool,
    /// Whether `sync:messages` is kept.
    pub message_index: bool,
    /// What a write waits for that asks for no level of its own.
    pub durability: Durability,
}

/// A time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ttl {
    /// 1 to 4,294,967,295 seconds.
    Seconds(u32),
    /// Never expires.
    Infinity,
}

impl Ttl {
    /// The seconds, or `None` for what never expires.
    pub fn seconds(self) -> Option<u32> {
        match self {
            Ttl::Seconds(seconds) => Some(seconds),
            Ttl::Infinity => None,
        }
    }
}

/// Bounds of the work in flight: the section `limits`. Over either, a request is refused at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight.
    pub max_inflight: usize,
    /// Bytes of the requests in flight.
    pub max_inflight_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: Ttl = Ttl::Seconds(86_400);
        Config {
            enable: true,
            key_prefix: String::new(),
            redis: Redis {
                topology: Topology::Single,
                servers: vec![Server::Tcp {
                    host: "127.0.0.1".to_owned(),
                    port: DEFAULT_PORT,
                }],
                sentinel: None,
                pool_size: 64,
                database: 0,
                username: None,
                password: None,
                connect_timeout: Duration::from_secs(5),
                request_timeout: Duration::from_secs(5),
                outage_grace: Duration::from_secs(3),
                ssl: Ssl::default(),
                sentinel_username: None,
                sentinel_password: None,
                sentinel_ssl: Ssl::default(),
            },
            persistence: Persistence {
                session_ttl: DAY,
                message_ttl: DAY,
                rdb_enabled: true,
                aof_enabled: true,
                message_index: true,
                durability: Durability::None,
            },
            routes: Routes::default(),
            mqtt: Mqtt::default(),
            limits: Limits {
                max_inflight: 100_000,
                max_inflight_bytes: 128 * 1024 * 1024,
            },
        }
    }
}
