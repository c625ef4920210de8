//! From a term to an operation.

use std::sync::Arc;

use emqx_redis_core::command::{Command, Query};
use emqx_redis_core::config::{Durability, Ttl};
use emqx_redis_core::keys::valid_node;
use emqx_redis_core::message::{
    AckMessages, DeleteMessages, GetMarks, GetMessages, Limit, MarkMessages, Message, OnFull,
    StoreMessageFor, StoreMessages,
};
use emqx_redis_core::request::Operation;
use emqx_redis_core::route_scripts::Space;
use emqx_redis_core::router::{Changes, Find, Topics};
use emqx_redis_core::session::{
    ClaimSession, CountSessions, DeleteSession, ListSessions, LoadSession, SaveSession,
};
use emqx_redis_core::topic::TopicError;
use rustler::types::tuple::get_tuple;
use rustler::{Binary, Encoder, Env, ListIterator, Term};

use crate::atoms;
use crate::codec::{self, EncodeError};
use crate::error_term::{binary, encode_error};

/// Why no operation could be made.
pub(crate) enum Refusal<'a> {
    /// It takes more bytes than may be handled here.
    OverBudget,
    /// It is not of the form that it must have.
    BadArgument,
    /// What the caller is told instead.
    Because(Term<'a>),
}

impl From<rustler::Error> for Refusal<'_> {
    fn from(_: rustler::Error) -> Self {
        Refusal::BadArgument
    }
}

type Decoded<'a, T> = Result<T, Refusal<'a>>;

/// What the bytes of a request may add up to.
struct Budget(usize);

/// What an element of a list costs beside its bytes.
const ELEMENT: usize = 16;

impl Budget {
    fn spend<'a>(&mut self, bytes: usize) -> Decoded<'a, ()> {
        self.0 = self.0.checked_sub(bytes).ok_or(Refusal::OverBudget)?;
        Ok(())
    }

    fn bytes<'a>(&mut self, term: Term<'a>) -> Decoded<'a, Vec<u8>> {
        let bytes: Binary<'a> = term.decode()?;
        self.spend(bytes.len())?;
        Ok(bytes.to_vec())
    }

    fn list<'a, T>(
        &mut self,
        term: Term<'a>,
        mut element: impl FnMut(&mut Self, Term<'a>) -> Decoded<'a, T>,
    ) -> Decoded<'a, Vec<T>> {
        let mut elements = Vec::new();
        for term in term.decode::<ListIterator<'a>>()? {
            self.spend(ELEMENT)?;
            elements.push(element(self, term)?);
        }
        Ok(elements)
    }

    fn term<'a>(&mut self, term: Term<'a>) -> Decoded<'a, Vec<u8>> {
        let bytes = codec::encode(term, self.0).map_err(|error| match error {
            EncodeError::OverBudget if self.0 == codec::MAX_BYTES => {
                too_large(term, "more than 64 MiB", String::new())
            }
            EncodeError::OverBudget => Refusal::OverBudget,
            EncodeError::Unencodable { what, path } => too_large(term, what, path),
        })?;
        self.spend(bytes.len())?;
        Ok(bytes)
    }
}

fn too_large<'a>(term: Term<'a>, what: &str, path: String) -> Refusal<'a> {
    let env = term.get_env();
    let what = binary(env, what.as_bytes());
    let path = binary(env, path.as_bytes());
    Refusal::Because((atoms::unencodable(), what, path).encode(env))
}

/// As an error's reason, where a topic name or filter is none.
pub(crate) fn invalid_topic<'a>(env: Env<'a>, error: TopicError) -> Option<Term<'a>> {
    let reason = rustler::Atom::from_str(env, error.name()).ok()?;
    Some((atoms::invalid_topic(), reason).encode(env))
}

