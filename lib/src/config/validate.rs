//! From the untyped tree to a [`Config`]: every key, its default, its range, and what cannot stand
//! together.

use std::time::Duration;

use super::error::{ConfigError, ErrorKind};
use super::section::{quote, Fault, Section};
use super::value::Value;
use super::{
    password, server, text, units, Config, Limits, Persistence, Redis, Server, Ssl, Topology,
};

/// The key around everything, which may be left out.
pub(super) const ROOT: &str = "redis_storage";

/// The keys at the top of a tree.
pub(super) const KEYS: [&str; 6] = [
    ROOT,
    "enable",
    "key_prefix",
    "redis",
    "persistence",
    "limits",
];

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

impl Config {
    /// Validates a tree, with or without the key `redis_storage` around it.
    ///
    /// A password that is named as a file is read here.
    ///
    /// # Errors
    /// Every fault of the tree, not only the first; none of them holds a secret.
    pub fn from_value(tree: &Value) -> Result<Config, Vec<ConfigError>> {
        let mut outer = Section::new("", Some(tree));
        if tree.get(ROOT).is_none() {
            return storage(outer);
        }
        let inner = outer.value(ROOT);
        let mut errors = outer.finish();
        match storage(Section::new("", inner)) {
            Ok(config) if errors.is_empty() => Ok(config),
            Ok(_) => Err(errors),
            Err(more) => {
                errors.extend(more);
                Err(errors)
            }
        }
    }

    /// As [`Config::from_value`], for a map that may also hold the keys of the section `redis`
    /// directly, beside the other sections.
    ///
    /// # Errors
    /// As [`Config::from_value`]; a key of that section is named with it: `redis.servers`.
    pub fn from_pool_value(tree: &Value) -> Result<Config, Vec<ConfigError>> {
        let Value::Map(pairs) = tree else {
            return Config::from_value(tree);
        };
        if tree.get(ROOT).is_some() || tree.get("redis").is_some() {
            return Config::from_value(tree);
        }
        let (mut sections, redis): (Vec<_>, Vec<_>) = pairs
            .iter()
            .cloned()
            .partition(|(key, _)| KEYS.contains(&key.as_str()));
        sections.push(("redis".to_owned(), Value::Map(redis)));
        Config::from_value(&Value::Map(sections))
    }
}

fn storage(mut section: Section) -> Result<Config, Vec<ConfigError>> {
    let default = Config::default();
    let enable = section.read("enable", default.enable, units::boolean);
    let key_prefix = section.read("key_prefix", default.key_prefix, text::key_prefix);
    let redis = redis(section.section("redis"), default.redis);
    let persistence = persistence(section.section("persistence"), default.persistence);
    let limits = limits(section.section("limits"), default.limits);

    let mut errors = section.finish();
    let config = Config {
        enable: enable.unwrap_or_default(),
        key_prefix: key_prefix.unwrap_or_default(),
        redis: collect(redis, &mut errors),
        persistence: collect(persistence, &mut errors),
        limits: collect(limits, &mut errors),
    };
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(errors)
    }
}

/// What a section was read to, faulty keys at their defaults, and its faults.
type Read<T> = (T, Vec<ConfigError>);

fn collect<T>((section, more): Read<T>, errors: &mut Vec<ConfigError>) -> T {
    errors.extend(more);
    section
}

fn redis(mut section: Section, default: Redis) -> Read<Redis> {
    let named = section.value("type").is_some();
    let topology = section.read("type", default.topology, topology);
    let aliased = section.read(
        "redis_type",
        topology.unwrap_or(default.topology),
        self::topology,
    );
    if named && section.value("redis_type").is_some() {
        let fault = Fault::new(
            ErrorKind::Conflict,
            "type as well",
            "one of type and redis_type",
        );
        section.report("redis_type", fault);
    }
    let topology = topology.and(aliased);

    let servers = match section.value("servers").map(server::servers) {
        None => Some(default.servers),
        Some(Ok(servers)) => Some(servers),
        Some(Err(faults)) => {
            for (index, fault) in faults {
                let key = index.map_or("servers".to_owned(), |index| format!("servers[{index}]"));
                section.report(&key, fault);
            }
            None
        }
    };
    let sentinel = section.read("sentinel", None, text::master_name);
    let pool_size = section.read("pool_size", default.pool_size, |value| {
        units::integer(value, 1..=1024).map(|size| size as usize)
    });
    let database = section.read("database", default.database, |value| {
        units::integer(value, 0..=65_535).map(|number| number as u32)
    });
    let username = section.read("username", None, text::user_name);
    let password = section.read("password", None, password::password);
    let connect_timeout = section.read("connect_timeout", default.connect_timeout, |value| {
        units::timeout(value, MILLISECOND..=HOUR)
    });
    let request_timeout = section.read("request_timeout", default.request_timeout, |value| {
        units::timeout(value, MILLISECOND..=HOUR)
    });
    let outage_grace = section.read("outage_grace", default.outage_grace, |value| {
        units::timeout(value, Duration::ZERO..=HOUR)
    });
    let (ssl, ssl_errors) = ssl(section.section("ssl"));

    // A key that is faulty by itself takes no part in these: one mistake, one error.
    if let (Some(Some(_)), Some(None)) = (&username, &password) {
        let fault = Fault::new(
            ErrorKind::Missing,
            "no password, though there is a username",
            "the user's password (any, for a user with nopass)",
        );
        section.report("password", fault);
    }
    if let Some(topology) = topology {
        if let Some(fault) = servers
            .as_ref()
            .and_then(|servers| check_servers(topology, servers, ssl.enable))
        {
            section.report("servers", fault);
        }
        if topology == Topology::Sentinel && sentinel == Some(None) {
            let fault = Fault::new(
                ErrorKind::Missing,
                "no name",
                "the master's name, with type = sentinel",
            );
            section.report("sentinel", fault);
        }
        if let (Topology::Cluster, Some(number @ 1..)) = (topology, database) {
            let fault = Fault::new(
                ErrorKind::Conflict,
                number.to_string(),
                "0: a cluster has this database alone",
            );
            section.report("database", fault);
        }
    }

    let redis = Redis {
        topology: topology.unwrap_or(default.topology),
        servers: servers.unwrap_or_default(),
        sentinel: sentinel.flatten(),
        pool_size: pool_size.unwrap_or_default(),
        database: database.unwrap_or_default(),
        username: username.flatten(),
        password: password.flatten(),
        connect_timeout: connect_timeout.unwrap_or_default(),
        request_timeout: request_timeout.unwrap_or_default(),
        outage_grace: outage_grace.unwrap_or_default(),
        ssl,
    };
    let mut errors = section.finish();
    errors.extend(ssl_errors);
    (redis, errors)
}

