//! What decides whether the tables in memory are those in Redis: no clock, no connection, no thread of its own.
//!
//! The feed is followed entry by entry, each linked to the one before. Whatever else a server answered along with a
//! place in the feed (a change of this node, a page of the table) is noted as a checkpoint, and must turn out to lie on
//! the way: after a fail-over the feed may go on from a place before it, with other entries under the same versions.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::feed::{Entry, Position};
use super::tables::{TableLock, Tables};
use crate::route_scripts::Space;

/// Entries applied in one go: readers turn away meanwhile.
const SLICE: usize = 32;

/// Places that are remembered.
const PASSED: usize = 1024;

/// Why a table can't be trusted any more.
pub type Divergence = &'static str;

/// The state of one shard.
pub struct State {
    mode: Mode,
    /// Own changes that are in the table before the feed has come to them.
    ahead: HashMap<(Space, Bytes), Vec<Ahead>>,
    /// Places that the feed must come by, and when they were noted.
    checkpoints: BTreeMap<u64, (Bytes, Instant)>,
    /// The last places that it came by.
    passed: VecDeque<Position>,
    /// Since when something was told that may be of another history: a poll after that decides.
    doubted: Option<Instant>,
}

enum Mode {
    /// Nothing is known.
    Lost,
    /// A fresh table is read, up to this place.
    Reading(Position, Box<Fresh>),
    /// The table in use is that of this place.
    Following(Position),
}

#[derive(Default)]
struct Fresh {
    tables: Tables,
    /// All pages are read; from when on.
    is_whole: Option<Instant>,
}

struct Ahead {
    destination: Bytes,
    version: u64,
    adds: bool,
    options: Bytes,
}

/// One destination of a filter, as a page tells it.
pub struct Element<'a> {
    /// The table.
    pub space: Space,
    /// The filter.
    pub filter: &'a [u8],
    /// The node or client.
    pub destination: &'a [u8],
    /// A subscription's options.
    pub options: &'a [u8],
}

/// What a poll found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The table in use holds all that was changed before the poll was sent.
    pub caught_up: bool,
    /// The fresh table has just been put into use.
    pub swapped: bool,
}

impl Default for State {
    fn default() -> Self {
        State {
            mode: Mode::Lost,
            ahead: HashMap::new(),
            checkpoints: BTreeMap::new(),
            passed: VecDeque::new(),
            doubted: None,
        }
    }
}

impl State {
    /// Where the feed has been followed to.
    pub fn position(&self) -> Option<&Position> {
        match &self.mode {
            Mode::Lost => None,
            Mode::Reading(position, _) | Mode::Following(position) => Some(position),
        }
    }

    /// Whether the table in use is kept true.
    pub fn is_following(&self) -> bool {
        matches!(self.mode, Mode::Following(_))
    }

    /// Whether no page is missing.
    pub fn is_whole(&self) -> bool {
        match &self.mode {
            Mode::Reading(_, fresh) => fresh.is_whole.is_some(),
            _ => true,
        }
    }

    /// Whether own changes are in the table that the feed has not come to.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Whether the table in use may be of another history than what was told last.
    pub fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// Begins to read a fresh table: the feed stands at `position`.
    pub fn begin(&mut self, position: Position) {
        self.ahead.clear();
        self.checkpoints.clear();
        self.passed = VecDeque::from([position.clone()]);
        self.mode = Mode::Reading(position, Box::default());
    }

    /// The table can't be trusted any more. What it holds stays until there is a fresh one.
    pub fn lose(&mut self) {
        self.mode = Mode::Lost;
    }

    /// A change of this node was done, and the feed stood at `at` then. It is seen at once.
    pub fn own_change(
        &mut self,
        tables: &TableLock,
        change: &Element<'_>,
        adds: bool,
        at: Position,
        now: Instant,
    ) -> Result<(), Divergence> {
        let Some(position) = self.position() else {
            return Ok(());
        };
        // The feed may be further: it knows better, if it is the same.
        if at.version <= position.version {
            let passed = self.passed.iter().rev().find(|it| it.version == at.version);
            return match passed {
                Some(passed) if passed.nonce == at.nonce => Ok(()),
                Some(_) => Err("a change was done in another history"),
                None => {
                    self.doubted = Some(now);
                    Ok(())
                }
            };
        }
        let version = at.version;
        self.checkpoint(at, now)?;
        let key = (change.space, Bytes::copy_from_slice(change.filter));
        let all = self.ahead.entry(key).or_default();
        if all
            .iter()
            .any(|it| it.destination == change.destination && it.version >= version)
        {
            return Ok(());
        }
        all.retain(|it| it.destination != change.destination);
        all.push(Ahead {
            destination: Bytes::copy_from_slice(change.destination),
            version,
            adds,
            options: Bytes::copy_from_slice(change.options),
        });
        tables.write(|tables| apply_own(tables, change, adds));
        Ok(())
    }

    /// What two servers told of one version is not of one history, and the feed could pass by one alone.
    fn checkpoint(&mut self, at: Position, now: Instant) -> Result<(), Divergence> {
        let (nonce, _) = self
            .checkpoints
            .entry(at.version)
            .or_insert_with(|| (at.nonce.clone(), now));
        match *nonce == at.nonce {
            true => Ok(()),
            false => Err("a place in the feed was told of two histories"),
        }
    }