/// Makes an operation of a tuple `{Name, Argument, …}`, as `emqx_redis_request` documents them.
pub(crate) fn decode<'a>(term: Term<'a>, budget: usize) -> Decoded<'a, Box<dyn Operation>> {
    let parts = get_tuple(term)?;
    let (name, arguments) = parts.split_first().ok_or(Refusal::BadArgument)?;
    let is = |atom: rustler::Atom| atom.to_term(term.get_env()) == *name;
    let mut budget = Budget(budget);
    let invalid_topic = |error: TopicError| {
        invalid_topic(term.get_env(), error).map_or(Refusal::BadArgument, Refusal::Because)
    };
    Ok(match *arguments {
        [client, data, ttl, epoch] if is(atoms::save_session()) => Box::new(SaveSession {
            client: budget.bytes(client)?,
            data: budget.term(data)?,
            ttl: time_to_live(ttl)?,
            epoch: optional(epoch)?,
        }),
        [client] if is(atoms::load_session()) => Box::new(LoadSession {
            client: budget.bytes(client)?,
        }),
        [client, epoch] if is(atoms::delete_session()) => Box::new(DeleteSession {
            client: budget.bytes(client)?,
            epoch: optional(epoch)?,
        }),
        [limit, offset] if is(atoms::list_sessions()) => {
            Box::new(ListSessions::new(limit.decode()?, offset.decode()?))
        }
        [] if is(atoms::count_sessions()) => Box::new(CountSessions::default()),
        [client] if is(atoms::claim_session()) => Box::new(ClaimSession {
            client: budget.bytes(client)?,
        }),
        [client, messages, ttl, limit] if is(atoms::store_messages()) => {
            let client = budget.bytes(client)?;
            let messages = budget.list(messages, message)?;
            Box::new(StoreMessages::new(
                client,
                messages,
                time_to_live(ttl)?,
                queue_limit(limit)?,
            ))
        }
        [clients, one, ttl, limit, needs_session] if is(atoms::store_message_for()) => {
            let clients = budget.list(clients, Budget::bytes)?;
            let message = message(&mut budget, one)?;
            Box::new(StoreMessageFor::new(
                clients,
                message,
                time_to_live(ttl)?,
                queue_limit(limit)?,
                needs_session.decode()?,
            ))
        }
        [client, offset, limit] if is(atoms::get_messages()) => Box::new(GetMessages::new(
            budget.bytes(client)?,
            offset.decode()?,
            limit.decode()?,
        )),
        [client, ids, epoch] if is(atoms::ack_messages()) => {
            let client = budget.bytes(client)?;
            let ids = budget.list(ids, Budget::bytes)?;
            Box::new(AckMessages::new(client, ids, optional(epoch)?))
        }
        [client, notes, epoch] if is(atoms::mark_messages()) => Box::new(MarkMessages {
            client: budget.bytes(client)?,
            notes: budget.list(notes, |budget, term| {
                let (id, note): (Term<'a>, Term<'a>) = term.decode()?;
                Ok((budget.bytes(id)?, budget.bytes(note)?))
            })?,
            epoch: optional(epoch)?,
        }),
        [client, ids] if is(atoms::get_marks()) => Box::new(GetMarks {
            client: budget.bytes(client)?,
            ids: budget.list(ids, Budget::bytes)?,
        }),
        [client, epoch] if is(atoms::delete_messages()) => Box::new(DeleteMessages {
            client: budget.bytes(client)?,
            epoch: optional(epoch)?,
        }),
        [routes, wants_versions] if is(atoms::add_routes()) || is(atoms::delete_routes()) => {
            let adds = is(atoms::add_routes());
            let routes = budget.list(routes, |budget, term| {
                let (filter, node): (Term<'a>, Term<'a>) = term.decode()?;
                Ok((budget.bytes(filter)?, node_name(budget, node)?, Vec::new()))
            })?;
            let wants = wants_versions.decode()?;
            Box::new(Changes::new(Space::Routes, adds, routes, wants).map_err(invalid_topic)?)
        }
        [all, wants_versions] if is(atoms::add_subscriptions()) => {
            let all = budget.list(all, |budget, term| {
                let (filter, client, options): (Term<'a>, Term<'a>, Term<'a>) = term.decode()?;
                let (filter, client) = (budget.bytes(filter)?, budget.bytes(client)?);
                Ok((filter, client, budget.term(options)?))
            })?;
            let wants = wants_versions.decode()?;
            Box::new(Changes::new(Space::Subscriptions, true, all, wants).map_err(invalid_topic)?)
        }
        [all, wants_versions] if is(atoms::delete_subscriptions()) => {
            let all = budget.list(all, |budget, term| match &get_tuple(term)?[..] {
                [filter, client] => {
                    Ok((budget.bytes(*filter)?, budget.bytes(*client)?, Vec::new()))
                }
                // Only where the subscription has these options.
                [filter, client, options] => {
                    let (filter, client) = (budget.bytes(*filter)?, budget.bytes(*client)?);
                    Ok((filter, client, budget.term(*options)?))
                }
                _ => Err(Refusal::BadArgument),
            })?;
            let wants = wants_versions.decode()?;
            Box::new(Changes::new(Space::Subscriptions, false, all, wants).map_err(invalid_topic)?)
        }
        [name] if is(atoms::match_routes()) => {
            Box::new(Find::new(Space::Routes, budget.bytes(name)?).map_err(invalid_topic)?)
        }
        [name] if is(atoms::match_subscriptions()) => {
            let name = budget.bytes(name)?;
            Box::new(Find::new(Space::Subscriptions, name).map_err(invalid_topic)?)
        }
        [] if is(atoms::topics()) => Box::new(Topics::default()),
        [words] if is(atoms::query()) => {
            let command = command(&mut budget, words)?;
            Box::new(Query::one(command).map_err(|error| refused(term, &error))?)
        }
        [commands] if is(atoms::pipeline()) => {
            let commands = budget.list(commands, command)?;
            Box::new(Query::pipeline(commands).map_err(|error| refused(term, &error))?)
        }
        _ => return Err(Refusal::BadArgument),
    })
}

