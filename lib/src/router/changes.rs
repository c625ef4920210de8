//! Adding and deleting routes and subscriptions, one or many.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{encode, table_reply};
use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::replica::feed::{position, Position};
use crate::replica::state::Element;
use crate::replica::{Claim, Outcome, Own};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::{self, Change, Space, Stamp};
use crate::scripts;
use crate::topic::{parse_filter, TopicError};

/// Changes made by one step.
const STEP: usize = 200;

/// One change.
struct Item {
    filter: Vec<u8>,
    destination: Vec<u8>,
    options: Vec<u8>,
    claim: Option<Claim>,
}

/// Adds or deletes routes or subscriptions. Each change is a unit of its own; the first that fails ends it.
pub struct Changes {
    space: Space,
    adds: bool,
    aim: Aim,
    items: Vec<Item>,
    affinity: Vec<u64>,
    /// How many are done.
    done: usize,
    /// Whether any of the current step may have been done.
    was_sent: bool,
    versions: BTreeMap<u16, u64>,
    wants_versions: bool,
    changed: u64,
    own: Option<Arc<Own>>,
}

/// What for.
#[derive(Clone)]
enum Aim {
    /// Somebody has asked for it.
    Asked,
    /// Own routes are added again, those that are wanted yet.
    Assert,
    /// Routes of a dead node are deleted, while its beat is this.
    Purge(Vec<u8>),
}

impl Changes {
    /// Adds (filter, destination, options), or deletes; subscriptions only where they have these options, unless none
    /// are given. Nodes must be
    /// [valid](crate::keys::valid_node) ones. Answers the feeds' versions with `wants_versions`.
    pub fn new(
        space: Space,
        adds: bool,
        all: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>,
        wants_versions: bool,
    ) -> Result<Self, TopicError> {
        for (filter, ..) in &all {
            parse_filter(filter)?;
        }
        let items = all.into_iter().map(|(filter, destination, options)| Item {
            filter,
            destination,
            options,
            claim: None,
        });
        Ok(Changes::of(
            space,
            adds,
            Aim::Asked,
            items.collect(),
            wants_versions,
        ))
    }

    fn of(space: Space, adds: bool, aim: Aim, items: Vec<Item>, wants_versions: bool) -> Self {
        let mut affinity: Vec<u64> = items.iter().map(|item| hash(&item.filter)).collect();
        affinity.sort_unstable();
        affinity.dedup();
        Changes {
            space,
            adds,
            aim,
            items,
            affinity,
            done: 0,
            was_sent: false,
            versions: BTreeMap::new(),
            wants_versions,
            changed: 0,
            own: None,
        }
    }

    fn of_node(aim: Aim, adds: bool, filters: Vec<Vec<u8>>, node: &[u8]) -> Self {
        let items = filters.into_iter().map(|filter| Item {
            filter,
            destination: node.to_vec(),
            options: Vec::new(),
            claim: None,
        });
        Changes::of(Space::Routes, adds, aim, items.collect(), false)
    }

    /// Adds routes of this node that Redis has lost. Those that are not wanted any more when it is sent are left out.
    pub(crate) fn assert(context: &Context, filters: Vec<Vec<u8>>) -> Self {
        Changes::of_node(Aim::Assert, true, filters, &context.node)
    }

    /// Deletes routes of a dead node, while the beat of its lease is `beat`: answers how many, or `Ok` alone if the
    /// node lives.
    pub(crate) fn purge(filters: Vec<Vec<u8>>, node: &[u8], beat: &[u8]) -> Self {
        Changes::of_node(Aim::Purge(beat.to_vec()), false, filters, node)
    }

    /// Deletes routes of a node by hand: answers how many.
    pub(crate) fn clean_up(filters: Vec<Vec<u8>>, node: &[u8]) -> Self {
        Changes::of_node(Aim::Purge(Vec::new()), false, filters, node)
    }

    fn shard(&self, context: &Context, item: &Item) -> u16 {
        let real = parse_filter(&item.filter).map_or("", |filter| filter.real);
        context.keys.shard(real.as_bytes())
    }

    fn step(&self) -> std::ops::Range<usize> {
        self.done..self.items.len().min(self.done + STEP)
    }

    fn is_left_out(&self, context: &Context, item: &Item) -> bool {
        matches!(self.aim, Aim::Assert) && !context.replica.own.wants(&item.filter)
    }

    fn note_version(&mut self, shard: u16, at: &Position) {
        let latest = self.versions.entry(shard).or_default();
        *latest = at.version.max(*latest);
    }

    /// One change was done, and the feed stood there afterwards.
    fn note(&mut self, context: &Context, index: usize, shard: u16, at: Position) {
        self.note_version(shard, &at);
        let item = &self.items[index];
        let change = Element {
            space: self.space,
            filter: &item.filter,
            destination: &item.destination,
            options: &item.options,
        };
        context
            .replica
            .own_change(&context.keys, &change, self.adds, at);
        self.end_claim(index, Outcome::Done);
    }

    fn end_claim(&mut self, index: usize, outcome: Outcome) {
        let item = &mut self.items[index];
        if let (Some(claim), Some(own)) = (item.claim.take(), &self.own) {
            own.ended(&item.filter, &claim, outcome);
        }
    }

