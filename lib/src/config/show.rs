//! The effective configuration as a tree, and what this version supports of it.

use std::path::PathBuf;
use std::time::Duration;

use super::error::{ConfigError, ErrorKind};
use super::secret::MASK;
use super::units::{format_duration, format_size};
use super::value::Value;
use super::{Config, Limits, Persistence, Redis, Ssl, Topology, Ttl};

impl Config {
    /// The effective configuration, defaults included, for status and output. The password shows
    /// as [`MASK`]; with the password put back, [`Config::from_value`] gives this configuration.
    pub fn redacted(&self) -> Value {
        map([
            ("enable", Value::Bool(self.enable)),
            ("key_prefix", text(&self.key_prefix)),
            ("redis", redis(&self.redis)),
            ("persistence", persistence(&self.persistence)),
            ("limits", limits(&self.limits)),
        ])
    }

    /// Whether this version can run the configuration: a single server, without TLS.
    ///
    /// # Errors
    /// One of kind [`ErrorKind::Unsupported`] for each key that asks for more.
    pub fn check_supported(&self) -> Result<(), Vec<ConfigError>> {
        const ONLY: &str = "this version supports a single server without TLS";
        let unsupported = |path: &str, found: &str, expected: &str| {
            ConfigError::new(
                ErrorKind::Unsupported,
                path,
                found,
                format!("{expected}: {ONLY}"),
            )
        };
        let mut errors = Vec::new();
        if self.redis.topology != Topology::Single {
            errors.push(unsupported(
                "redis.type",
                self.redis.topology.as_str(),
                "single",
            ));
        }
        if self.redis.ssl.enable {
            errors.push(unsupported("redis.ssl.enable", "true", "false"));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }
}

fn redis(redis: &Redis) -> Value {
    let servers = redis
        .servers
        .iter()
        .map(|server| Value::Str(server.to_string()))
        .collect();
    map([
        ("type", text(redis.topology.as_str())),
        ("servers", Value::Array(servers)),
        (
            "sentinel",
            text(redis.sentinel.as_deref().unwrap_or_default()),
        ),
        ("pool_size", Value::Int(redis.pool_size as i64)),
        ("database", Value::Int(redis.database.into())),
        (
            "username",
            text(redis.username.as_deref().unwrap_or_default()),
        ),
        (
            "password",
            text(if redis.password.is_some() { MASK } else { "" }),
        ),
        ("connect_timeout", duration(redis.connect_timeout)),
        ("request_timeout", duration(redis.request_timeout)),
        ("outage_grace", duration(redis.outage_grace)),
        ("ssl", ssl(&redis.ssl)),
    ])
}

fn ssl(ssl: &Ssl) -> Value {
    map([
        ("enable", Value::Bool(ssl.enable)),
        ("cacertfile", path(&ssl.cacertfile)),
        ("certfile", path(&ssl.certfile)),
        ("keyfile", path(&ssl.keyfile)),
    ])
}

fn persistence(persistence: &Persistence) -> Value {
    map([
        ("session_ttl", ttl(persistence.session_ttl)),
        ("message_ttl", ttl(persistence.message_ttl)),
        ("rdb_enabled", Value::Bool(persistence.rdb_enabled)),
        ("aof_enabled", Value::Bool(persistence.aof_enabled)),
        ("message_index", Value::Bool(persistence.message_index)),
    ])
}

fn limits(limits: &Limits) -> Value {
    map([
        ("max_inflight", Value::Int(limits.max_inflight as i64)),
        (
            "max_inflight_bytes",
            Value::Str(format_size(limits.max_inflight_bytes as u64)),
        ),
    ])
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn duration(duration: Duration) -> Value {
    Value::Str(format_duration(duration))
}

fn ttl(ttl: Ttl) -> Value {
    match ttl {
        Ttl::Seconds(seconds) => duration(Duration::from_secs(seconds.into())),
        Ttl::Infinity => text("infinity"),
    }
}

fn path(path: &Option<PathBuf>) -> Value {
    text(
        &path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    )
}
