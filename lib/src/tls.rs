//! TLS to a server: what of it a configuration makes, the handshake, and what went wrong with it.

mod diagnosis;
mod failure;
#[cfg(test)]
mod tests;
mod verifier;

use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{AlertDescription, ClientConfig, Error, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::config::pem::{self, Authorities, BadIdentity};
use crate::config::{ServerNameIndication, Ssl, Verify};
use crate::connection::io_why;
use crate::error::{TlsFailure, Why};

use diagnosis::{answers_without_tls, NoIdentity, SILENCE};
pub(crate) use failure::{rustls_error, why};
use verifier::Verifier;

/// Encrypts connections as a section of the configuration says. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    /// What keeps it from being made is told by every attempt to connect.
    config: Arc<Result<ClientConfig, Why>>,
    name: ServerNameIndication,
    section: &'static str,
}

impl Connector {
    /// What the section at the path `section` (`redis.ssl`) makes; `None` where it does not enable
    /// TLS. Without a `cacertfile` this reads the system's authorities: files, which takes
    /// milliseconds, so it is done once for a configuration.
    pub fn new(ssl: &Ssl, section: &'static str) -> Option<Connector> {
        ssl.enable.then(|| Connector {
            config: Arc::new(client_config(ssl, section)),
            name: ssl.server_name_indication.clone(),
            section,
        })
    }

    /// Makes `stream`, which was connected to `host`, an encrypted one. `host` is a name or an IP
    /// address, an IPv6 address without brackets. It takes as long as the server lets it.
    ///
    /// In TLS 1.3 a server refuses this client's certificate, or that there is none, only after the
    /// handshake: the first read fails then, with an error that wraps rustls's.
    ///
    /// # Errors
    /// [`Why::Tls`], or what is wrong with the connection under it.
    pub async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Why> {
        let mut config = self.config.as_ref().clone()?;
        let name = self.server_name(host)?;
        let no_identity = Arc::new(NoIdentity::default());
        if !config.client_auth_cert_resolver.has_certs() {
            config.client_auth_cert_resolver = no_identity.clone();
        }
        let address = stream.peer_addr().map_err(io_why)?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut handshake = pin!(connector.connect(name, stream));
        let done = match timeout(SILENCE, &mut handshake).await {
            Ok(done) => done,
            Err(_) if answers_without_tls(address).await => {
                return Err(failure::not_tls(self.section))
            }
            Err(_) => handshake.await,
        };
        done.map_err(|error| match rustls_error(&error) {
            Some(Error::AlertReceived(AlertDescription::HandshakeFailure))
                if no_identity.was_asked() =>
            {
                failure::client_certificate_required(self.section)
            }
            Some(error) => why(error, self.section),
            None => io_why(error),
        })
    }

    /// The path of the settings that it was made of.
    pub(crate) fn section(&self) -> &'static str {
        self.section
    }

    fn server_name(&self, host: &str) -> Result<ServerName<'static>, Why> {
        let name = match &self.name {
            ServerNameIndication::Host => host,
            ServerNameIndication::Name(name) => name,
            // It is neither sent nor checked.
            ServerNameIndication::Disable => return Ok(Ipv4Addr::UNSPECIFIED.into()),
        };
        ServerName::try_from(name.to_owned()).map_err(|_| Why::Tls {
            kind: TlsFailure::WrongHost,
            text: format!(
                "{name} is no name that a certificate can hold ({}.server_name_indication)",
                self.section
            ),
        })
    }
}

fn client_config(ssl: &Ssl, section: &str) -> Result<ClientConfig, Why> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(
        trust(ssl, section)?,
        ssl.server_name_indication != ServerNameIndication::Disable,
        provider.signature_verification_algorithms,
    );
    let broken = |error| why(&error, section);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&ssl.certfile, &ssl.keyfile) {
        (Some(certificate), Some(key)) => {
            let identity = pem::identity(certificate.contents.expose(), key.contents.expose())
                .map_err(|bad| match bad {
                    BadIdentity::Certificate(why) => unusable(section, "certfile", why),
                    BadIdentity::Key(why) => unusable(section, "keyfile", why),
                })?;
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        _ => config.with_no_client_auth(),
    };
    config.enable_sni = ssl.server_name_indication != ServerNameIndication::Disable;
    // Connections are few and last: each handshake may well look at the certificate anew.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whom to trust; `None` where anybody is.
fn trust(ssl: &Ssl, section: &str) -> Result<Option<Authorities>, Why> {
    match (ssl.verify, &ssl.cacertfile) {
        (Verify::None, _) => Ok(None),
        (Verify::Peer, None) => system_authorities(section).map(Some),
        (Verify::Peer, Some(file)) => pem::authorities(file.contents.expose())
            .map(Some)
            .map_err(|why| unusable(section, "cacertfile", why)),
    }
}

fn system_authorities(section: &str) -> Result<Authorities, Why> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(String::new, |error| format!(", {error}"));
        return Err(Why::Tls {
            kind: TlsFailure::UnknownCa,
            text: format!(
                "the system names no trusted authorities{why}: name them ({section}.cacertfile)"
            ),
        });
    }
    Ok(Authorities {
        roots,
        certificates: Vec::new(),
    })
}

/// Never of a configuration that was validated.
fn unusable(section: &str, key: &str, why: &str) -> Why {
    Why::Tls {
        kind: TlsFailure::HandshakeFailed,
        text: format!("the file in {section}.{key} {why}"),
    }
}