    fn answer(&self) -> Answer {
        match &self.aim {
            Aim::Purge(_) => Answer::Count(self.changed),
            _ if self.wants_versions => {
                Answer::Versions(self.versions.iter().map(|(s, v)| (*s, *v)).collect())
            }
            _ => Answer::Ok,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let sent = if self.was_sent {
            self.step().end
        } else {
            self.done
        };
        for index in 0..self.items.len() {
            let outcome = match index < sent {
                true => Outcome::Unknown,
                false => Outcome::NotDone,
            };
            self.end_claim(index, outcome);
        }
    }
}

impl Operation for Changes {
    fn kind(&self) -> OperationKind {
        match (self.space, self.adds, &self.aim) {
            (_, _, Aim::Assert | Aim::Purge(_)) => OperationKind::Internal,
            (Space::Routes, true, _) => OperationKind::AddRoute,
            (Space::Routes, false, _) => OperationKind::DeleteRoute,
            (Space::Subscriptions, true, _) => OperationKind::AddSubscription,
            (Space::Subscriptions, false, _) => OperationKind::DeleteSubscription,
        }
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::Many(&self.affinity)
    }

    fn submitted(&mut self, context: &Context) {
        if self.space != Space::Routes || !matches!(self.aim, Aim::Asked) {
            return;
        }
        context.replica.want();
        let own = context.replica.own.clone();
        for item in &mut self.items {
            if item.destination == context.node {
                item.claim = Some(own.submitted(&item.filter, self.adds));
            }
        }
        self.own = Some(own);
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        self.was_sent = true;
        let micros = context.clock.now_micros();
        // A later start of a node of this name knows better which routes it wants.
        let bound = format!("={}", context.replica.life);
        for item in &self.items[self.step()] {
            let Ok(filter) = parse_filter(&item.filter) else {
                continue;
            };
            if self.is_left_out(context, item) {
                let key = context.keys.route(self.shard(context, item), &item.filter);
                commands.command(&[b"EXISTS", &key]);
                continue;
            }
            let is_own = self.adds && item.destination == context.node;
            let change = Change {
                space: self.space,
                adds: self.adds,
                options: &item.options,
                destination: &item.destination,
                proof: match &self.aim {
                    Aim::Purge(beat) => beat,
                    Aim::Assert => bound.as_bytes(),
                    Aim::Asked if is_own => context.replica.life.as_bytes(),
                    Aim::Asked => b"",
                },
            };
            let stamp = Stamp {
                micros,
                once: context.replica.once(),
            };
            let call = route_scripts::change(&context.keys, &filter, &change, &stamp);
            encode(context, commands, &call);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if replies.iter().any(scripts::is_unknown) {
            return Step::LoadScripts;
        }
        let step = self.step();
        let mut failed = None;
        // The node that is purged lives, or a later one has the name of this.
        let mut lives = false;
        for (index, reply) in step.clone().zip(replies) {
            let item = &self.items[index];
            let shard = self.shard(context, item);
            let reply = table_reply(context, self.space, shard, &item.filter, vec![reply]);
            match reply {
                Ok(Frame::Array(parts)) => match (&parts[..], position(&parts[1..])) {
                    ([Frame::Integer(2), ..], _) => lives = true,
                    // It has other options than it was to be deleted with, and stays.
                    ([Frame::Integer(-1), ..], Some(at)) => self.note_version(shard, &at),
                    ([Frame::Integer(changed), ..], Some(at)) => {
                        self.changed += *changed as u64;
                        self.note(context, index, shard, at);
                    }
                    _ => failed = failed.or(Some(unexpected())),
                },
                // An own route that is not wanted any more.
                Ok(Frame::Integer(_)) => {}
                Ok(_) => failed = failed.or(Some(unexpected())),
                Err(step) => failed = failed.or(Some(step)),
            }
        }
        if let Some(step) = failed {
            return step;
        }
        self.done = step.end;
        self.was_sent = false;
        if lives {
            return Step::Done(Ok(Answer::Ok));
        }
        match self.done < self.items.len() {
            true => Step::Again,
            false => Step::Done(Ok(self.answer())),
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        let item = self.items.get(self.done)?;
        Some(context.keys.shard_slot(self.shard(context, item)))
    }

    fn is_write(&self) -> bool {
        true
    }

    fn split(&mut self, context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        if self.items.len() < 2 || !context.keys.is_clustered() {
            return None;
        }
        let mut shards: BTreeMap<u16, Vec<Item>> = BTreeMap::new();
        for item in std::mem::take(&mut self.items) {
            let shard = self.shard(context, &item);
            shards.entry(shard).or_default().push(item);
        }
        let part = |items: Vec<Item>| {
            let mut part = Changes::of(
                self.space,
                self.adds,
                self.aim.clone(),
                items,
                self.wants_versions,
            );
            part.own = self.own.clone();
            Box::new(part) as Box<dyn Operation>
        };
        Some(shards.into_values().map(part).collect())
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        let mut versions = Vec::new();
        for result in results {
            match result? {
                Answer::Versions(of_shard) => versions.extend(of_shard),
                Answer::Count(count) => self.changed += count,
                // A node that is purged lives.
                Answer::Ok if matches!(self.aim, Aim::Purge(_)) => return Ok(Answer::Ok),
                _ => {}
            }
        }
        self.versions.extend(versions);
        Ok(self.answer())
    }

    fn size(&self) -> usize {
        let size = |it: &Item| it.filter.len() + it.destination.len() + it.options.len();
        self.items.iter().map(size).sum()
    }
}

fn unexpected() -> Step {
    Step::Done(Err(Error::unexpected_reply("change of a route")))
}
