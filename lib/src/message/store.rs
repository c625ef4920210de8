//! Storing messages.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{member_prefix, shared_keys};
use crate::config::Ttl;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::order::score;
use crate::outcome::{script_reply, strings, transaction_replies, TypedKeys};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// A message to be stored.
pub struct Message {
    /// Its id, unique for the client.
    pub id: Vec<u8>,
    /// When it was published, in milliseconds since 1970; the time of storing where it is unknown.
    pub timestamp: Option<i64>,
    /// The encoded message.
    pub value: Arc<[u8]>,
}

/// How many messages a client's queue may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The most messages.
    pub most: u64,
    /// What happens when there would be more.
    pub on_full: OnFull,
}

/// What happens to a message that a queue has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest messages make room.
    DropOldest,
    /// Nothing is stored.
    Reject,
}

/// Stores messages of one client in one atomic unit.
pub struct StoreMessages {
    pub(super) client: Vec<u8>,
    pub(super) affinity: u64,
    messages: Vec<Message>,
    ttl: Option<Ttl>,
    limit: Option<Limit>,
    /// Whether nothing is to be stored where the client has no session.
    needs_session: bool,
    /// Decided when it is first sent.
    places: Vec<Place>,
    dropped: Vec<Bytes>,
    phase: Phase,
}

/// Where a message stands in its queue.
#[derive(Debug)]
struct Place {
    /// Its timestamp.
    millis: i64,
    /// Its score in the queue, which tells the order within a millisecond too.
    score: String,
    /// Whether a message that is there already takes this place: where it has another timestamp. One
    /// without a timestamp of its own stays where it is.
    moves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Everything at once, as commands or, where there is a limit, as a script.
    Store,
    /// Some were there already: do they have to move?
    Place,
    /// The queue is still too long.
    Trim,
    /// There is no session: what was stored is taken back.
    TakeBack,
}

impl StoreMessages {
    /// Stores `messages` for `client`.
    pub fn new(
        client: Vec<u8>,
        messages: Vec<Message>,
        ttl: Option<Ttl>,
        limit: Option<Limit>,
    ) -> Self {
        StoreMessages {
            affinity: hash(&client),
            client,
            messages,
            ttl,
            limit,
            needs_session: false,
            places: Vec::new(),
            dropped: Vec::new(),
            phase: Phase::Store,
        }
    }

    /// Stores nothing where the client has no session, and answers so. Not together with a limit.
    pub fn needs_session(mut self, needs_session: bool) -> Self {
        self.needs_session = needs_session;
        self
    }

    fn decide_places(&mut self, context: &Context) {
        if self.places.is_empty() {
            let now = context.clock.now_micros() / 1000;
            let places = self.messages.iter().map(|message| {
                let millis = message.timestamp.unwrap_or(now);
                let (at, place) = context.sequencer.next(self.affinity, millis);
                Place {
                    millis,
                    score: score(at, place),
                    moves: message.timestamp.is_some(),
                }
            });
            self.places = places.collect();
        }
    }

    fn encode_transaction(&self, context: &Context, out: &mut Commands<'_>) {
        let ttl = context.message_ttl(self.ttl);
        let members = || {
            self.messages
                .iter()
                .map(|message| context.keys.message_member(&self.client, &message.id))
        };
        out.command(&[b"MULTI"]);
        if self.needs_session {
            out.command(&[b"EXISTS", &context.keys.session(&self.client)]);
        }
        for message in self.unstamped() {
            let key = context.keys.message(&self.client, &message.id);
            out.command(&[b"EXISTS", &key]);
        }
        for message in &self.messages {
            let key = context.keys.message(&self.client, &message.id);
            match ttl {
                Some(ttl) => out
                    .begin(5)
                    .arg(b"SET")
                    .arg(&key)
                    .arg(&message.value)
                    .arg(b"PX")
                    .int(ttl * 1000),
                None => out.command(&[b"SET", &key, &message.value]),
            };
        }
        // A message that is there already keeps its place: it was stored again.
        out.begin(3 + 2 * self.messages.len())
            .arg(b"ZADD")
            .arg(&context.keys.queue(&self.client))
            .arg(b"NX");
        for (message, place) in self.messages.iter().zip(&self.places) {
            out.arg(place.score.as_bytes()).arg(&message.id);
        }
        if context.message_index() {
            self.encode_index(context, out);
        }
        let expires = expires_at(context, ttl);
        let slot = context.keys.client_slot(&self.client);
        out.begin(2 + 2 * self.messages.len())
            .arg(b"ZADD")
            .arg(&context.keys.messages_expiry(slot));
        for member in members() {
            out.arg(expires.as_bytes()).arg(&member);
        }
        out.command(&[b"EXEC"]);
    }

