//! What a server says of itself, and what about it puts data at risk.

use crate::config::{Config, Durability, Topology};
use crate::error::Why;

/// What matters here of the answer to `INFO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// `redis_version` (of Valkey: the version of Redis that it is compatible with).
    pub version: Option<String>,
    /// `role`.
    pub role: Option<String>,
    /// `maxmemory_policy`.
    pub maxmemory_policy: Option<String>,
    /// `maxmemory`, bytes; 0 is no limit.
    pub maxmemory: u64,
    /// `aof_enabled`.
    pub aof_enabled: Option<bool>,
    /// Whether the last RDB snapshot went well.
    pub rdb_ok: Option<bool>,
    /// Whether it makes RDB snapshots by itself; `None` where the user may not ask.
    pub rdb_enabled: Option<bool>,
    /// `connected_slaves`: replicas that are there now.
    pub replicas: Option<u32>,
    /// By how many bytes the replica that has received least is behind; `None` without replicas.
    pub replica_lag: Option<u64>,
}

/// What an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// For machines.
    pub kind: WarningKind,
    /// One sentence.
    pub text: String,
}

/// What a [`Warning`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WarningKind {
    /// The server is older than 5.0.
    OldVersion,
    /// The server may delete data when memory is short.
    EvictingPolicy,
    /// The server writes no append-only file.
    NoAof,
    /// The server makes no snapshots.
    NoRdb,
    /// The last snapshot failed.
    RdbFailed,
    /// The server is a replica.
    IsReplica,
    /// There are fewer replicas than `persistence.durability` asks for.
    FewReplicas,
    /// The server can't do what `persistence.durability` asks for.
    DurabilityUnsupported,
    /// Nobody checks who answers.
    Unverified,
    /// No sentinel, or no node of the cluster, can be asked who serves what.
    Unwatched,
}

impl WarningKind {
    /// The kind's name, as `status/0` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            WarningKind::OldVersion => "old_version",
            WarningKind::EvictingPolicy => "evicting_policy",
            WarningKind::NoAof => "no_aof",
            WarningKind::NoRdb => "no_rdb",
            WarningKind::RdbFailed => "rdb_failed",
            WarningKind::IsReplica => "is_replica",
            WarningKind::FewReplicas => "few_replicas",
            WarningKind::DurabilityUnsupported => "durability_unsupported",
            WarningKind::Unverified => "unverified",
            WarningKind::Unwatched => "unwatched",
        }
    }
}

impl Warning {
    /// Nobody can be asked who serves what.
    pub(crate) fn unwatched(why: &Why) -> Self {
        Warning {
            kind: WarningKind::Unwatched,
            text: format!(
                "nobody can be asked who serves what ({why}): a fail-over would not be noticed"
            ),
        }
    }
}

