//! Validation: every key and every class of error.

use std::fs;
use std::time::Duration;

use emqx_redis_core::config::{
    Config, ConfigError, Durability, ErrorKind, PemFile, Secret, Server, ServerNameIndication, Ssl,
    Topology, Ttl, Value, Verify, MASK,
};

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

fn redis<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    map([("redis", map(pairs))])
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

/// The one error of a tree.
#[track_caller]
fn error(tree: &Value) -> ConfigError {
    let mut errors = Config::from_value(tree).expect_err("a faulty tree was accepted");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[track_caller]
fn assert_error(tree: &Value, kind: ErrorKind, path: &str, found: &str, expected: &str) {
    let error = error(tree);
    assert_eq!(
        (error.kind, error.path.as_str(), error.found.as_str()),
        (kind, path, found)
    );
    assert!(
        error.expected.contains(expected),
        "expected: {}",
        error.expected
    );
    assert_eq!((error.file, error.line), (None, None));
}

#[test]
fn nothing_set_is_the_documented_defaults() {
    for tree in [
        Value::Null,
        map([]),
        map([("redis_storage", Value::Null)]),
        redis([("servers", Value::Null)]),
    ] {
        assert_eq!(Config::from_value(&tree), Ok(Config::default()));
        assert_eq!(Config::from_pool_value(&tree), Ok(Config::default()));
    }
    let config = Config::default();
    assert!(config.enable && config.key_prefix.is_empty());
    assert_eq!(
        config.redis.servers,
        [Server::Tcp {
            host: "127.0.0.1".into(),
            port: 6379
        }]
    );
    assert_eq!(
        (
            config.redis.topology,
            config.redis.pool_size,
            config.redis.database
        ),
        (Topology::Single, 64, 0)
    );
    assert_eq!(config.redis.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.redis.request_timeout, Duration::from_secs(5));
    assert_eq!(config.redis.outage_grace, Duration::from_secs(3));
    assert_eq!(config.persistence.session_ttl, Ttl::Seconds(86_400));
    assert_eq!(config.persistence.message_ttl, Ttl::Seconds(86_400));
    assert!(
        config.persistence.rdb_enabled
            && config.persistence.aof_enabled
            && config.persistence.message_index
    );
    assert_eq!(
        (config.limits.max_inflight, config.limits.max_inflight_bytes),
        (100_000, 134_217_728)
    );
}

#[test]
fn every_key_is_read() {
    let ssl = map([
        ("enable", Value::Bool(false)),
        ("cacertfile", text("/ca.pem")),
        ("certfile", text("/cert.pem")),
        ("keyfile", text("/key.pem")),
        ("verify", text("verify_none")),
        ("server_name_indication", text("redis.example.org")),
    ]);
    let sentinel_ssl = map([
        ("enable", Value::Bool(true)),
        ("server_name_indication", text("disable")),
    ]);
    let redis = map([
        ("type", text("sentinel")),
        ("servers", text("10.0.0.1:26379, [::1]:26380,sentinel")),
        ("sentinel", text("mymaster")),
        ("pool_size", Value::Int(8)),
        ("database", Value::Int(3)),
        ("username", text("app")),
        ("password", text("hunter2")),
        ("connect_timeout", Value::Int(250)),
        ("request_timeout", text("1m30s")),
        ("outage_grace", Value::Int(0)),
        ("ssl", ssl),
        ("sentinel_username", text("watcher")),
        ("sentinel_password", text("hunter3")),
        ("sentinel_ssl", sentinel_ssl),
    ]);
    let persistence = map([
        ("session_ttl", Value::Int(3600)),
        ("message_ttl", text("infinity")),
        ("rdb_enabled", Value::Bool(false)),
        ("aof_enabled", text("false")),
        ("message_index", Value::Bool(false)),
        ("durability", text("aof:0:2")),
    ]);
    let inner = map([
        ("enable", Value::Bool(false)),
        ("key_prefix", text("eu:")),
        ("redis", redis),
        ("persistence", persistence),
        (
            "limits",
            map([
                ("max_inflight", text("500")),
                ("max_inflight_bytes", text("64KB")),
            ]),
        ),
    ]);
    let config = Config::from_value(&inner).unwrap();
    assert_eq!(
        Config::from_value(&map([("redis_storage", inner)])),
        Ok(config.clone())
    );

    assert_eq!((config.enable, config.key_prefix.as_str()), (false, "eu:"));
    let redis = &config.redis;
    assert_eq!(
        (redis.topology, redis.sentinel.as_deref()),
        (Topology::Sentinel, Some("mymaster"))
    );
    let servers: Vec<String> = redis.servers.iter().map(Server::to_string).collect();
    assert_eq!(servers, ["10.0.0.1:26379", "[::1]:26380", "sentinel:6379"]);
    assert_eq!(
        (redis.pool_size, redis.database, redis.username.as_deref()),
        (8, 3, Some("app"))
    );
    assert_eq!(redis.password, Some(Secret::new("hunter2")));
    assert_eq!(redis.connect_timeout, Duration::from_millis(250));
    assert_eq!(redis.request_timeout, Duration::from_secs(90));
    assert_eq!(redis.outage_grace, Duration::ZERO);
    let file = |path: &str| {
        Some(PemFile {
            path: path.into(),
            contents: Secret::new(""),
        })
    };
    let ssl = Ssl {
        enable: false,
        cacertfile: file("/ca.pem"),
        certfile: file("/cert.pem"),
        keyfile: file("/key.pem"),
        verify: Verify::None,
        server_name_indication: ServerNameIndication::Name("redis.example.org".into()),
    };
    assert_eq!(redis.ssl, ssl);
    assert_eq!(redis.sentinel_username.as_deref(), Some("watcher"));
    assert_eq!(redis.sentinel_password, Some(Secret::new("hunter3")));
    let sentinel_ssl = Ssl {
        enable: true,
        server_name_indication: ServerNameIndication::Disable,
        ..Ssl::default()
    };
    assert_eq!(redis.sentinel_ssl, sentinel_ssl);
    let aof = Durability::Aof {
        local: 0,
        replicas: 2,
    };
    assert_eq!(config.persistence.durability, aof);
    assert_eq!(config.persistence.session_ttl.seconds(), Some(3600));
    assert_eq!(config.persistence.message_ttl.seconds(), None);
    assert!(
        !config.persistence.rdb_enabled
            && !config.persistence.aof_enabled
            && !config.persistence.message_index
    );
    assert_eq!(
        (config.limits.max_inflight, config.limits.max_inflight_bytes),
        (500, 65_536)
    );
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    use ErrorKind::UnknownKey;
    let found = "an unknown key";
    assert_error(
        &redis([("pol_size", Value::Int(1))]),
        UnknownKey,
        "redis.pol_size",
        found,
        "did you mean pool_size?",
    );
    assert_error(
        &map([("reddis", map([]))]),
        UnknownKey,
        "reddis",
        found,
        "did you mean redis?",
    );
    assert_error(
        &redis([("cluster_name", text("x"))]),
        UnknownKey,
        "redis.cluster_name",
        found,
        "one of type, ",
    );
    let beside = map([("redis_storage", map([])), ("redis", map([]))]);
    assert_error(&beside, UnknownKey, "redis", found, "one of redis_storage");
    let ssl = redis([("ssl", map([("ciphers", text("x"))]))]);
    assert_error(&ssl, UnknownKey, "redis.ssl.ciphers", found, "cacertfile");
    assert_error(
        &map([("a\nb", Value::Null)]),
        UnknownKey,
        "a\\nb",
        found,
        "one of enable",
    );
}

#[test]
fn duplicated_keys_are_refused() {
    let tree = redis([("database", Value::Int(1)), ("database", Value::Int(2))]);
    assert_error(
        &tree,
        ErrorKind::DuplicateKey,
        "redis.database",
        "the key twice",
        "each key once",
    );
    let tree = map([("redis_storage", map([])), ("redis_storage", map([]))]);
    assert_error(
        &tree,
        ErrorKind::DuplicateKey,
        "redis_storage",
        "the key twice",
        "once",
    );
}

#[test]
fn wrong_types_are_refused() {
    use ErrorKind::WrongType;
    assert_error(&Value::Int(1), WrongType, "", "an integer", "a map");
    assert_error(
        &map([("redis", text("x"))]),
        WrongType,
        "redis",
        "a string",
        "a map",
    );
    assert_error(
        &map([("enable", Value::Int(1))]),
        WrongType,
        "enable",
        "an integer",
        "true or false",
    );
    for (key, value, found, expected) in [
        (
            "type",
            Value::Bool(true),
            "a boolean",
            "single, sentinel or cluster",
        ),
        ("servers", Value::Int(6379), "an integer", "host:port"),
        ("sentinel", map([]), "a map", "a master's name"),
        ("pool_size", Value::Float(1.5), "a float", "from 1 to 1024"),
        (
            "database",
            Value::Array(vec![]),
            "a list",
            "from 0 to 65535",
        ),
        ("username", Value::Int(7), "an integer", "in quotes"),
        ("password", Value::Int(123_456), "an integer", "in quotes"),
        (
            "sentinel_password",
            Value::Int(1),
            "an integer",
            "in quotes",
        ),
        ("sentinel_ssl", text("x"), "a string", "a map"),
        (
            "connect_timeout",
            Value::Bool(false),
            "a boolean",
            "milliseconds",
        ),
    ] {
        assert_error(
            &redis([(key, value)]),
            WrongType,
            &format!("redis.{key}"),
            found,
            expected,
        );
    }
    let ttl = map([("persistence", map([("session_ttl", Value::Float(1.0))]))]);
    assert_error(
        &ttl,
        WrongType,
        "persistence.session_ttl",
        "a float",
        "infinity",
    );
    let size = map([("limits", map([("max_inflight_bytes", map([]))]))]);
    assert_error(
        &size,
        WrongType,
        "limits.max_inflight_bytes",
        "a map",
        "128MB",
    );
    let bytes = map([("key_prefix", Value::Bytes(vec![255]))]);
    assert_error(
        &bytes,
        WrongType,
        "key_prefix",
        "bytes that are not UTF-8",
        "256 bytes",
    );
    let list = redis([("servers", Value::Array(vec![text("h:1"), Value::Int(1)]))]);
    assert_error(
        &list,
        WrongType,
        "redis.servers[1]",
        "an integer",
        "host:port",
    );
}

#[test]
fn values_out_of_range_are_refused() {
    use ErrorKind::BadValue;
    for (key, value, found) in [
        ("type", text("single "), "\"single \""),
        ("pool_size", Value::Int(0), "0"),
        ("pool_size", Value::Int(1025), "1025"),
        ("pool_size", text("010"), "\"010\""),
        ("database", Value::Int(-1), "-1"),
        ("database", Value::Int(65_536), "65536"),
        ("sentinel", text("my master"), "\"my master\""),
        ("username", text("a b"), "\"a b\""),
        ("connect_timeout", Value::Int(0), "0"),
        ("connect_timeout", text("61m"), "\"61m\""),
        ("connect_timeout", text("5 parsecs"), "\"5 parsecs\""),
        ("request_timeout", text("infinity"), "\"infinity\""),
        ("sentinel_username", text("a b"), "\"a b\""),
        ("outage_grace", Value::Int(-1), "-1"),
    ] {
        assert_error(
            &redis([(key, value)]),
            BadValue,
            &format!("redis.{key}"),
            found,
            "",
        );
    }
    for (value, found) in [
        (Value::Int(0), "0"),
        (Value::Int(-5), "-5"),
        (Value::Int(4_294_967_296), "4294967296"),
        (text("0s"), "\"0s\""),
        (text("1500ms"), "\"1500ms\""),
        (text("Infinity"), "\"Infinity\""),
    ] {
        let tree = map([("persistence", map([("message_ttl", value)]))]);
        assert_error(
            &tree,
            BadValue,
            "persistence.message_ttl",
            found,
            "1 to 4294967295 seconds",
        );
    }
    for (key, value, found, expected) in [
        (
            "when_out_of_sync",
            text("nothing"),
            "\"nothing\"",
            "redis or stale",
        ),
        ("lease_timeout", text("4s"), "\"4s\"", "5s"),
        ("lease_timeout", text("2h"), "\"2h\"", "1h"),
    ] {
        let tree = map([("routes", map([(key, value)]))]);
        assert_error(&tree, BadValue, &format!("routes.{key}"), found, expected);
    }
    let tree = map([("mqtt", map([("when_unavailable", text("panic"))]))]);
    let (key, expected) = ("mqtt.when_unavailable", "reject or degrade");
    assert_error(&tree, BadValue, key, "\"panic\"", expected);
    for (key, value, found) in [
        ("max_inflight", Value::Int(0), "0"),
        ("max_inflight_bytes", text("1kB"), "\"1kB\""),
    ] {
        assert_error(
            &map([("limits", map([(key, value)]))]),
            BadValue,
            &format!("limits.{key}"),
            found,
            "",
        );
    }
    for (key, value) in [
        ("verify", "verify"),
        ("server_name_indication", "not a name"),
        ("server_name_indication", "redis:6379"),
    ] {
        let found = format!("{value:?}");
        for section in ["ssl", "sentinel_ssl"] {
            let path = format!("redis.{section}.{key}");
            let tree = redis([(section, map([(key, text(value))]))]);
            assert_error(&tree, BadValue, &path, &found, "");
        }
    }
    let level = map([("persistence", map([("durability", text("replicas:0"))]))]);
    let (path, found) = ("persistence.durability", "\"replicas:0\"");
    assert_error(&level, BadValue, path, found, "replicas:N");
    let file = redis([("ssl", map([("cacertfile", text("a\0"))]))]);
    assert_error(
        &file,
        BadValue,
        "redis.ssl.cacertfile",
        "\"a\\0\"",
        "a file's path",
    );
    let longest = map([(
        "persistence",
        map([("session_ttl", Value::Int(4_294_967_295))]),
    )]);
    assert_eq!(
        Config::from_value(&longest)
            .unwrap()
            .persistence
            .session_ttl,
        Ttl::Seconds(u32::MAX)
    );
}

#[test]
fn each_malformed_server_is_named_by_its_index() {
    let tree = redis([
        ("type", text("cluster")),
        ("servers", text("a:1,b:x,,unix://rel")),
    ]);
    let errors = Config::from_value(&tree).unwrap_err();
    let short: Vec<_> = errors
        .iter()
        .map(|error| (error.path.as_str(), error.found.as_str()))
        .collect();
    assert_eq!(
        short,
        [
            ("redis.servers[1]", "\"b:x\""),
            ("redis.servers[2]", "an empty entry"),
            ("redis.servers[3]", "\"unix://rel\"")
        ]
    );
    assert!(errors.iter().all(|error| error.kind == ErrorKind::BadValue));
    for none in [text(""), Value::Array(vec![])] {
        assert_error(
            &redis([("servers", none)]),
            ErrorKind::BadValue,
            "redis.servers",
            "no server",
            "host:port",
        );
    }
}

#[test]
fn impossible_combinations_are_refused() {
    use ErrorKind::{Conflict, Missing};
    let cluster = redis([("type", text("cluster")), ("database", Value::Int(1))]);
    assert_error(&cluster, Conflict, "redis.database", "1", "0");
    let sentinel = redis([("type", text("sentinel"))]);
    assert_error(
        &sentinel,
        Missing,
        "redis.sentinel",
        "no name",
        "the master's name",
    );
    let user = redis([("username", text("app"))]);
    assert_error(
        &user,
        Missing,
        "redis.password",
        "no password, though there is a username",
        "password",
    );
    let watcher = redis([("sentinel_username", text("watcher"))]);
    assert_error(
        &watcher,
        Missing,
        "redis.sentinel_password",
        "no password, though there is a sentinel_username",
        "password",
    );
    let aof = |level: &str| {
        map([(
            "persistence",
            map([
                ("aof_enabled", Value::Bool(false)),
                ("durability", text(level)),
            ]),
        )])
    };
    assert_error(
        &aof("aof:1:1"),
        Conflict,
        "persistence.durability",
        "aof:1:1",
        "aof_enabled",
    );
    assert!(Config::from_value(&aof("aof:0:1")).is_ok());
    for kind in ["cluster", "sentinel"] {
        let unix = redis([
            ("type", text(kind)),
            ("servers", text("unix:///s")),
            ("sentinel", text("m")),
        ]);
        assert_error(&unix, Conflict, "redis.servers", "\"unix:///s\"", kind);
    }
    let two = redis([("servers", text("a:1,b:2"))]);
    assert_error(&two, Conflict, "redis.servers", "2 servers", "one server");
    let tls = redis([
        ("servers", text("unix:///s")),
        ("ssl", map([("enable", Value::Bool(true))])),
    ]);
    assert_error(&tls, Conflict, "redis.servers", "\"unix:///s\"", "TLS");
    let cert = redis([("ssl", map([("certfile", text("c"))]))]);
    assert_error(&cert, Missing, "redis.ssl.keyfile", "certfile alone", "key");
    let key = redis([("ssl", map([("keyfile", text("k"))]))]);
    assert_error(
        &key,
        Missing,
        "redis.ssl.certfile",
        "keyfile alone",
        "certificate",
    );
    let both = redis([("type", text("single")), ("redis_type", text("single"))]);
    assert_error(
        &both,
        Conflict,
        "redis.redis_type",
        "type as well",
        "one of",
    );
}

#[test]
fn harmless_combinations_are_accepted() {
    for tree in [
        redis([("type", text("single")), ("sentinel", text("mymaster"))]),
        redis([("type", text("cluster")), ("database", Value::Int(0))]),
        redis([("password", text("x"))]),
        redis([
            ("sentinel_password", text("x")),
            (
                "sentinel_ssl",
                map([
                    ("enable", Value::Bool(true)),
                    ("cacertfile", text("/nonexistent")),
                ]),
            ),
        ]),
        redis([(
            "ssl",
            map([
                ("enable", Value::Bool(false)),
                ("certfile", text("c")),
                ("keyfile", text("k")),
            ]),
        )]),
    ] {
        assert!(Config::from_value(&tree).is_ok());
    }
}

#[test]
fn all_errors_are_collected() {
    let tree = map([
        ("enable", text("maybe")),
        ("key_prefix", text("{x}")),
        (
            "redis",
            map([
                ("pool_size", Value::Int(0)),
                ("username", Value::Int(1)),
                ("x", Value::Null),
            ]),
        ),
        ("persistence", map([("session_ttl", text("never"))])),
        ("limits", Value::Int(3)),
    ]);
    let errors = Config::from_value(&tree).unwrap_err();
    let mut paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "enable",
            "key_prefix",
            "limits",
            "persistence.session_ttl",
            "redis.pool_size",
            "redis.username",
            "redis.x"
        ]
    );
}

