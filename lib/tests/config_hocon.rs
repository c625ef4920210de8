//! HOCON: each row of the table in docs/configuration.md, and hostile files.

use std::fs;
use std::time::{Duration, Instant};

use emqx_redis_core::config::{Config, ConfigError, ErrorKind, Server, Ttl};

const EXAMPLE: &str = r#"
    redis_storage {
      enable = true
      redis {
        type = single              # single | sentinel | cluster
        servers = "127.0.0.1:6379" # comma-separated host:port, or unix:///path
        sentinel = mymaster        # the master's name, for sentinel
        pool_size = 64             # upper bound of connections; multiplexed, so few are needed
        database = 0               # not for cluster
        username = "", password = ""
        connect_timeout = "5s"
        ssl { enable = false, cacertfile = "", certfile = "", keyfile = "" }
      }
      persistence { session_ttl = "24h", message_ttl = "24h", rdb_enabled = true, aof_enabled = true }
    }
"#;

#[track_caller]
fn read(text: &str) -> Config {
    Config::from_hocon(text).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

#[track_caller]
fn refused(text: &str) -> ConfigError {
    let mut errors = Config::from_hocon(text).expect_err("faulty text was accepted");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

/// The text is refused at `line`, as HOCON that is wrong or not taken here.
#[track_caller]
fn assert_refused(text: &str, line: usize, found: &str) {
    let error = refused(text);
    assert_eq!(
        (error.kind, error.line),
        (ErrorKind::Syntax, Some(line)),
        "{error}"
    );
    assert!(error.found.contains(found), "{error}");
}

fn port(config: &Config) -> u16 {
    match config.redis.servers[0] {
        Server::Tcp { port, .. } => port,
        Server::Unix(_) => 0,
    }
}

fn password(config: Config) -> String {
    String::from_utf8(config.redis.password.unwrap().expose().to_vec()).unwrap()
}

#[test]
fn the_example_of_the_readme() {
    let mut config = read(EXAMPLE);
    assert_eq!(config.redis.sentinel.take().as_deref(), Some("mymaster"));
    assert_eq!(config, Config::default());
}

#[test]
fn comments_and_empty_files() {
    assert_eq!(
        read("# a\n// b\nredis.database = 3 // c\nredis.pool_size = 4 # d\n")
            .redis
            .database,
        3
    );
    for empty in ["", "\n", "  # nothing\n", "{}", "\u{feff}"] {
        assert_eq!(read(empty), Config::default());
    }
}

#[test]
fn durations_quoted_or_not() {
    for text in [
        "24h",
        "\"24h\"",
        "24 h",
        "86400",
        "\"86400\"",
        "1d",
        "86400s // a day",
    ] {
        let config = read(&format!("persistence.session_ttl = {text}"));
        assert_eq!(
            config.persistence.session_ttl,
            Ttl::Seconds(86_400),
            "{text}"
        );
    }
    assert_eq!(
        read("redis.connect_timeout = 250").redis.connect_timeout,
        Duration::from_millis(250)
    );
    assert_eq!(
        refused("redis.connect_timeout = 1.5s").kind,
        ErrorKind::BadValue
    );
}

#[test]
fn substitutions() {
    let config =
        read("ttl = 2h\nredis_storage.persistence { session_ttl = ${ttl}, message_ttl = ${ttl} }");
    assert_eq!(config.persistence.message_ttl, Ttl::Seconds(7200));
    let config =
        read("redis.connect_timeout = ${redis.request_timeout}\nredis.request_timeout = 9s");
    assert_eq!(config.redis.connect_timeout, Duration::from_secs(9));
    assert_eq!(
        read("redis.pool_size = 7\nredis.pool_size = ${?nothing.there}")
            .redis
            .pool_size,
        7
    );
    assert_eq!(
        read("redis.pool_size = ${?nothing.there}").redis.pool_size,
        64
    );
    assert_eq!(
        port(&read("port = 7001\nredis.servers = \"10.0.0.1:\"${port}")),
        7001
    );
    assert_eq!(port(&read("host = h\nredis.servers = ${host}:7002")), 7002);
    assert_refused("\nredis.pool_size = ${nothing.there}", 2, "not defined");
    assert_refused(
        "redis.pool_size = ${redis.database}\nredis.database = ${redis.pool_size}",
        1,
        "each other",
    );
    assert_refused(
        "a = 1\nredis.pool_size = ${redis.pool_size}",
        2,
        "each other",
    );
    assert_refused("r.a = ${r.b}\nr.b = ${r.c}\nr.c = ${r.a}", 1, "each other");
    assert_refused("a = {x = ${a}}", 1, "each other");
    assert_refused("redis.servers = ${redis.servers[]}", 1, "${...[]}");
    // A variable is known only if a substitution reads it.
    assert_eq!(refused("ttl = 2h\nredis.database = 1").path, "ttl");
}

#[test]
fn environment_variables_are_read_as_what_the_key_takes() {
    std::env::set_var("CONFIG_TEST_POOL", "12");
    std::env::set_var("CONFIG_TEST_FLAG", "false");
    std::env::set_var("CONFIG_TEST_PASSWORD", "007");
    let config = read(
        "redis.pool_size = ${CONFIG_TEST_POOL}\n\
         enable = ${?CONFIG_TEST_FLAG}\n\
         redis.password = ${CONFIG_TEST_PASSWORD}",
    );
    assert_eq!((config.redis.pool_size, config.enable), (12, false));
    assert_eq!(password(config), "007");
}

#[test]
fn keys_nest_with_dots_or_braces() {
    for text in [
        "redis_storage.redis.database = 5",
        "redis_storage { redis { database = 5 } }",
        "redis_storage.redis { database : 5 }",
        "{ \"redis_storage\": { \"redis\": { \"database\": 5 } } }",
        "\"redis_storage\".\"redis\".database = 5",
        "redis\n{\n  database = 5\n}",
    ] {
        assert_eq!(read(text).redis.database, 5, "{text}");
    }
}

#[test]
fn maps_merge_and_the_last_value_wins() {
    let config =
        read("redis { database = 1, pool_size = 2 }\nredis { database = 3 }\nredis.database = 4");
    assert_eq!((config.redis.database, config.redis.pool_size), (4, 2));
    let config = read("base { pool_size = 2, database = 1 }\nredis = ${base} { database = 3 }");
    assert_eq!((config.redis.database, config.redis.pool_size), (3, 2));
    assert_eq!(
        read("redis.database = 9\nredis = null\nredis.pool_size = 3")
            .redis
            .database,
        0
    );
}

#[test]
fn lists() {
    for servers in [
        "redis.servers = [\"a:1\", \"b:2\", \"c:3\"]",
        "redis.servers = [\n  \"a:1\"\n  \"b:2\",\n  c\n]",
        "redis.servers = [\"a:1\", \"b:2\", \"c:3\",]",
        "redis.servers = [a:1, b:2, c:3]",
        "redis.servers = [\"a:1\"] [\"b:2\", \"c:3\"]",
        "redis.servers = \"a:1,b:2,c:3\"",
    ] {
        assert_eq!(
            read(&format!("redis.type = cluster\n{servers}"))
                .redis
                .servers
                .len(),
            3,
            "{servers}"
        );
    }
    assert_refused("redis.servers = []\nredis.servers += \"b:2\"", 2, "+=");
    // HOCON would read a map with numbers for keys as a list.
    assert_eq!(refused("redis.servers.0 = \"a:1\"").path, "redis.servers");
}

#[test]
fn several_keys_on_a_line_need_commas() {
    assert_eq!(
        read("redis { database = 1, pool_size = 2, },\n")
            .redis
            .pool_size,
        2
    );
    assert_refused("redis.database = 1,, redis.pool_size = 2", 1, "no key");
    assert_refused(
        "redis.username = app redis.password = hunter2",
        1,
        "a second =",
    );
    assert_refused("redis.username = app password : hunter2", 1, "a ':'");
}

#[test]
fn strings() {
    let given = |text: &str| password(read(&format!("redis.password = {text}")));
    assert_eq!(
        given("\"\"\"a \"quoted\" \\n word\"\"\""),
        "a \"quoted\" \\n word"
    );
    assert_eq!(
        given("\"a\\n\\\"\\u00e9 \u{1f600}#//\""),
        "a\n\"\u{e9} \u{1f600}#//"
    );
    assert_eq!(given("two words"), "two words");
    assert_eq!(given("gr\u{fc}\u{df}e"), "gr\u{fc}\u{df}e");
    assert_refused("redis.password = \"abc", 1, "does not end");
    assert_refused("redis.password = \"\"\"abc\n", 1, "without end");
    assert_refused("redis.password = \"a\\qb\"", 1, "unknown escape");
    assert_refused("redis.password = \"\\uD800\"", 1, "\\u");
    assert_refused("redis.password = pa$$word", 1, "unquoted");
    assert_eq!(
        refused("redis.password = 123456").kind,
        ErrorKind::WrongType
    );
}

#[test]
fn values_that_a_comment_would_cut_are_refused() {
    assert_refused("redis.servers = unix:///run/redis.sock", 1, "comment");
    assert_refused("\nredis.password = file:///run/secret", 2, "comment");
    assert_refused("redis.password = hunter#2", 1, "comment");
    assert_refused("redis.password = hunter//2", 1, "comment");
    assert_refused("\u{feff}redis.password = \u{fc}#2", 1, "comment");
    assert_eq!(port(&read("redis.servers = 127.0.0.1:7000")), 7000);
}

#[test]
fn values_that_are_missing_are_refused() {
    assert_refused(
        "redis.username =\nredis.password = x",
        2,
        "on the line after its key",
    );
    assert_refused(
        "redis.username =\nredis.password : x",
        2,
        "on the line after its key",
    );
    assert_refused("redis.username =\n\"redis\".password = x", 2, "a second =");
    assert_refused("redis.username =", 1, "without a value");
    assert_refused("redis.username\n", 1, "without a value");
    assert_eq!(refused("redis { username = }").found, "no value");
    assert_refused("redis.username", 1, "without a value");
    assert_eq!(port(&read("redis.servers =\n  \"h:7\"")), 7);
}

#[test]
fn brackets_must_match() {
    assert_refused("redis { database = 1", 1, "the end of the file");
    assert_refused(
        "redis.database = 1 }\nredis.pool_size = 3",
        1,
        "closes nothing",
    );
    assert_refused("redis.servers = [\"a:1\" }", 1, "closes nothing");
    assert_refused("[1, 2]", 1, "a list around everything");
}

#[test]
fn includes_are_refused() {
    for text in [
        "include \"other.conf\"",
        "include required(file(\"x\"))",
        "redis {\n include \"x\"\n}",
    ] {
        assert_eq!(refused(text).found, "include");
    }
}

#[test]
fn numbers() {
    assert_eq!(refused("redis.pool_size = 010").found, "\"010\"");
    assert_eq!(refused("redis.pool_size = 1e1").kind, ErrorKind::WrongType);
    assert_eq!(
        refused("redis.pool_size = 99999999999999999999").kind,
        ErrorKind::WrongType
    );
    assert_eq!(refused("enable = yes").found, "\"yes\"");
}

#[test]
fn byte_order_marks_and_line_ends() {
    assert_eq!(read("\u{feff}redis.database = 2").redis.database, 2);
    let config =
        read("redis {\r\n  database = 2\r\n  username = app\r\n  password = two words\r\n}\r\n");
    assert_eq!(
        (config.redis.database, config.redis.username.as_deref()),
        (2, Some("app"))
    );
    assert_eq!(password(config), "two words");
    assert!(Config::from_hocon("redis.database = 2\rredis.pool_size = 3").is_err());
}

#[test]
fn errors_name_file_and_line() {
    let folder = std::env::temp_dir().join(format!("config-hocon-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("storage.conf");
    let load = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        Config::load_file(&path)
    };
    assert!(load(EXAMPLE.as_bytes()).is_ok());

    let faulty = "redis_storage {\n  redis {\n    pool_size = 0\n    servers = [\"a:1\",\n \"b:x\"]\n    pol = 1\n  }\n}";
    let errors = load(faulty.as_bytes()).unwrap_err();
    let mut places: Vec<_> = errors
        .iter()
        .map(|error| (error.path.as_str(), error.line))
        .collect();
    places.sort_unstable();
    assert_eq!(
        places,
        [
            ("redis.pol", Some(6)),
            ("redis.pool_size", Some(3)),
            ("redis.servers[1]", Some(4))
        ]
    );
    let shown = format!(
        "{}:3: redis.pool_size: found 0, expected an integer from 1 to 1024",
        path.display()
    );
    assert!(errors.iter().any(|error| error.to_string() == shown));

    let error = &load(b"a = 1\n\xff").unwrap_err()[0];
    assert_eq!(
        (error.kind, error.line, error.found.as_str()),
        (ErrorKind::Syntax, Some(2), "bytes that are not UTF-8")
    );
    assert_eq!(
        load(&[b'\n'; 65_537]).unwrap_err()[0].found,
        "more than 64 KB"
    );
    assert_eq!(
        load(&[0xff; 65_537]).unwrap_err()[0].found,
        "more than 64 KB"
    );

    fs::remove_dir_all(&folder).unwrap();
    let error = &Config::load_file(&path).unwrap_err()[0];
    assert_eq!(
        (error.kind, error.file.as_deref()),
        (ErrorKind::Unreadable, Some(path.as_path()))
    );
    assert_eq!(
        Config::load_file("/dev/zero").unwrap_err()[0].kind,
        ErrorKind::Unreadable
    );
}

#[test]
fn no_error_repeats_the_password() {
    for text in [
        "redis.password = \"hunter2",
        "redis.password = hunter2 = hunter2",
        "redis.password = ${hunter2}",
        "redis.password = hunter2{",
        "redis.password = hunter2+= 1",
        "redis.password = hunter2 [hunter2] {hunter2 = hunter2}",
        "redis.password = hunter2#hunter2",
        "redis.password = [hunter2]",
        "redis.password = {a = hunter2}",
        "redis.username = ${x} \nx = {a = hunter2}",
    ] {
        let errors = Config::from_hocon(text).unwrap_err();
        assert!(
            errors
                .iter()
                .all(|error| !format!("{error} {error:?}").contains("hunter2")),
            "{errors:?}"
        );
    }
}

/// On a stack as small as that of one of BEAM's dirty schedulers, each ends soon.
#[test]
fn hostile_files_neither_overflow_the_stack_nor_hang() {
    let doubling = |levels: usize| {
        let line = |i: usize| format!("x{} = ${{x{i}}}${{x{i}}}\n", i + 1);
        let lines: String = (0..levels).map(line).collect();
        format!(
            "x0 = {}\n{lines}redis.username = ${{x{levels}}}",
            "a".repeat(1000)
        )
    };
    let texts = [
        format!("{}{}", "a{".repeat(16_000), "}".repeat(16_000)),
        format!("{}{}", "a{".repeat(30), "}".repeat(30)),
        format!("a = {}", "[".repeat(60_000)),
        format!("{}{}", "a=[".repeat(16_000), "]".repeat(16_000)),
        format!("{} = 1", vec!["a"; 30_000].join(".")),
        format!("{}1", "\"a\".".repeat(15_000)),
        format!("a = ${{{}}}", vec!["a"; 30_000].join(".")),
        format!("a = {}", "${?b}".repeat(12_000)),
        format!("a = {}", "${?B}".repeat(12_000)),
        "a += 1\n".repeat(9_000),
        "a = {x : ${?a}}\n".repeat(4_000),
        "a = {x : ${?a}}\n".repeat(16),
        "redis.database = 1\n".repeat(3_400),
        (0..6_000).map(|i| format!("k{i}=1\n")).collect(),
        (0..5_000).map(|i| format!("a.k{i}=1\n")).collect(),
        format!("redis.username = {}", "x ".repeat(30_000)),
        format!("redis.username = \"{}\"", "\\n".repeat(30_000)),
        "}".repeat(60_000),
        "\"".repeat(65_535),
        "#".repeat(65_535),
        "${".repeat(30_000),
        "\u{feff}".repeat(20_000),
        doubling(7),
        doubling(30),
    ];
    for text in texts {
        let beginning: String = text.chars().take(20).collect();
        let begun = Instant::now();
        let reader = std::thread::Builder::new().stack_size(320 * 1024);
        reader
            .spawn(move || drop(Config::from_hocon(&text)))
            .unwrap()
            .join()
            .unwrap();
        println!("{:?} {beginning:?}", begun.elapsed());
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{beginning} took {:?}",
            begun.elapsed()
        );
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn piece() -> impl Strategy<Value = String> {
        let pieces = vec![
            "redis", ".", "{", "}", "[", "]", "=", ":", "+=", ",", "\n", "\r\n", " ", "\"",
            "\"\"\"", "${", "${?", "#", "//", "\\", "include", "null", "true", "24h", "-1", "010",
            "servers", "password", "\u{feff}", "$", "\u{a0}", "\0",
        ];
        prop_oneof![
            4 => prop::sample::select(pieces).prop_map(str::to_owned),
            1 => "[a-z]{1,3}",
            1 => any::<char>().prop_map(String::from),
        ]
    }

    /// Definitions that read each other, in circles or not: a parser's hardest part.
    fn definition() -> impl Strategy<Value = String> {
        let path = || {
            let word = prop::sample::select(vec!["a", "b", "c", "r", "x"]);
            prop::collection::vec(word, 1..4).prop_map(|words| words.join("."))
        };
        let reference = (path(), prop::sample::select(vec!["${", "${?"]))
            .prop_map(|(path, start)| format!("{start}{path}}}"));
        let part = prop_oneof![
            2 => reference.clone(),
            1 => Just("1".to_owned()),
            1 => Just("[1]".to_owned()),
            1 => (path(), reference.clone()).prop_map(|(path, value)| format!("{{{path} = {value}}}")),
            1 => path().prop_map(|path| format!("{{{path} = 1}}")),
            1 => reference.prop_map(|value| format!("[{value}]")),
        ];
        let value = prop::collection::vec(part, 1..3).prop_map(|parts| parts.join(" "));
        let separator = prop::sample::select(vec!["=", "=", "=", ":"]);
        (path(), separator, value)
            .prop_map(|(path, separator, value)| format!("{path} {separator} {value}\n"))
    }

    proptest! {
        #[test]
        fn no_circle_of_substitutions_overflows_the_stack(lines in prop::collection::vec(definition(), 1..7)) {
            let text = lines.concat();
            if let Err(errors) = Config::from_hocon(&text) {
                prop_assert!(errors.iter().all(|error| !error.found.contains("breaks the parser")));
            }
        }

        #[test]
        fn no_text_breaks_the_parser(pieces in prop::collection::vec(piece(), 0..40)) {
            if let Err(errors) = Config::from_hocon(&pieces.concat()) {
                prop_assert!(!errors.is_empty());
                prop_assert!(errors.iter().all(|error| !error.found.contains("breaks the parser")));
            }
        }
    }
}