impl ServerReport {
    /// Reads the answer to `INFO`.
    pub fn from_info(info: &str) -> Self {
        let field = |name: &str| {
            info.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then(|| value.trim().to_owned())
            })
        };
        ServerReport {
            version: field("redis_version"),
            role: field("role"),
            maxmemory_policy: field("maxmemory_policy"),
            maxmemory: field("maxmemory")
                .and_then(|it| it.parse().ok())
                .unwrap_or(0),
            aof_enabled: field("aof_enabled").map(|it| it == "1"),
            rdb_ok: field("rdb_last_bgsave_status").map(|it| it == "ok"),
            rdb_enabled: None,
            replicas: field("connected_slaves").and_then(|it| it.parse().ok()),
            replica_lag: replica_lag(info),
        }
    }

    /// Takes in what `INFO replication` says now.
    pub fn note_replication(&mut self, info: &str) {
        let now = ServerReport::from_info(info);
        self.role = now.role;
        self.replicas = now.replicas;
        self.replica_lag = now.replica_lag;
    }

    /// The version's first two numbers.
    fn release(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.as_ref()?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// What the server would need for a level of durability.
    pub fn lacks(&self, level: Durability) -> Option<String> {
        let Durability::Aof { local, .. } = level else {
            return None;
        };
        if self.release().is_some_and(|release| release < (7, 2)) {
            let version = self.version.as_deref().unwrap_or_default();
            return Some(format!(
                "{level} takes WAITAOF, of Redis 7.2; this is {version}"
            ));
        }
        (local > 0 && self.aof_enabled == Some(false))
            .then(|| format!("{level}: the server writes no append-only file"))
    }

    /// What an operator should know.
    pub fn warnings(&self, config: &Config) -> Vec<Warning> {
        let expected = &config.persistence;
        let mut warnings = Vec::new();
        let mut warn = |kind, text: String| warnings.push(Warning { kind, text });
        if let Some((major, _)) = self.release().filter(|release| *release < (5, 0)) {
            warn(
                WarningKind::OldVersion,
                format!("Redis {major} is older than 5.0, the oldest that is supported"),
            );
        }
        if let Some(policy) = self
            .maxmemory_policy
            .as_ref()
            .filter(|it| *it != "noeviction")
        {
            warn(
                WarningKind::EvictingPolicy,
                format!("maxmemory-policy is {policy}: when memory is short Redis deletes sessions and messages; set noeviction"),
            );
        }
        if expected.aof_enabled && self.aof_enabled == Some(false) {
            warn(
                WarningKind::NoAof,
                "the server writes no append-only file: a restart of Redis loses what came after its last snapshot (persistence.aof_enabled = false silences this)".into(),
            );
        }
        if expected.rdb_enabled && self.rdb_enabled == Some(false) {
            warn(
                WarningKind::NoRdb,
                "the server makes no RDB snapshots (persistence.rdb_enabled = false silences this)"
                    .into(),
            );
        }
        if expected.rdb_enabled && self.rdb_ok == Some(false) {
            warn(
                WarningKind::RdbFailed,
                "the server's last RDB snapshot failed".into(),
            );
        }
        if self.role.as_deref() == Some("slave") && config.redis.topology != Topology::Cluster {
            warn(
                WarningKind::IsReplica,
                "the server is a replica: writes will be refused".into(),
            );
        }
        let level = expected.durability;
        if let (Some(wanted), Some(found)) = (level.replicas(), self.replicas) {
            if found < wanted {
                warn(
                    WarningKind::FewReplicas,
                    format!("persistence.durability is {level}, and the server has {found} replicas: writes will answer not_durable"),
                );
            }
        }
        if let Some(what) = self.lacks(level) {
            warn(WarningKind::DurabilityUnsupported, what);
        }
        if config.redis.ssl.is_unverified() {
            warn(
                WarningKind::Unverified,
                "redis.ssl.verify is verify_none: whoever stands between can read and change everything".into(),
            );
        }
        warnings
    }
}

/// `slave0:ip=127.0.0.1,port=6380,state=online,offset=1234,lag=0`
fn replica_lag(info: &str) -> Option<u64> {
    let written = info
        .lines()
        .find_map(|it| it.strip_prefix("master_repl_offset:"))?;
    let written: u64 = written.trim().parse().ok()?;
    let replicas = info.lines().filter(|line| line.starts_with("slave"));
    let received = replicas.filter_map(|line| {
        let (_, rest) = line.split_once(",offset=")?;
        rest.split(',').next()?.trim().parse::<u64>().ok()
    });
    received
        .map(|received| written.saturating_sub(received))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_slowest_replica_counts() {
        let info = "role:master\r\nconnected_slaves:2\r\n\
                    slave0:ip=127.0.0.1,port=1,state=online,offset=70,lag=0\r\n\
                    slave1:ip=127.0.0.1,port=2,state=online,offset=100,lag=1\r\n\
                    slave_read_only:1\r\nmaster_repl_offset:110\r\n";
        let mut report = ServerReport::default();
        report.note_replication(info);
        assert_eq!((report.replicas, report.replica_lag), (Some(2), Some(40)));
        report.note_replication("role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:110\r\n");
        assert_eq!((report.replicas, report.replica_lag), (Some(0), None));
    }

    #[test]
    fn an_evicting_ancient_server_without_aof_is_warned_of() {
        let info = "# Server\r\nredis_version:4.0.9\r\nrole:slave\r\nmaxmemory:100\r\n\
                    maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nrdb_last_bgsave_status:err\r\n";
        let report = ServerReport::from_info(info);
        assert_eq!(report.maxmemory, 100);
        let config = Config::default();
        let warnings = report.warnings(&config);
        for word in [
            "Redis 4",
            "allkeys-lru",
            "append-only",
            "snapshot failed",
            "replica",
        ] {
            assert!(
                warnings.iter().any(|it| it.text.contains(word)),
                "{word}: {warnings:?}"
            );
        }
        assert!(ServerReport::default().warnings(&config).is_empty());
    }
}
