//! What holds for every configuration: no panic, no secret shown, what is shown reads back.

use emqx_redis_core::config::{Config, Value};
use proptest::prelude::*;

const KEYS: [&str; 35] = [
    "redis_storage",
    "enable",
    "redis",
    "persistence",
    "limits",
    "key_prefix",
    "type",
    "redis_type",
    "servers",
    "sentinel",
    "pool_size",
    "database",
    "username",
    "password",
    "connect_timeout",
    "request_timeout",
    "outage_grace",
    "ssl",
    "sentinel_username",
    "sentinel_password",
    "sentinel_ssl",
    "verify",
    "server_name_indication",
    "cacertfile",
    "certfile",
    "keyfile",
    "session_ttl",
    "message_ttl",
    "rdb_enabled",
    "aof_enabled",
    "message_index",
    "durability",
    "max_inflight",
    "max_inflight_bytes",
    "bogus",
];

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

/// All keys and text of a tree.
fn texts(tree: &Value) -> String {
    match tree {
        Value::Map(pairs) => pairs
            .iter()
            .map(|(key, value)| format!("{key}\n{}", texts(value)))
            .collect(),
        Value::Array(items) => items.iter().map(texts).collect(),
        Value::Str(text) => format!("{text}\n"),
        other => format!("{other:?}\n"),
    }
}

/// The tree with `password` wherever the key of one stands.
fn put_back(tree: Value, password: &Value) -> Value {
    let Value::Map(pairs) = tree else { return tree };
    let put = |(key, value): (String, Value)| {
        if matches!(key.as_str(), "password" | "sentinel_password") {
            (key, password.clone())
        } else {
            (key, put_back(value, password))
        }
    };
    Value::Map(pairs.into_iter().map(put).collect())
}

fn any_value() -> impl Strategy<Value = Value> {
    let words = vec![
        "single",
        "sentinel",
        "cluster",
        "h:1",
        "unix:///s",
        "infinity",
        "true",
        "verify_none",
        "disable",
        "aof:1:0",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (0i64..100).prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        ".*".prop_map(Value::Str),
        "[0-9]{1,25}(ms|s|m|h|d|KB|MB)?".prop_map(Value::Str),
        prop::sample::select(words).prop_map(text),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(5, 64, 12, |inner| {
        let key = prop_oneof![9 => prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned), 1 => ".*"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..12).prop_map(Value::Map),
        ]
    })
}

fn any_password() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[!-~]{12,20}".prop_map(Value::Str),
        prop::collection::vec(128u8..=159, 12..20).prop_map(Value::Bytes),
    ]
}

prop_compose! {
    fn any_config()(
        flags in any::<[bool; 4]>(),
        prefix in "[a-z:/%]{0,6}-",
        kind in prop::sample::select(vec!["single", "sentinel", "cluster"]),
        host in "[a-z][a-z0-9.]{0,10}",
        port in 1u16..,
        password in any_password(),
        pool in 1i64..=1024,
        timeout in 1i64..=3_600_000,
        grace in 0i64..=3_600_000,
        ttl in 1i64..=4_294_967_295,
        forever in any::<bool>(),
        replicas in 1u32..=100,
    ) -> (Config, Value) {
        let ssl = || map([
            ("enable", Value::Bool(flags[1])),
            ("verify", text(if forever { "verify_none" } else { "verify_peer" })),
            ("server_name_indication", text(if flags[2] { "disable" } else { "redis.example.org" })),
        ]);
        let redis = map([
            ("type", text(kind)),
            ("servers", Value::Str(format!("{host}:{port}"))),
            ("sentinel", text("m")),
            ("pool_size", Value::Int(pool)),
            ("username", text("app")),
            ("password", password.clone()),
            ("connect_timeout", Value::Int(timeout)),
            ("request_timeout", Value::Int(timeout)),
            ("outage_grace", Value::Int(grace)),
            ("ssl", ssl()),
            ("sentinel_username", text("watcher")),
            ("sentinel_password", password.clone()),
            ("sentinel_ssl", ssl()),
        ]);
        let persistence = map([
            ("session_ttl", Value::Int(ttl)),
            ("message_ttl", if forever { text("infinity") } else { Value::Int(ttl) }),
            ("rdb_enabled", Value::Bool(flags[2])),
            ("message_index", Value::Bool(flags[3])),
            ("durability", Value::Str(format!("replicas:{replicas}"))),
        ]);
        let tree = map([
            ("enable", Value::Bool(flags[0])),
            ("key_prefix", Value::Str(prefix)),
            ("redis", redis),
            ("persistence", persistence),
            ("limits", map([("max_inflight", Value::Int(timeout)), ("max_inflight_bytes", Value::Int(ttl))])),
        ]);
        (Config::from_value(&tree).unwrap(), password)
    }
}

proptest! {
    #[test]
    fn no_tree_panics(tree in any_value()) {
        for result in [Config::from_value(&tree), Config::from_pool_value(&tree)] {
            match result {
                Ok(config) => { let _ = config.redacted(); }
                Err(errors) => prop_assert!(!errors.is_empty()),
            }
        }
    }

    #[test]
    fn what_is_shown_hides_the_password_and_reads_back((config, password) in any_config()) {
        let secret = config.redis.password.as_ref().map(|secret| secret.expose().to_vec()).unwrap();
        let shown = format!("{}{config:?}{:?}", texts(&config.redacted()), config.redacted());
        prop_assert!(!shown.as_bytes().windows(secret.len()).any(|window| window == secret));
        prop_assert_eq!(Config::from_value(&put_back(config.redacted(), &password)), Ok(config));
    }

    /// Whatever else is wrong, and of whatever type a password is, no error repeats it.
    #[test]
    fn no_error_holds_the_password(tree in any_value(), secret in "[A-Z]{16}", listed in any::<bool>()) {
        let password = match listed {
            true => Value::Array(vec![text(&secret)]),
            false => Value::Str(format!("file://{secret}")),
        };
        let mut pairs = vec![("redis".to_owned(), map([("password", Value::Null)]))];
        if let Value::Map(more) = tree {
            pairs.extend(more);
        }
        let errors = Config::from_value(&put_back(Value::Map(pairs), &password)).unwrap_err();
        let shown = format!("{errors:?}");
        prop_assert!(!shown.contains(&secret));
    }
}
