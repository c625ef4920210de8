//! The files of certificates and keys: read with the configuration, and every fault of theirs told.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use emqx_redis_core::config::{Config, ConfigError, ErrorKind, Value};
use rcgen::{CertificateParams, KeyPair};

/// A folder of its own, removed with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("config-tls-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate and its key, PEM.
fn identity() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

/// A section with TLS enabled and these files.
fn ssl<const N: usize>(files: [(&str, &str); N]) -> Value {
    let mut pairs = vec![("enable".to_owned(), Value::Bool(true))];
    pairs.extend(files.map(|(key, path)| (key.to_owned(), Value::from(path))));
    Value::Map(pairs)
}

fn read(ssl: Value) -> Result<Config, Vec<ConfigError>> {
    Config::from_value(&map([("redis", map([("ssl", ssl)]))]))
}

#[track_caller]
fn assert_fault(ssl: Value, kind: ErrorKind, key: &str, path: &str, why: &str) {
    let errors = read(ssl).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let (error, path) = (&errors[0], format!("the file {path:?}, which {why}"));
    assert_eq!(
        (error.kind, error.path.as_str()),
        (kind, format!("redis.ssl.{key}").as_str())
    );
    assert!(error.found.starts_with(&path), "{}", error.found);
}

#[test]
fn a_changed_file_is_a_changed_configuration() {
    let folder = Folder::new();
    let (first, second) = (identity(), identity());
    let write = |(certificate, key): &(String, String)| {
        folder.put("authority.pem", certificate);
        (
            folder.put("certificate.pem", certificate),
            folder.put("key.pem", key),
        )
    };
    let (certificate, key) = write(&first);
    let authority = certificate.replace("certificate.pem", "authority.pem");
    let files = || {
        ssl([
            ("cacertfile", &authority),
            ("certfile", &certificate),
            ("keyfile", &key),
        ])
    };
    let config = read(files()).unwrap();
    assert_eq!(read(files()), Ok(config.clone()));
    let held = config.redis.ssl.keyfile.as_ref().unwrap();
    assert_eq!(held.contents.expose(), first.1.as_bytes());
    assert_eq!(Config::from_value(&config.redacted()), Ok(config.clone()));
    write(&second);
    assert_ne!(read(files()).unwrap(), config);
    for shown in [format!("{config:?}"), format!("{:?}", config.redacted())] {
        assert!(!shown.contains("PRIVATE KEY"));
    }
}

#[test]
fn a_certificate_and_its_key_may_share_a_file() {
    let folder = Folder::new();
    let (certificate, key) = identity();
    let both = folder.put("both.pem", format!("a comment\n{key}{certificate}"));
    let files = [
        ("cacertfile", &*both),
        ("certfile", &both),
        ("keyfile", &both),
    ];
    assert!(read(ssl(files)).is_ok());
}

#[test]
fn unreadable_files_are_told() {
    let folder = Folder::new();
    let long = folder.put(
        &format!("{}.pem", "long".repeat(20)),
        vec![b'#'; 1024 * 1024 + 1],
    );
    for (path, why) in [
        ("/nonexistent.pem", "cannot be read: No such file"),
        ("/dev/zero", "cannot be read: not a regular file"),
        (long.as_str(), "cannot be read: longer than 1MB"),
    ] {
        let files = ssl([("cacertfile", path)]);
        assert_fault(files, ErrorKind::Unreadable, "cacertfile", path, why);
    }
}

#[test]
fn files_without_certificates_are_told() {
    use ErrorKind::BadValue;
    let folder = Folder::new();
    let (certificate, key) = identity();
    let (good, key) = (
        folder.put("good.pem", &certificate),
        folder.put("key.pem", key),
    );
    let empty = folder.put("empty.pem", "no PEM at all");
    // The text is well-formed, what it encodes is not.
    let broken = folder.put(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let garbled = folder.put("garbled.pem", certificate.replace('M', "!"));
    for (path, why) in [
        (&empty, "holds no certificate in PEM"),
        (&key, "holds no certificate in PEM"),
        (&broken, "holds a malformed certificate"),
        (&garbled, "holds a malformed certificate"),
    ] {
        let authority = ssl([("cacertfile", path)]);
        assert_fault(authority, BadValue, "cacertfile", path, why);
        let own = ssl([("certfile", path), ("keyfile", &key)]);
        assert_fault(own, BadValue, "certfile", path, why);
    }
    assert!(read(ssl([("certfile", &good), ("keyfile", &key)])).is_ok());
}

#[test]
fn keys_that_are_of_no_use_are_told() {
    let folder = Folder::new();
    let (certificate, key) = identity();
    let certificate = folder.put("certificate.pem", certificate);
    let foreign = folder.put("foreign.pem", identity().1);
    let empty = folder.put("empty.pem", "");
    let encrypted = folder.put(
        "encrypted.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let broken = folder.put(
        "broken.pem",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    let garbled = folder.put("garbled.pem", key.replace('M', "!"));
    for (path, why) in [
        (&foreign, "holds a key that does not belong"),
        (&empty, "holds no private key in PEM"),
        (&certificate, "holds no private key in PEM"),
        (&encrypted, "holds an encrypted key"),
        (&broken, "holds a key that is not RSA"),
        (&garbled, "holds a malformed key"),
    ] {
        let files = ssl([("certfile", &certificate), ("keyfile", path)]);
        assert_fault(files, ErrorKind::BadValue, "keyfile", path, why);
    }
}

#[test]
fn files_are_read_only_where_they_are_used() {
    let nowhere = || ssl([("cacertfile", "/nonexistent.pem")]);
    let tree = |kind: &str| {
        map([(
            "redis",
            map([
                ("type", Value::from(kind)),
                ("sentinel", Value::from("m")),
                ("sentinel_ssl", nowhere()),
            ]),
        )])
    };
    for kind in ["single", "cluster"] {
        assert!(Config::from_value(&tree(kind)).is_ok());
    }
    let errors = Config::from_value(&tree("sentinel")).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].path, "redis.sentinel_ssl.cacertfile");
    let off = map([
        ("enable", Value::Bool(false)),
        ("certfile", Value::from("/nonexistent.pem")),
        ("keyfile", Value::from("/nonexistent.pem")),
    ]);
    assert!(read(off).is_ok());
}