    /// Without a session nobody can have asked for any of these messages.
    fn encode_take_back(&self, context: &Context, out: &mut Commands<'_>) {
        out.command(&[b"MULTI"]);
        out.begin(1 + self.messages.len()).arg(b"DEL");
        for message in &self.messages {
            out.arg(&context.keys.message(&self.client, &message.id));
        }
        let keys = shared_keys(context, &self.client);
        out.begin(2 + self.messages.len())
            .arg(b"ZREM")
            .arg(&keys[0].0);
        for message in &self.messages {
            out.arg(&message.id);
        }
        for (index, _) in &keys[1..] {
            out.begin(2 + self.messages.len()).arg(b"ZREM").arg(index);
            for message in &self.messages {
                out.arg(&context.keys.message_member(&self.client, &message.id));
            }
        }
        out.command(&[b"EXEC"]);
    }

    /// An unstamped message that is there already keeps its time in the index, too.
    fn encode_index(&self, context: &Context, out: &mut Commands<'_>) {
        let slot = context.keys.client_slot(&self.client);
        let index = context.keys.messages_index(slot);
        for moves in [true, false] {
            let placed = || {
                let placed = self.messages.iter().zip(&self.places);
                placed.filter(|(_, place)| place.moves == moves)
            };
            let count = placed().count();
            match (count, moves) {
                (0, _) => continue,
                (_, true) => out.begin(2 + 2 * count).arg(b"ZADD").arg(&index),
                (_, false) => {
                    let out = out.begin(3 + 2 * count);
                    out.arg(b"ZADD").arg(&index).arg(b"NX")
                }
            };
            for (message, place) in placed() {
                let member = context.keys.message_member(&self.client, &message.id);
                out.int(place.millis).arg(&member);
            }
        }
    }

