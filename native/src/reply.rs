//! From an answer to the one message that a caller gets.

use std::panic::{catch_unwind, AssertUnwindSafe};

use bytes::Bytes;
use emqx_redis_core::error::Error;
use emqx_redis_core::request::{Answer, Responder};
use emqx_redis_core::resp::Frame;
use rustler::env::SavedTerm;
use rustler::{Binary, Encoder, Env, LocalPid, NewBinary, OwnedEnv, Term};

use crate::codec::{self, DecodeError};
use crate::error_term::{binary, encode_error};
use crate::{atoms, codec::make_atom};

/// An answer of more bytes is built beside the engine's thread, which others wait for.
const LARGE: usize = 8 * 1024;

/// The process that waits for `{emqx_redis_reply, Ref, Result}`.
pub(crate) struct Caller {
    pid: LocalPid,
    env: OwnedEnv,
    reference: SavedTerm,
}

impl Caller {
    pub(crate) fn new(pid: LocalPid, reference: Term<'_>) -> Self {
        let env = OwnedEnv::new();
        let reference = env.save(reference);
        Caller {
            pid,
            env,
            reference,
        }
    }

    fn send(mut self, result: Result<Answer, Error>) {
        let reference = self.reference;
        // The only way to fail is that the process is gone.
        let _ = self.env.send_and_clear(&self.pid, |env| {
            let built = catch_unwind(AssertUnwindSafe(|| {
                let answer = result?;
                match encode_answer(env, &answer, Stored::Term) {
                    Err(Undone::NeedsScheduler) => encode_answer(env, &answer, Stored::Bytes)
                        .map(|answer| (atoms::emqx_redis_encoded(), answer).encode(env)),
                    result => result,
                }
                .map_err(Error::from)
            }));
            let panicked = |_| Err(Error::Internal("building the answer panicked".into()));
            let result = match built.unwrap_or_else(panicked) {
                Ok(term) => term,
                Err(error) => (atoms::error(), encode_error(env, &error)).encode(env),
            };
            (atoms::emqx_redis_reply(), reference.load(env), result).encode(env)
        });
    }
}

impl Responder for Caller {
    fn respond(self: Box<Self>, result: Result<Answer, Error>) {
        let is_large = result.as_ref().is_ok_and(|answer| size(answer) > LARGE);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if is_large => {
                let delivery = Delivery(Some((self, result)));
                drop(runtime.spawn_blocking(move || drop(delivery)));
            }
            _ => self.send(result),
        }
    }

    fn is_abandoned(&self) -> bool {
        !self.env.run(|env| self.pid.is_alive(env))
    }
}

/// An answer that is sent when this is dropped: so also where the runtime ends before the turn of
/// the task that has it.
struct Delivery(Option<(Box<Caller>, Result<Answer, Error>)>);

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some((caller, result)) = self.0.take() {
            caller.send(result);
        }
    }
}

/// About how much work it is to build the term.
fn size(answer: &Answer) -> usize {
    const ELEMENT: usize = 16;
    fn frame(reply: &Frame) -> usize {
        match reply {
            Frame::Bulk(bytes) | Frame::Simple(bytes) | Frame::Error(bytes) => bytes.len(),
            Frame::Array(elements) => elements.iter().map(|it| ELEMENT + frame(it)).sum(),
            Frame::Integer(_) | Frame::Nil => 0,
        }
    }
    match answer {
        Answer::Ok | Answer::Count(_) | Answer::Dropped(_) | Answer::DroppedByClient(_) => 0,
        Answer::Term(bytes) => bytes.len(),
        Answer::Claimed(_, session) => session.as_ref().map_or(0, |bytes| bytes.len()),
        Answer::Messages(messages) => messages.iter().map(|(_, value)| value.len()).sum(),
        Answer::Binaries(all) => all.iter().map(|bytes| ELEMENT + bytes.len()).sum(),
        Answer::Routes(routes) => routes
            .iter()
            .map(|(filter, _)| ELEMENT + filter.len())
            .sum(),
        Answer::Subscriptions(all) => all
            .iter()
            .map(|(filter, _, options)| 2 * ELEMENT + filter.len() + options.len())
            .sum(),
        Answer::Versions(versions) => versions.len() * ELEMENT,
        Answer::Topics(all, _) => all.iter().map(|bytes| ELEMENT + bytes.len()).sum(),
        Answer::Reply(reply) => frame(reply),
        Answer::Replies(replies) => replies.iter().map(frame).sum(),
    }
}