#[test]
fn an_error_reads_as_a_sentence() {
    let error = error(&redis([("pool_size", Value::Int(0))]));
    assert_eq!(
        error.to_string(),
        "redis.pool_size: found 0, expected an integer from 1 to 1024"
    );
    assert_eq!(error.kind.as_str(), "bad_value");
}

#[test]
fn key_prefixes_keep_clusters_apart() {
    for prefix in ["", "eu:", "a/b.c-d_e%|", "größe:", "metadata-", "mq:"] {
        assert_eq!(
            Config::from_value(&map([("key_prefix", text(prefix))]))
                .unwrap()
                .key_prefix,
            prefix
        );
    }
    let long = "x".repeat(257);
    for prefix in [
        "a b", "a\0", "a\n", "{eu}", "eu*", "a?", "[a", "a]", "\\", "session:", "xmsg:y",
        "eu:sync:", &long,
    ] {
        assert_eq!(
            error(&map([("key_prefix", text(prefix))])).kind,
            ErrorKind::BadValue,
            "{prefix:?}"
        );
    }
}

#[test]
fn a_pool_takes_the_redis_section_flat_or_the_whole_tree() {
    let limits = || map([("max_inflight", Value::Int(5))]);
    let flat = map([
        ("redis_type", text("single")),
        ("servers", text("h:1")),
        ("limits", limits()),
    ]);
    let whole = map([
        (
            "redis",
            map([("type", text("single")), ("servers", text("h:1"))]),
        ),
        ("limits", limits()),
    ]);
    let expected = Config::from_value(&whole).unwrap();
    assert_eq!(Config::from_pool_value(&flat), Ok(expected.clone()));
    assert_eq!(Config::from_pool_value(&whole), Ok(expected.clone()));
    assert_eq!(
        Config::from_pool_value(&map([("redis_storage", whole)])),
        Ok(expected)
    );
    let errors = Config::from_pool_value(&map([("server", text("h:1"))])).unwrap_err();
    assert_eq!((errors[0].path.as_str(), errors.len()), ("redis.server", 1));
    assert!(Config::from_pool_value(&Value::Int(1)).is_err());
    assert!(Config::from_value(&redis([("redis_type", text("cluster"))])).is_ok());
}

