//! Certificates and keys: from PEM text to what TLS takes. What is wrong is said in words that fit
//! behind "the file, which"; they hold nothing of the text.

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, InconsistentKeys, RootCertStore};

const MALFORMED: &str = "holds a malformed certificate";

/// Which of two files is at fault, and why.
pub(crate) enum BadIdentity {
    Certificate(&'static str),
    Key(&'static str),
}

/// Whom to trust.
#[derive(Debug)]
pub(crate) struct Authorities {
    pub(crate) roots: RootCertStore,
    /// The certificates that the roots were made of; not of the system's, which nobody named.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// The certificates of authorities, each of which can be used.
pub(crate) fn authorities(pem: &[u8]) -> Result<Authorities, &'static str> {
    let certificates = certificates(pem)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|_| MALFORMED)?;
    }
    Ok(Authorities {
        roots,
        certificates,
    })
}

/// A certificate with those that lead to its authority, and its key.
pub(crate) fn identity(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, BadIdentity> {
    let chain = certificates(certificate).map_err(BadIdentity::Certificate)?;
    let key = private_key(key).map_err(BadIdentity::Key)?;
    let key = ring::sign::any_supported_type(&key).map_err(|_| {
        BadIdentity::Key("holds a key that is not RSA, ECDSA P-256/P-384 or Ed25519")
    })?;
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
        Err(rustls::Error::InconsistentKeys(_)) => Err(BadIdentity::Key(
            "holds a key that does not belong to the certificate",
        )),
        Err(_) => Err(BadIdentity::Certificate(MALFORMED)),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| MALFORMED)?;
    if certificates.is_empty() {
        return Err("holds no certificate in PEM");
    }
    Ok(certificates)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        _ if pem.windows(9).any(|word| word == b"ENCRYPTED") => "holds an encrypted key",
        Error::NoItemsFound => "holds no private key in PEM",
        _ => "holds a malformed key",
    })
}