/// How what is stored goes to the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// As the term that it is.
    Term,
    /// As the bytes that it is, messages with their ids: `emqx_redis_request` makes the terms.
    Bytes,
}

/// Why an answer could not be built.
enum Undone {
    /// Only a scheduler may make maps that large: see [`codec::DecodeError::NeedsScheduler`].
    NeedsScheduler,
    Failed(Error),
}

impl From<Undone> for Error {
    fn from(undone: Undone) -> Error {
        match undone {
            Undone::NeedsScheduler => Error::Internal("a map of stored bytes".into()),
            Undone::Failed(error) => error,
        }
    }
}

fn encode_answer<'a>(env: Env<'a>, answer: &Answer, stored: Stored) -> Result<Term<'a>, Undone> {
    let value = match answer {
        Answer::Ok => return Ok(atoms::ok().to_term(env)),
        Answer::Count(count) => count.encode(env),
        Answer::Term(bytes) => decode(env, bytes, stored)?,
        Answer::Messages(messages) => match stored {
            Stored::Term => decode_messages(env, messages)?.encode(env),
            Stored::Bytes => {
                let pairs: Vec<Term<'a>> = messages
                    .iter()
                    .map(|(id, value)| (binary(env, id), binary(env, value)).encode(env))
                    .collect();
                pairs.encode(env)
            }
        },
        Answer::Binaries(all) => binaries(env, all),
        Answer::Dropped(ids) => map(env, &[(atoms::dropped(), binaries(env, ids))]),
        Answer::DroppedByClient(clients) => {
            let clients: Vec<(Term<'a>, Term<'a>)> = clients
                .iter()
                .map(|(client, ids)| (binary(env, client), binaries(env, ids)))
                .collect();
            map(env, &[(atoms::dropped(), clients.encode(env))])
        }
        Answer::Claimed(epoch, session) => {
            let session = match session {
                Some(bytes) => decode(env, bytes, stored)?,
                None => atoms::undefined().to_term(env),
            };
            let epoch = epoch.encode(env);
            map(env, &[(atoms::epoch(), epoch), (atoms::session(), session)])
        }
        Answer::Routes(routes) => {
            let terms: Result<Vec<Term<'a>>, Undone> = routes
                .iter()
                .map(|(filter, node)| {
                    let node = make_atom(env, node).map_err(|error| undone(error, None))?;
                    Ok((binary(env, filter), node).encode(env))
                })
                .collect();
            terms?.encode(env)
        }
        Answer::Subscriptions(all) => {
            let terms: Result<Vec<Term<'a>>, Undone> = all
                .iter()
                .map(|(filter, client, options)| {
                    let options = decode(env, options, stored)?;
                    Ok((binary(env, filter), binary(env, client), options).encode(env))
                })
                .collect();
            terms?.encode(env)
        }
        Answer::Versions(versions) => versions.encode(env),
        Answer::Topics(all, next) => {
            let next = match next {
                Some((shard, filter, score)) => {
                    (*shard, binary(env, filter), binary(env, score)).encode(env)
                }
                None => atoms::done().to_term(env),
            };
            (binaries(env, all), next).encode(env)
        }
        Answer::Reply(reply) => encode_frame(env, reply),
        Answer::Replies(replies) => {
            let replies: Vec<Term<'a>> = replies
                .iter()
                .map(|reply| match reply {
                    Frame::Error(_) => encode_frame(env, reply),
                    _ => (atoms::ok(), encode_frame(env, reply)).encode(env),
                })
                .collect();
            replies.encode(env)
        }
    };
    Ok((atoms::ok(), value).encode(env))
}

