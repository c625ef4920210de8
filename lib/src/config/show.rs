//! The effective configuration as a tree.

use std::time::Duration;

use super::secret::{Secret, MASK};
use super::units::{format_duration, format_size};
use super::value::Value;
use super::{Config, Limits, Mqtt, PemFile, Persistence, Redis, Routes, Ssl, Ttl};

impl Config {
    /// The effective configuration, defaults included, for status and output. Passwords show as
    /// [`MASK`]; with them put back, [`Config::from_value`] gives this configuration.
    pub fn redacted(&self) -> Value {
        map([
            ("enable", Value::Bool(self.enable)),
            ("key_prefix", text(&self.key_prefix)),
            ("redis", redis(&self.redis)),
            ("persistence", persistence(&self.persistence)),
            ("routes", routes(&self.routes)),
            ("mqtt", mqtt(&self.mqtt)),
            ("limits", limits(&self.limits)),
        ])
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
        ("sentinel", optional(&redis.sentinel)),
        ("pool_size", Value::Int(redis.pool_size as i64)),
        ("database", Value::Int(redis.database.into())),
        ("username", optional(&redis.username)),
        ("password", secret(&redis.password)),
        ("connect_timeout", duration(redis.connect_timeout)),
        ("request_timeout", duration(redis.request_timeout)),
        ("outage_grace", duration(redis.outage_grace)),
        ("ssl", ssl(&redis.ssl)),
        ("sentinel_username", optional(&redis.sentinel_username)),
        ("sentinel_password", secret(&redis.sentinel_password)),
        ("sentinel_ssl", ssl(&redis.sentinel_ssl)),
    ])
}

fn ssl(ssl: &Ssl) -> Value {
    map([
        ("enable", Value::Bool(ssl.enable)),
        ("cacertfile", path(&ssl.cacertfile)),
        ("certfile", path(&ssl.certfile)),
        ("keyfile", path(&ssl.keyfile)),
        ("verify", text(ssl.verify.as_str())),
        (
            "server_name_indication",
            text(ssl.server_name_indication.as_str()),
        ),
    ])
}

fn persistence(persistence: &Persistence) -> Value {
    map([
        ("session_ttl", ttl(persistence.session_ttl)),
        ("message_ttl", ttl(persistence.message_ttl)),
        ("rdb_enabled", Value::Bool(persistence.rdb_enabled)),
        ("aof_enabled", Value::Bool(persistence.aof_enabled)),
        ("message_index", Value::Bool(persistence.message_index)),
        ("durability", Value::Str(persistence.durability.to_string())),
    ])
}

fn routes(routes: &Routes) -> Value {
    map([
        ("when_out_of_sync", text(routes.when_out_of_sync.as_str())),
        ("lease_timeout", duration(routes.lease_timeout)),
    ])
}

fn mqtt(mqtt: &Mqtt) -> Value {
    map([("when_unavailable", text(mqtt.when_unavailable.as_str()))])
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

fn optional(text: &Option<String>) -> Value {
    Value::Str(text.clone().unwrap_or_default())
}

fn secret(secret: &Option<Secret>) -> Value {
    text(if secret.is_some() { MASK } else { "" })
}

fn path(file: &Option<PemFile>) -> Value {
    Value::Str(
        file.as_ref()
            .map(|file| file.path.display().to_string())
            .unwrap_or_default(),
    )
}