fn topology(value: &Value) -> Result<Topology, Fault> {
    const EXPECTED: &str = "single, sentinel or cluster";
    match text::string(value, EXPECTED)? {
        "single" => Ok(Topology::Single),
        "sentinel" => Ok(Topology::Sentinel),
        "cluster" => Ok(Topology::Cluster),
        other => Err(Fault::bad(quote(other), EXPECTED)),
    }
}

fn check_servers(topology: Topology, servers: &[Server], tls: bool) -> Option<Fault> {
    let unix = servers
        .iter()
        .find(|server| matches!(server, Server::Unix(_)));
    match (topology, unix) {
        (Topology::Single, _) if servers.len() > 1 => Some(Fault::new(
            ErrorKind::Conflict,
            format!("{} servers", servers.len()),
            "one server, with type = single",
        )),
        (Topology::Single, Some(socket)) if tls => Some(Fault::new(
            ErrorKind::Conflict,
            quote(&socket.to_string()),
            "host:port, with ssl.enable = true: there is no TLS on a unix socket",
        )),
        (Topology::Sentinel | Topology::Cluster, Some(socket)) => Some(Fault::new(
            ErrorKind::Conflict,
            quote(&socket.to_string()),
            format!("host:port only, with type = {}", topology.as_str()),
        )),
        _ => None,
    }
}

fn ssl(mut section: Section) -> Read<Ssl> {
    let enable = section.read("enable", false, units::boolean);
    let cacertfile = section.read("cacertfile", None, text::path);
    let certfile = section.read("certfile", None, text::path);
    let keyfile = section.read("keyfile", None, text::path);
    let missing = match (&certfile, &keyfile) {
        (Some(Some(_)), Some(None)) => {
            Some(("keyfile", "certfile alone", "the key of that certificate"))
        }
        (Some(None), Some(Some(_))) => {
            Some(("certfile", "keyfile alone", "the certificate of that key"))
        }
        _ => None,
    };
    if let Some((key, found, expected)) = missing {
        section.report(key, Fault::new(ErrorKind::Missing, found, expected));
    }
    let ssl = Ssl {
        enable: enable.unwrap_or_default(),
        cacertfile: cacertfile.flatten(),
        certfile: certfile.flatten(),
        keyfile: keyfile.flatten(),
    };
    (ssl, section.finish())
}

fn persistence(mut section: Section, default: Persistence) -> Read<Persistence> {
    let persistence = Persistence {
        session_ttl: section
            .read("session_ttl", default.session_ttl, units::ttl)
            .unwrap_or(default.session_ttl),
        message_ttl: section
            .read("message_ttl", default.message_ttl, units::ttl)
            .unwrap_or(default.message_ttl),
        rdb_enabled: section
            .read("rdb_enabled", default.rdb_enabled, units::boolean)
            .unwrap_or_default(),
        aof_enabled: section
            .read("aof_enabled", default.aof_enabled, units::boolean)
            .unwrap_or_default(),
        message_index: section
            .read("message_index", default.message_index, units::boolean)
            .unwrap_or_default(),
    };
    (persistence, section.finish())
}

fn limits(mut section: Section, default: Limits) -> Read<Limits> {
    let max_inflight = section.read("max_inflight", default.max_inflight, |value| {
        units::integer(value, 1..=10_000_000).map(|count| count as usize)
    });
    let max_inflight_bytes =
        section.read("max_inflight_bytes", default.max_inflight_bytes, |value| {
            units::byte_size(value, 1..=1 << 40).map(|bytes| bytes as usize)
        });
    let limits = Limits {
        max_inflight: max_inflight.unwrap_or_default(),
        max_inflight_bytes: max_inflight_bytes.unwrap_or_default(),
    };
    (limits, section.finish())
}