fn decode<'a>(env: Env<'a>, bytes: &[u8], stored: Stored) -> Result<Term<'a>, Undone> {
    match stored {
        Stored::Term => codec::decode(env, bytes).map_err(|error| undone(error, None)),
        Stored::Bytes => Ok(binary(env, bytes)),
    }
}

/// Messages are copied into the VM in pieces of about that many bytes, of which their binaries are
/// parts: one allocation for many. A binary that is kept keeps no more than its piece.
const PIECE: usize = 16 * 1024;

fn decode_messages<'a>(env: Env<'a>, messages: &[(Bytes, Bytes)]) -> Result<Vec<Term<'a>>, Undone> {
    let mut terms = Vec::with_capacity(messages.len());
    let mut rest = messages;
    while !rest.is_empty() {
        let mut size = 0;
        let count = rest
            .iter()
            .take_while(|(_, value)| {
                let fits = size == 0 || size + value.len() <= PIECE;
                size += if fits { value.len() } else { 0 };
                fits
            })
            .count()
            .max(1);
        let (piece, others) = rest.split_at(count);
        decode_piece(env, piece, size, &mut terms)?;
        rest = others;
    }
    Ok(terms)
}

fn decode_piece<'a>(
    env: Env<'a>,
    messages: &[(Bytes, Bytes)],
    size: usize,
    terms: &mut Vec<Term<'a>>,
) -> Result<(), Undone> {
    let mut piece = NewBinary::new(env, size);
    let mut end = 0;
    for (_, value) in messages {
        piece[end..end + value.len()].copy_from_slice(value);
        end += value.len();
    }
    let piece = Binary::from(piece);
    let mut begin = 0;
    for (id, value) in messages {
        let range = begin..begin + value.len();
        begin = range.end;
        let term = codec::decode_part(env, piece, range);
        let term = term.map_err(|error| undone(error, Some(id)))?;
        // A message is a map; another value is not one of ours, even if it can be decoded.
        if !term.is_map() {
            return Err(undecodable("not_a_map", Some(id)));
        }
        terms.push(term);
    }
    Ok(())
}

fn undone(error: DecodeError, message_id: Option<&[u8]>) -> Undone {
    if error == DecodeError::NeedsScheduler {
        return Undone::NeedsScheduler;
    }
    undecodable(error.name(), message_id)
}

fn undecodable(reason: &str, message_id: Option<&[u8]>) -> Undone {
    Undone::Failed(Error::Undecodable {
        message_id: message_id.map(<[u8]>::to_vec),
        reason: reason.to_owned(),
    })
}

/// As eredis answers: status and string are binaries, nil is `undefined`.
fn encode_frame<'a>(env: Env<'a>, frame: &Frame) -> Term<'a> {
    match frame {
        Frame::Simple(bytes) | Frame::Bulk(bytes) => binary(env, bytes),
        Frame::Integer(value) => value.encode(env),
        Frame::Nil => atoms::undefined().to_term(env),
        Frame::Array(elements) => {
            let elements: Vec<Term<'a>> = elements.iter().map(|it| encode_frame(env, it)).collect();
            elements.encode(env)
        }
        Frame::Error(text) => {
            (atoms::error(), encode_error(env, &Error::from_reply(text))).encode(env)
        }
    }
}

fn binaries<'a>(env: Env<'a>, all: &[impl AsRef<[u8]>]) -> Term<'a> {
    let all: Vec<Term<'a>> = all
        .iter()
        .map(|bytes| binary(env, bytes.as_ref()))
        .collect();
    all.encode(env)
}

fn map<'a>(env: Env<'a>, pairs: &[(rustler::Atom, Term<'a>)]) -> Term<'a> {
    pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
        map.map_put(*key, *value).unwrap_or(map)
    })
}