    /// Takes in what a page of the table, read when the feed stood at `at`, says of one destination each. The poll
    /// before it was answered before it was asked for, so that the page knows all that the table does.
    pub fn page<'a>(
        &mut self,
        elements: impl Iterator<Item = Element<'a>>,
        at: Option<Position>,
        now: Instant,
    ) -> Result<(), Divergence> {
        let Mode::Reading(position, fresh) = &mut self.mode else {
            return Ok(());
        };
        for element in elements {
            fresh.tables.add(
                element.space,
                element.filter,
                element.destination,
                element.options,
            );
        }
        if let Some(at) = at {
            if at.version < position.version || at.version == position.version && at != *position {
                return Err("a page of another history");
            }
            if at.version > position.version {
                self.checkpoint(at, now)?;
            }
        }
        Ok(())
    }

    /// There are no more pages.
    pub fn whole(&mut self, now: Instant) {
        if let Mode::Reading(_, fresh) = &mut self.mode {
            fresh.is_whole = Some(now);
        }
    }

    /// Takes in what a poll, sent at `sent`, read of the feed from the position on, itself included; `to_end` tells
    /// that there was no more. `see` is shown each entry with whether the table in use has it now.
    pub fn poll(
        &mut self,
        tables: &TableLock,
        entries: &[Entry],
        to_end: bool,
        sent: Instant,
        mut see: impl FnMut(&Entry, bool),
    ) -> Result<Progress, Divergence> {
        let Some(position) = self.position().cloned() else {
            return Ok(Progress::default());
        };
        let Some((anchor, entries)) = entries.split_first() else {
            return Err("the feed was emptied");
        };
        if anchor.at != position {
            return Err("the feed goes another way, or was cut off");
        }
        self.check(&position, entries)?;
        let is_following = self.is_following();
        match &mut self.mode {
            Mode::Lost => {}
            Mode::Reading(at, fresh) => {
                for entry in entries {
                    if let Some(change) = &entry.change {
                        fresh.tables.apply(change);
                    }
                }
                if let Some(last) = entries.last() {
                    *at = last.at.clone();
                }
            }
            Mode::Following(at) => {
                for slice in entries.chunks(SLICE) {
                    let ahead = &self.ahead;
                    tables.write(|tables| {
                        slice
                            .iter()
                            .try_for_each(|entry| follow(tables, ahead, entry))
                    })?;
                }
                if let Some(last) = entries.last() {
                    *at = last.at.clone();
                }
            }
        }
        for entry in entries {
            self.passed.push_back(entry.at.clone());
            see(entry, is_following);
        }
        let surplus = self.passed.len().saturating_sub(PASSED);
        self.passed.drain(..surplus);
        self.forget_passed();
        let mut progress = Progress::default();
        if !to_end {
            return Ok(progress);
        }
        // What was noted before the poll was sent is in this feed, or never will be.
        if self.checkpoints.values().any(|(_, noted)| *noted < sent) {
            return Err("the feed has lost its end");
        }
        progress.swapped = self.swap(tables, sent);
        self.doubted = self.doubted.filter(|doubted| *doubted >= sent);
        progress.caught_up = self.is_following() && self.doubted.is_none();
        Ok(progress)
    }

    /// Sees that each entry follows the one before, and that they pass what they must.
    fn check(&self, position: &Position, entries: &[Entry]) -> Result<(), Divergence> {
        let mut before = position;
        for entry in entries {
            if entry.at.version != before.version + 1 || entry.previous != before.nonce {
                return Err("an entry does not follow the one before it");
            }
            if let Some((nonce, _)) = self.checkpoints.get(&entry.at.version) {
                if *nonce != entry.at.nonce {
                    return Err("the feed goes another way");
                }
            }
            before = &entry.at;
        }
        Ok(())
    }

    fn forget_passed(&mut self) {
        let version = self.position().map_or(0, |it| it.version);
        self.checkpoints = self.checkpoints.split_off(&(version + 1));
        if !self.ahead.is_empty() {
            self.ahead.retain(|_, all| {
                all.retain(|it| it.version > version);
                !all.is_empty()
            });
        }
    }

    /// Puts the fresh table into use, if it is complete: all pages were read before the poll was sent.
    fn swap(&mut self, tables: &TableLock, sent: Instant) -> bool {
        let Mode::Reading(position, fresh) = &mut self.mode else {
            return false;
        };
        // At the same moment the places of its last page are not known to have been passed.
        if fresh.is_whole.is_none_or(|whole| whole >= sent) {
            return false;
        }
        for ((space, filter), all) in &self.ahead {
            for it in all {
                let change = Element {
                    space: *space,
                    filter,
                    destination: &it.destination,
                    options: &it.options,
                };
                apply_own(&mut fresh.tables, &change, it.adds);
            }
        }
        let old = tables.replace(std::mem::take(&mut fresh.tables));
        // A million routes take a while to free.
        std::thread::spawn(move || drop(old));
        self.mode = Mode::Following(position.clone());
        true
    }
}

fn apply_own(tables: &mut Tables, change: &Element<'_>, adds: bool) {
    match adds {
        true => tables.add(
            change.space,
            change.filter,
            change.destination,
            change.options,
        ),
        false => tables.remove(change.space, change.filter, change.destination),
    }
}

fn follow(
    tables: &mut Tables,
    ahead: &HashMap<(Space, Bytes), Vec<Ahead>>,
    entry: &Entry,
) -> Result<(), Divergence> {
    let Some(change) = &entry.change else {
        return Ok(());
    };
    let ahead = match ahead.is_empty() {
        true => None,
        false => ahead.get(&(change.space, change.filter.clone())),
    };
    let is_passed = ahead
        .into_iter()
        .flatten()
        .any(|it| it.destination == change.destination && it.version >= entry.at.version);
    if !is_passed {
        tables.apply(change);
    }
    // With own changes of the same filter in it, the table is not that of the entry.
    if ahead.is_none() {
        let count = tables.destinations(change.space, &change.filter);
        if count.is_some_and(|count| count != change.count) {
            return Err("a filter has another number of destinations");
        }
    }
    Ok(())
}
