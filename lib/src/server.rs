//! What a server says of itself, and what about it puts data at risk.

use crate::config::Persistence;

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
        }
    }

    /// What an operator should know: one sentence each.
    pub fn warnings(&self, expected: &Persistence) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(version) = &self.version {
            let major = version
                .split('.')
                .next()
                .and_then(|it| it.parse::<u32>().ok());
            if major.is_some_and(|major| major < 5) {
                warnings.push(format!(
                    "Redis {version} is older than 5.0, the oldest that is supported"
                ));
            }
        }
        if let Some(policy) = &self.maxmemory_policy {
            if policy != "noeviction" {
                warnings.push(format!(
                    "maxmemory-policy is {policy}: when memory is short Redis deletes sessions and messages; set noeviction"
                ));
            }
        }
        if expected.aof_enabled && self.aof_enabled == Some(false) {
            warnings.push(
                "the server writes no append-only file: a restart of Redis loses what came after its last snapshot (persistence.aof_enabled = false silences this)".into(),
            );
        }
        if expected.rdb_enabled && self.rdb_ok == Some(false) {
            warnings.push("the server's last RDB snapshot failed".into());
        }
        if self.role.as_deref() == Some("slave") {
            warnings.push("the server is a replica: writes will be refused".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn an_evicting_ancient_server_without_aof_is_warned_of() {
        let info = "# Server\r\nredis_version:4.0.9\r\nrole:slave\r\nmaxmemory:100\r\n\
                    maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nrdb_last_bgsave_status:err\r\n";
        let report = ServerReport::from_info(info);
        assert_eq!(report.maxmemory, 100);
        let persistence = Config::default().persistence;
        let warnings = report.warnings(&persistence);
        for word in [
            "4.0.9",
            "allkeys-lru",
            "append-only",
            "snapshot failed",
            "replica",
        ] {
            assert!(
                warnings.iter().any(|it| it.contains(word)),
                "{word}: {warnings:?}"
            );
        }
        assert!(ServerReport::default().warnings(&persistence).is_empty());
    }
}
