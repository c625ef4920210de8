//! From the untyped tree to a [`Config`]: every key, its default, its range, and what cannot stand
//! together.

use std::time::Duration;

use super::error::{ConfigError, ErrorKind};
use super::section::{quote, Fault, Section};
use super::value::Value;
use super::{
    durability, mqtt, password, routes, server, ssl, text, units, Config, Durability, Limits,
    Persistence, Redis, Secret, Server, Topology,
};

/// The key around everything, which may be left out.
pub(super) const ROOT: &str = "redis_storage";

/// The keys at the top of a tree.
pub(super) const KEYS: [&str; 8] = [
    ROOT,
    "enable",
    "key_prefix",
    "redis",
    "persistence",
    "routes",
    "mqtt",
    "limits",
];

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

impl Config {
    /// Validates a tree, with or without the key `redis_storage` around it.
    ///
    /// Files that hold passwords, certificates and keys are read here.
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
    let routes = routes::routes(section.section("routes"), default.routes);
    let mqtt = mqtt::mqtt(section.section("mqtt"), default.mqtt);
    let limits = limits(section.section("limits"), default.limits);

    let mut errors = section.finish();
    let config = Config {
        enable: enable.unwrap_or_default(),
        key_prefix: key_prefix.unwrap_or_default(),
        redis: collect(redis, &mut errors),
        persistence: collect(persistence, &mut errors),
        routes: collect(routes, &mut errors),
        mqtt: collect(mqtt, &mut errors),
        limits: collect(limits, &mut errors),
    };
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(errors)
    }
}

/// What a section was read to, faulty keys at their defaults, and its faults.
pub(super) type Read<T> = (T, Vec<ConfigError>);

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
    let (username, password) = login(&mut section, "username", "password");
    let connect_timeout = section.read("connect_timeout", default.connect_timeout, |value| {
        units::timeout(value, MILLISECOND..=HOUR)
    });
    let request_timeout = section.read("request_timeout", default.request_timeout, |value| {
        units::timeout(value, MILLISECOND..=HOUR)
    });
    let outage_grace = section.read("outage_grace", default.outage_grace, |value| {
        units::timeout(value, Duration::ZERO..=HOUR)
    });
    let (ssl, ssl_errors) = ssl::ssl(section.section("ssl"), true);
    let (sentinel_username, sentinel_password) =
        login(&mut section, "sentinel_username", "sentinel_password");
    let (sentinel_ssl, sentinel_ssl_errors) = ssl::ssl(
        section.section("sentinel_ssl"),
        topology == Some(Topology::Sentinel),
    );

    // A key that is faulty by itself takes no part in these: one mistake, one error.
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
        username,
        password,
        connect_timeout: connect_timeout.unwrap_or_default(),
        request_timeout: request_timeout.unwrap_or_default(),
        outage_grace: outage_grace.unwrap_or_default(),
        ssl,
        sentinel_username,
        sentinel_password,
        sentinel_ssl,
    };
    let mut errors = section.finish();
    errors.extend(ssl_errors);
    errors.extend(sentinel_ssl_errors);
    (redis, errors)
}

/// A user and the password, which no user is without.
fn login(
    section: &mut Section,
    user_key: &'static str,
    password_key: &'static str,
) -> (Option<String>, Option<Secret>) {
    let username = section.read(user_key, None, text::user_name);
    let password = section.read(password_key, None, password::password);
    if let (Some(Some(_)), Some(None)) = (&username, &password) {
        let fault = Fault::new(
            ErrorKind::Missing,
            format!("no password, though there is a {user_key}"),
            "the user's password (any, for a user with nopass)",
        );
        section.report(password_key, fault);
    }
    (username.flatten(), password.flatten())
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

fn persistence(mut section: Section, default: Persistence) -> Read<Persistence> {
    let session_ttl = section.read("session_ttl", default.session_ttl, units::ttl);
    let message_ttl = section.read("message_ttl", default.message_ttl, units::ttl);
    let rdb_enabled = section.read("rdb_enabled", default.rdb_enabled, units::boolean);
    let aof_enabled = section.read("aof_enabled", default.aof_enabled, units::boolean);
    let message_index = section.read("message_index", default.message_index, units::boolean);
    let durability = section.read("durability", default.durability, durability::durability);
    if let (Some(false), Some(level @ Durability::Aof { local: 1.., .. })) =
        (aof_enabled, durability)
    {
        let fault = Fault::new(
            ErrorKind::Conflict,
            level.to_string(),
            "a level without the server's own file (aof:0:R), with aof_enabled = false",
        );
        section.report("durability", fault);
    }
    let persistence = Persistence {
        session_ttl: session_ttl.unwrap_or(default.session_ttl),
        message_ttl: message_ttl.unwrap_or(default.message_ttl),
        rdb_enabled: rdb_enabled.unwrap_or_default(),
        aof_enabled: aof_enabled.unwrap_or_default(),
        message_index: message_index.unwrap_or_default(),
        durability: durability.unwrap_or_default(),
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
