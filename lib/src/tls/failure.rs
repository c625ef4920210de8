//! What an error of TLS means to whoever operates the storage.

use std::io;

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError};

use crate::error::{TlsFailure, Why};

/// The error of TLS that an error of a stream wraps.
pub(crate) fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What `error` means; `section` is the path of the settings that the texts name.
pub(crate) fn why(error: &Error, section: &str) -> Why {
    let (kind, text) = match error {
        Error::InvalidCertificate(error) => bad_certificate(error, section),
        Error::AlertReceived(alert) => refusal(*alert, section),
        // What plain Redis answers begins with a character that no record of TLS begins with.
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => return not_tls(section),
        Error::PeerIncompatible(_) => (
            TlsFailure::HandshakeFailed,
            format!(
                "the server supports no version or cipher of TLS that this client does: {error}"
            ),
        ),
        _ => (
            TlsFailure::HandshakeFailed,
            format!("the TLS handshake failed: {error}"),
        ),
    };
    Why::Tls { kind, text }
}

/// The server does not speak TLS.
pub(super) fn not_tls(section: &str) -> Why {
    Why::Tls {
        kind: TlsFailure::NotTls,
        text: format!("the server speaks no TLS at this port ({section}.enable)"),
    }
}

/// The server wants a certificate, and there is none.
pub(super) fn client_certificate_required(section: &str) -> Why {
    why(
        &Error::AlertReceived(AlertDescription::CertificateRequired),
        section,
    )
}

/// What is wrong with the server's certificate.
fn bad_certificate(error: &CertificateError, section: &str) -> (TlsFailure, String) {
    use CertificateError as Bad;
    const ONE: &str = "the server's certificate, or one that vouches for it,";
    match error {
        // A bad signature is that of another authority that has the name of a trusted one, as one
        // that was made anew has.
        Bad::UnknownIssuer | Bad::BadSignature => (
            TlsFailure::UnknownCa,
            format!(
                "the server's certificate is signed by an authority that is not trusted \
                 ({section}.cacertfile)"
            ),
        ),
        Bad::NotValidForNameContext {
            expected,
            presented,
        } => (
            TlsFailure::WrongHost,
            format!(
                "the server's certificate is not for {}, but for {} ({section}.server_name_indication)",
                expected.to_str(),
                listed(presented)
            ),
        ),
        Bad::ExpiredContext { time, not_after } => (
            TlsFailure::Expired,
            format!(
                "{ONE} expired {} ago: renew it, or set this machine's clock",
                between(*not_after, *time)
            ),
        ),
        Bad::NotValidYetContext { time, not_before } => (
            TlsFailure::NotYetValid,
            format!(
                "{ONE} is not valid for another {}: set this machine's clock, or wait",
                between(*time, *not_before)
            ),
        ),
        Bad::Other(OtherError(error))
            if matches!(
                error.downcast_ref(),
                Some(webpki::Error::CaUsedAsEndEntity)
            ) =>
        {
            (
                TlsFailure::UnknownCa,
                format!(
                    "the server's certificate is an authority's, which is trusted only where it \
                     stands itself in {section}.cacertfile"
                ),
            )
        }
        other => {
            let kind = match other {
                Bad::NotValidForName => TlsFailure::WrongHost,
                Bad::Expired => TlsFailure::Expired,
                Bad::NotValidYet => TlsFailure::NotYetValid,
                _ => TlsFailure::BadCertificate,
            };
            (kind, format!("{ONE} can't be used: {other}"))
        }
    }
}

/// What the server says of this client.
fn refusal(alert: AlertDescription, section: &str) -> (TlsFailure, String) {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired | Alert::NoCertificate => (
            TlsFailure::ClientCertificateRequired,
            format!("the server wants a certificate of this client ({section}.certfile)"),
        ),
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::DecryptError
        | Alert::AccessDenied => (
            TlsFailure::ClientCertificateRefused,
            format!("the server refuses this client's certificate: {alert:?} ({section}.certfile)"),
        ),
        Alert::HandshakeFailure => (
            TlsFailure::HandshakeFailed,
            "the server refuses the handshake: it supports no cipher that this client does"
                .to_owned(),
        ),
        _ => (
            TlsFailure::HandshakeFailed,
            format!("the server refuses the handshake: {alert:?}"),
        ),
    }
}

/// The names that a certificate is for, as far as they fit a line.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 4;
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    // webpki gives `DnsName("localhost")` and `IpAddress(::1)`.
    let bare = |name: &String| {
        let inner = name
            .split_once('(')
            .map_or(name.as_str(), |(_, inner)| inner);
        inner.trim_end_matches(')').trim_matches('"').to_owned()
    };
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(bare).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

fn between(from: UnixTime, to: UnixTime) -> String {
    let hours = to.as_secs().saturating_sub(from.as_secs()) / 3600;
    match hours {
        0 => "less than 1 h".to_owned(),
        1..=48 => format!("{hours} h"),
        _ => format!("{} d", hours / 24),
    }
}
