//! TLS: the sections `redis.ssl` and `redis.sentinel_ssl`.

use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::ServerName;

use super::error::{ConfigError, ErrorKind};
use super::pem::{self, BadIdentity};
use super::secret::Secret;
use super::section::{quote, quote_path, Fault, Section};
use super::value::Value;
use super::{file, text, units};

/// Longer than the file of all public authorities.
const LONGEST_FILE: u64 = 1024 * 1024;

/// How connections are encrypted and servers are known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ssl {
    /// Whether connections use TLS.
    pub enable: bool,
    /// Certificates of the authorities that are trusted; without them, those of the system are.
    pub cacertfile: Option<PemFile>,
    /// This client's certificate; never without `keyfile`.
    pub certfile: Option<PemFile>,
    /// The key of that certificate; never without `certfile`.
    pub keyfile: Option<PemFile>,
    /// Whether the server's certificate is checked.
    pub verify: Verify,
    /// The name that the server is asked for, and that its certificate must hold.
    pub server_name_indication: ServerNameIndication,
}

impl Ssl {
    /// Whether connections are encrypted to whoever answers: an operator should know.
    pub fn is_unverified(&self) -> bool {
        self.enable && self.verify == Verify::None
    }
}

/// A file of certificates or of a key. Two are equal only if their contents are, so that a changed
/// file is a changed configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// PEM text. Empty where TLS is not used: nothing is read then.
    pub contents: Secret,
}

/// Whether the server's certificate is checked: the key `verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verify {
    /// It must come from a trusted authority, be valid now and hold the server's name.
    #[default]
    Peer,
    /// Any certificate will do.
    None,
}

impl Verify {
    /// The value of `verify` that names this.
    pub fn as_str(self) -> &'static str {
        match self {
            Verify::Peer => "verify_peer",
            Verify::None => "verify_none",
        }
    }
}

/// The name that the server is asked for: the key `server_name_indication`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ServerNameIndication {
    /// The host that is connected to.
    #[default]
    Host,
    /// None is asked for, and the certificate may hold any.
    Disable,
    /// This one, whatever host is connected to.
    Name(String),
}

impl ServerNameIndication {
    /// The value of `server_name_indication` that names this.
    pub fn as_str(&self) -> &str {
        match self {
            ServerNameIndication::Host => "",
            ServerNameIndication::Disable => "disable",
            ServerNameIndication::Name(name) => name,
        }
    }
}

/// Reads a section. Files are read only where they are used: `is_used`, and `enable` in the section.
pub(super) fn ssl(mut section: Section, is_used: bool) -> (Ssl, Vec<ConfigError>) {
    let enable = section.read("enable", false, units::boolean);
    let is_used = is_used && enable == Some(true);
    let mut file = |key| section.read(key, None, |value| pem_file(value, is_used));
    let cacertfile = file("cacertfile");
    let certfile = file("certfile");
    let keyfile = file("keyfile");
    let verify = section.read("verify", Verify::default(), verify);
    let server_name_indication = section.read(
        "server_name_indication",
        ServerNameIndication::default(),
        server_name_indication,
    );
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
        verify: verify.unwrap_or_default(),
        server_name_indication: server_name_indication.unwrap_or_default(),
    };
    if is_used {
        check_contents(&mut section, &ssl);
    }
    (ssl, section.finish())
}

fn pem_file(value: &Value, is_used: bool) -> Result<Option<PemFile>, Fault> {
    let Some(path) = text::path(value)? else {
        return Ok(None);
    };
    let contents = if is_used {
        file::read(&path, LONGEST_FILE).map_err(|error| {
            let found = format!(
                "the file {}, which cannot be read: {error}",
                quote_path(&path)
            );
            Fault::new(ErrorKind::Unreadable, found, "a readable PEM file")
        })?
    } else {
        Vec::new()
    };
    let contents = Secret::new(contents);
    Ok(Some(PemFile { path, contents }))
}

fn check_contents(section: &mut Section, ssl: &Ssl) {
    let mut report = |key, file: &PemFile, why: &str, expected| {
        let found = format!("the file {}, which {why}", quote_path(&file.path));
        section.report(key, Fault::bad(found, expected));
    };
    if let Some(file) = &ssl.cacertfile {
        if let Err(why) = pem::authorities(file.contents.expose()) {
            let expected = "certificates of the trusted authorities in PEM";
            report("cacertfile", file, why, expected);
        }
    }
    if let (Some(certificate), Some(key)) = (&ssl.certfile, &ssl.keyfile) {
        match pem::identity(certificate.contents.expose(), key.contents.expose()) {
            Ok(_) => {}
            Err(BadIdentity::Certificate(why)) => {
                let expected = "this client's certificate in PEM";
                report("certfile", certificate, why, expected);
            }
            Err(BadIdentity::Key(why)) => {
                let expected = "the certificate's key in PEM, without a passphrase";
                report("keyfile", key, why, expected);
            }
        }
    }
}

fn verify(value: &Value) -> Result<Verify, Fault> {
    const EXPECTED: &str = "verify_peer or verify_none";
    match text::string(value, EXPECTED)? {
        "verify_peer" => Ok(Verify::Peer),
        "verify_none" => Ok(Verify::None),
        other => Err(Fault::bad(quote(other), EXPECTED)),
    }
}

fn server_name_indication(value: &Value) -> Result<ServerNameIndication, Fault> {
    const EXPECTED: &str = "a host's name or address as the certificate holds it, or disable";
    match text::string(value, EXPECTED)? {
        "" => Ok(ServerNameIndication::Host),
        "disable" => Ok(ServerNameIndication::Disable),
        name if ServerName::try_from(name).is_ok() => {
            Ok(ServerNameIndication::Name(name.to_owned()))
        }
        other => Err(Fault::bad(quote(other), EXPECTED)),
    }
}