fn refused<'a>(term: Term<'a>, error: &emqx_redis_core::error::Error) -> Refusal<'a> {
    Refusal::Because(encode_error(term.get_env(), error))
}

fn is_undefined(term: Term<'_>) -> bool {
    term == atoms::undefined().to_term(term.get_env())
}

fn optional<'a>(term: Term<'a>) -> Decoded<'a, Option<u64>> {
    match is_undefined(term) {
        true => Ok(None),
        false => Ok(Some(term.decode()?)),
    }
}

/// `undefined`, `infinity` or seconds.
fn time_to_live<'a>(term: Term<'a>) -> Decoded<'a, Option<Ttl>> {
    if is_undefined(term) {
        return Ok(None);
    }
    if term == atoms::infinity().to_term(term.get_env()) {
        return Ok(Some(Ttl::Infinity));
    }
    match term.decode::<u32>()? {
        0 => Err(Refusal::BadArgument),
        seconds => Ok(Some(Ttl::Seconds(seconds))),
    }
}

/// `none`, `{replicas, N}` or `{aof, Local, Replicas}`.
pub(crate) fn durability<'a>(term: Term<'a>) -> rustler::NifResult<Durability> {
    let env = term.get_env();
    let is = |term: &Term<'a>, atom: rustler::Atom| *term == atom.to_term(env);
    if is(&term, atoms::none()) {
        return Ok(Durability::None);
    }
    match &get_tuple(term)?[..] {
        [level, replicas] if is(level, atoms::replicas()) => {
            Ok(Durability::Replicas(replicas.decode()?))
        }
        [level, local, replicas] if is(level, atoms::aof()) => Ok(Durability::Aof {
            local: local.decode()?,
            replicas: replicas.decode()?,
        }),
        _ => Err(rustler::Error::BadArg),
    }
}

/// `undefined` or `{Most, drop_oldest | reject}`.
fn queue_limit<'a>(term: Term<'a>) -> Decoded<'a, Option<Limit>> {
    if is_undefined(term) {
        return Ok(None);
    }
    let (most, on_full): (u64, Term<'a>) = term.decode()?;
    let env = term.get_env();
    let on_full = match on_full {
        _ if on_full == atoms::drop_oldest().to_term(env) => OnFull::DropOldest,
        _ if on_full == atoms::reject().to_term(env) => OnFull::Reject,
        _ => return Err(Refusal::BadArgument),
    };
    Ok(Some(Limit { most, on_full }))
}

/// `{Id, Timestamp | undefined, Message}`.
fn message<'a>(budget: &mut Budget, term: Term<'a>) -> Decoded<'a, Message> {
    let (id, timestamp, value): (Term<'a>, Term<'a>, Term<'a>) = term.decode()?;
    Ok(Message {
        id: budget.bytes(id)?,
        timestamp: match is_undefined(timestamp) {
            true => None,
            false => Some(timestamp.decode()?),
        },
        value: Arc::from(budget.term(value)?),
    })
}

fn node_name<'a>(budget: &mut Budget, term: Term<'a>) -> Decoded<'a, Vec<u8>> {
    let node = budget.bytes(term)?;
    match valid_node(&node) {
        true => Ok(node),
        false => Err(Refusal::BadArgument),
    }
}

fn command<'a>(budget: &mut Budget, words: Term<'a>) -> Decoded<'a, Command> {
    budget.list(words, Budget::bytes)
}
