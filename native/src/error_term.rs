//! Errors as terms. `emqx_redis_storage:error_reason/0` is their type.

use emqx_redis_core::error::{Error, Reached, TlsFailure, Why};
use rustler::{Encoder, Env, NewBinary, Term};

use crate::atoms;

/// A binary of its own.
pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.copy_from_slice(bytes);
    binary.into()
}

fn text<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    binary(env, text.as_bytes())
}

/// A request's error.
pub(crate) fn encode_error<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    match error {
        Error::Timeout => atoms::timeout().to_term(env),
        Error::Overloaded => atoms::overloaded().to_term(env),
        Error::Stopped => atoms::stopped().to_term(env),
        Error::Cancelled => atoms::cancelled().to_term(env),
        Error::NotFound => atoms::not_found().to_term(env),
        Error::NoSession => atoms::no_session().to_term(env),
        Error::Fenced => atoms::fenced().to_term(env),
        Error::QueueFull => atoms::queue_full().to_term(env),
        Error::Unknown(why) => (atoms::unknown(), encode_why(env, why)).encode(env),
        Error::Unavailable(why) => (atoms::unavailable(), encode_why(env, why)).encode(env),
        Error::StaleEpoch(epoch) => (atoms::stale_epoch(), *epoch).encode(env),
        Error::Partial(reply) => (atoms::partial(), text(env, reply)).encode(env),
        Error::PartialBatch(failed) => {
            let failed: Vec<Term<'a>> = failed
                .iter()
                .map(|(client, error)| (binary(env, client), encode_error(env, error)).encode(env))
                .collect();
            (atoms::partial(), failed).encode(env)
        }
        Error::Undecodable { message_id, reason } => {
            let reason = rustler::Atom::from_str(env, reason)
                .map_or_else(|_| text(env, reason), |atom| atom.to_term(env));
            let details = Term::map_new(env).map_put(atoms::reason(), reason);
            let details = match message_id {
                Some(id) => details
                    .and_then(|details| details.map_put(atoms::message_id(), binary(env, id))),
                None => details,
            };
            let details = details.unwrap_or_else(|_| Term::map_new(env));
            (atoms::undecodable(), details).encode(env)
        }
        Error::Redis { code, text: reply } => {
            (atoms::redis(), text(env, code), text(env, reply)).encode(env)
        }
        Error::NotDurable(Reached::Replicas(replicas)) => {
            (atoms::not_durable(), *replicas).encode(env)
        }
        Error::NotDurable(Reached::Aof { local, replicas }) => {
            (atoms::not_durable(), (*local, *replicas)).encode(env)
        }
        Error::Unsupported(what) => (atoms::unsupported(), text(env, what)).encode(env),
        Error::NotAllowed(command) => (atoms::not_allowed(), text(env, command)).encode(env),
        Error::Internal(defect) => (atoms::internal(), text(env, defect)).encode(env),
    }
}

/// What is wrong with a connection.
pub(crate) fn encode_why<'a>(env: Env<'a>, why: &Why) -> Term<'a> {
    let tagged = |tag: rustler::Atom, detail: &str| (tag, text(env, detail)).encode(env);
    match why {
        Why::Connecting => atoms::connecting().to_term(env),
        Why::Refused => atoms::econnrefused().to_term(env),
        Why::ConnectTimeout => atoms::connect_timeout().to_term(env),
        Why::NameNotFound(name) => tagged(atoms::nxdomain(), name),
        Why::Closed => atoms::closed().to_term(env),
        Why::Hung => atoms::hung().to_term(env),
        Why::WrongPassword(reply) => tagged(atoms::wrong_password(), reply),
        Why::NoPermission(reply) => tagged(atoms::no_permission(), reply),
        Why::Loading => atoms::loading().to_term(env),
        Why::TooManyClients => atoms::too_many_clients().to_term(env),
        Why::NotMaster => atoms::not_master().to_term(env),
        Why::UnknownMaster(name) => tagged(atoms::unknown_master(), name),
        Why::ClusterDown(detail) => tagged(atoms::cluster_down(), detail),
        Why::Server(reply) => tagged(atoms::server(), reply),
        Why::Protocol(detail) => tagged(atoms::protocol(), detail),
        Why::Io(detail) => tagged(atoms::io(), detail),
        Why::Stopped => atoms::stopped().to_term(env),
        Why::Cancelled => atoms::cancelled().to_term(env),
        Why::Layout(detail) => tagged(atoms::layout(), detail),
        Why::Tls { kind, text: detail } => {
            (atoms::tls(), encode_tls_failure(*kind), text(env, detail)).encode(env)
        }
    }
}

fn encode_tls_failure(kind: TlsFailure) -> rustler::Atom {
    match kind {
        TlsFailure::UnknownCa => atoms::unknown_ca(),
        TlsFailure::WrongHost => atoms::wrong_host(),
        TlsFailure::Expired => atoms::expired(),
        TlsFailure::NotYetValid => atoms::not_yet_valid(),
        TlsFailure::BadCertificate => atoms::bad_certificate(),
        TlsFailure::ClientCertificateRequired => atoms::client_certificate_required(),
        TlsFailure::ClientCertificateRefused => atoms::client_certificate_refused(),
        TlsFailure::NotTls => atoms::not_tls(),
        TlsFailure::HandshakeFailed => atoms::handshake_failed(),
    }
}