    fn encode_limited(&self, context: &Context, out: &mut Commands<'_>, limit: Limit) {
        let ttl = context.message_ttl(self.ttl);
        let messages = match self.phase {
            Phase::Trim => &[],
            _ => &self.messages[..],
        };
        let mut keys = shared_keys(context, &self.client);
        // Where a slot is on its way to another server, a script that declares a key that is not there
        // is refused; one that derives it fails halfway.
        if context.keys.is_clustered() {
            let own = messages.iter();
            keys.extend(own.map(|it| (context.keys.message(&self.client, &it.id), "string")));
        }
        let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| key.as_slice()).collect();
        let arguments = 7 + 5 * messages.len();
        let out = scripts::call(context, out, Script::StoreLimited, &keys, arguments);
        out.arg(context.keys.prefix())
            .arg(&member_prefix(context, &self.client))
            .int(limit.most)
            .arg(match limit.on_full {
                OnFull::DropOldest => b"drop_oldest",
                OnFull::Reject => b"reject",
            });
        match ttl {
            Some(ttl) => out.int(ttl * 1000),
            None => out.arg(b""),
        };
        out.arg(expires_at(context, ttl).as_bytes())
            .int(u8::from(context.message_index()));
        for (message, place) in messages.iter().zip(&self.places) {
            out.arg(&message.id)
                .arg(&message.value)
                .arg(place.score.as_bytes())
                .int(place.millis)
                .int(u8::from(place.moves));
        }
    }

    fn encode_places(&self, context: &Context, out: &mut Commands<'_>) {
        let queue = context.keys.queue(&self.client);
        let moving = || {
            let placed = self.messages.iter().zip(&self.places);
            placed.filter(|(_, place)| place.moves)
        };
        let arguments = 3 * moving().count();
        let out = scripts::call(context, out, Script::PlaceMessages, &[&queue], arguments);
        for (message, place) in moving() {
            out.arg(&message.id)
                .arg(place.score.as_bytes())
                .int(place.millis);
        }
    }

    /// The messages without a timestamp of their own.
    fn unstamped(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|it| it.timestamp.is_none())
    }

    /// What the queue still held of an unstamped message that had expired is no place to keep.
    fn note_expired(&mut self, exists: &[Frame]) {
        let mut exists = exists.iter();
        let mut seen = HashSet::new();
        for (message, place) in self.messages.iter().zip(&mut self.places) {
            let first = seen.insert(&message.id);
            if message.timestamp.is_none() {
                place.moves = exists.next() == Some(&Frame::Integer(0)) && first;
            }
        }
    }

    fn typed_keys(&self, context: &Context) -> TypedKeys {
        // SET replaces whatever stands at a message's key, so only the others can be in the way.
        shared_keys(context, &self.client)
    }

    fn decode_transaction(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let results = match transaction_replies(replies, || self.typed_keys(context)) {
            Ok(results) => results,
            Err(step) => return step,
        };
        let mut results = results;
        if self.needs_session && results.remove(0) == Frame::Integer(0) {
            self.phase = Phase::TakeBack;
            return Step::Again;
        }
        let unstamped = self.unstamped().count();
        match results.get(unstamped + self.messages.len()) {
            Some(Frame::Integer(new)) if *new == self.messages.len() as i64 => return self.done(),
            Some(Frame::Integer(_)) => {}
            _ => return Step::Done(Err(Error::unexpected_reply("ZADD"))),
        }
        self.note_expired(&results[..unstamped]);
        if !self.places.iter().any(|place| place.moves) {
            return self.done();
        }
        self.phase = Phase::Place;
        Step::Again
    }

    fn decode_limited(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let reply = match script_reply(replies, || self.typed_keys(context)) {
            Ok(reply) => reply,
            Err(step) => return step,
        };
        let mut elements = match reply {
            Frame::Integer(-1) => return Step::Done(Err(Error::QueueFull)),
            Frame::Array(elements) if !elements.is_empty() => elements,
            _ => return Step::Done(Err(Error::unexpected_reply("store_limited"))),
        };
        let excess = elements.remove(0);
        let Some(dropped) = strings(Frame::Array(elements)) else {
            return Step::Done(Err(Error::unexpected_reply("store_limited")));
        };
        self.dropped.extend(dropped);
        if excess == Frame::Integer(0) {
            return self.done();
        }
        self.phase = Phase::Trim;
        Step::Again
    }

    fn done(&mut self) -> Step {
        Step::Done(Ok(match std::mem::take(&mut self.dropped) {
            none if none.is_empty() => Answer::Ok,
            dropped => Answer::Dropped(dropped),
        }))
    }
}

fn expires_at(context: &Context, ttl: Option<u64>) -> String {
    match ttl {
        Some(ttl) => context.clock.expires_at(ttl).to_string(),
        None => "+inf".to_owned(),
    }
}

impl Operation for StoreMessages {
    fn kind(&self) -> OperationKind {
        OperationKind::StoreMessage
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(self.affinity)
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.messages.is_empty() {
            return;
        }
        self.decide_places(context);
        match (self.phase, self.limit) {
            (Phase::TakeBack, _) => self.encode_take_back(context, commands),
            (Phase::Place, _) => self.encode_places(context, commands),
            (_, Some(limit)) => self.encode_limited(context, commands, limit),
            (_, None) => self.encode_transaction(context, commands),
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            return self.done();
        }
        match (self.phase, self.limit) {
            (Phase::TakeBack, _) => match transaction_replies(replies, || self.typed_keys(context))
            {
                Ok(_) => Step::Done(Err(Error::NoSession)),
                Err(step) => step,
            },
            (Phase::Place, _) => match script_reply(replies, || self.typed_keys(context)) {
                Ok(_) => self.done(),
                Err(step) => step,
            },
            (_, Some(_)) => self.decode_limited(context, replies),
            (_, None) => self.decode_transaction(context, replies),
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.client))
    }

    fn is_write(&self) -> bool {
        true
    }

    /// The ids that a full queue drops are told once: a second time they are gone.
    fn may_repeat(&self) -> bool {
        let drops = |limit: &Limit| limit.on_full == OnFull::DropOldest;
        self.phase == Phase::Place || !self.limit.as_ref().is_some_and(drops)
    }

    fn size(&self) -> usize {
        let messages = self.messages.iter();
        self.client.len()
            + messages
                .map(|message| message.id.len() + message.value.len() + 64)
                .sum::<usize>()
    }
}