#[test]
fn passwords_come_from_files() {
    let folder = std::env::temp_dir().join(format!("config-passwords-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let from = |path: &str| {
        Config::from_value(&redis([
            ("username", text("app")),
            ("password", text(&format!("file://{path}"))),
        ]))
    };
    for (content, password) in [
        (&b"hunter2\n"[..], &b"hunter2"[..]),
        (b"hunter2\r\n", b"hunter2"),
        (b" a b\n\n", b" a b\n"),
        (b"\xff\x00", b"\xff\x00"),
    ] {
        let config = from(&file("good", content)).unwrap();
        assert_eq!(config.redis.password.unwrap().expose(), password);
    }
    for (path, why) in [
        (file("empty", b"\n"), "which is empty"),
        (file("long", &[b'x'; 65_537]), "longer than 64KB"),
        ("/nonexistent/secret".to_owned(), "No such file"),
        ("/dev/zero".to_owned(), "not a regular file"),
    ] {
        let errors = from(&path).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(
            (errors[0].kind, errors[0].path.as_str()),
            (ErrorKind::Unreadable, "redis.password")
        );
        assert!(
            errors[0].found.contains(&path) && errors[0].found.contains(why),
            "{}",
            errors[0].found
        );
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_cannot_be_a_password_is_refused() {
    let refuse = |password: &str, found: &str, expected: &str| {
        assert_error(
            &redis([("password", text(password))]),
            ErrorKind::BadValue,
            "redis.password",
            found,
            expected,
        );
    };
    refuse(
        "file://secret",
        "file:// without an absolute path",
        "file:///path",
    );
    refuse(MASK, "the mask that stands for a password", "itself");
}
