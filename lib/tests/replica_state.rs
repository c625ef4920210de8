//! The replica's state machine against a model of Redis that trims, fails over, is flushed and answers late.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::Bytes;
use emqx_redis_core::replica::feed::{Entry, FeedChange, Position};
use emqx_redis_core::replica::state::{Element, State};
use emqx_redis_core::replica::tables::TableLock;
use emqx_redis_core::route_scripts::Space;
use emqx_redis_core::topic::parse_filter;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

const SPACES: [Space; 2] = [Space::Routes, Space::Subscriptions];
const FILTERS: [&str; 4] = ["a", "a/+", "#", "$share/g/a"];
const DESTINATIONS: [&str; 3] = ["n1", "n2", "n3"];
const OPTIONS: [&str; 2] = ["0", "1"];
const CELLS: usize = SPACES.len() * FILTERS.len() * DESTINATIONS.len();

/// Where a destination of a filter is in the order in which pages read them.
type Cell = usize;
/// What is there, with its options.
type Table = BTreeMap<Cell, usize>;

fn parts(cell: Cell) -> (Space, &'static str, &'static str) {
    let (rest, destination) = (cell / DESTINATIONS.len(), cell % DESTINATIONS.len());
    let (space, filter) = (rest / FILTERS.len(), rest % FILTERS.len());
    (SPACES[space], FILTERS[filter], DESTINATIONS[destination])
}

fn options_of(cell: Cell, options: usize) -> &'static str {
    match parts(cell).0 {
        Space::Routes => "",
        Space::Subscriptions => OPTIONS[options],
    }
}

fn element(cell: Cell, options: usize) -> Element<'static> {
    let (space, filter, destination) = parts(cell);
    Element {
        space,
        filter: filter.as_bytes(),
        destination: destination.as_bytes(),
        options: options_of(cell, options).as_bytes(),
    }
}

/// A table and its feed.
#[derive(Debug, Clone, Default)]
struct Server {
    table: Table,
    feed: Vec<Entry>,
}

impl Server {
    fn head(&self) -> Position {
        self.feed.last().map_or_else(
            || Position {
                version: 0,
                nonce: Bytes::new(),
            },
            |last| last.at.clone(),
        )
    }

    fn append(&mut self, once: u64, change: Option<FeedChange>) {
        let previous = self.head();
        let mut hasher = DefaultHasher::new();
        (&previous.nonce, once).hash(&mut hasher);
        self.feed.push(Entry {
            at: Position {
                version: previous.version + 1,
                nonce: format!("{:016x}", hasher.finish()).into(),
            },
            previous: previous.nonce,
            micros: 0,
            change,
        });
    }

    /// Does a change, if it is one.
    fn change(&mut self, once: u64, cell: Cell, adds: Option<usize>) {
        let before = self.table.get(&cell).copied();
        let is_change = match adds {
            Some(options) => {
                before.is_none_or(|it| options_of(cell, it) != options_of(cell, options))
            }
            None => before.is_some(),
        };
        if !is_change {
            return;
        }
        match adds {
            Some(options) => self.table.insert(cell, options),
            None => self.table.remove(&cell),
        };
        let (space, filter, destination) = parts(cell);
        let first = cell - cell % DESTINATIONS.len();
        let change = FeedChange {
            space,
            adds: adds.is_some(),
            filter: filter.into(),
            destination: destination.into(),
            options: adds.map_or("", |it| options_of(cell, it)).into(),
            count: self.table.range(first..first + DESTINATIONS.len()).count(),
        };
        self.append(once, Some(change));
    }
}

/// A change of this node that Redis has done.
#[derive(Debug, Clone)]
struct Done {
    cell: Cell,
    adds: Option<usize>,
    at: Position,
    /// How often Redis had gone another way by then.
    era: u32,
}

/// What the node has asked, and what Redis has answered so far.
#[derive(Debug)]
enum Question {
    Begin(Option<Position>),
    Poll {
        sent: Instant,
        from: u64,
        most: usize,
        answer: Option<(Vec<Entry>, Table)>,
    },
    Page {
        size: usize,
        tells_place: bool,
        answer: Option<(Vec<(Cell, usize)>, Position)>,
    },
}

struct World {
    server: Server,
    /// What it was after each change: a replica that takes over may be at any of these.
    past: Vec<Server>,
    /// Of each entry that there ever was the one before.
    before: HashMap<Bytes, Bytes>,
    once: u64,
    era: u32,
    now: Instant,
    /// Something has happened that a node may notice.
    is_disturbed: bool,

    state: State,
    tables: TableLock,
    question: Option<Question>,
    /// The next cell to read, the era when reading began, and whether a page did not tell its place.
    pages: Option<(Cell, u32, bool)>,
    /// Changes of this node whose replies are on their way.
    unheard: Vec<Done>,
    /// Those that it has heard of since it began to read, and when.
    heard: Vec<(Done, Instant)>,
    caught_up: Option<Instant>,
}

#[derive(Debug, Clone)]
enum Step {
    /// Redis does a change; of this node's own a reply comes later.
    Change {
        cell: Cell,
        adds: Option<usize>,
        is_own: bool,
    },
    /// One of the replies arrives.
    Hear(usize),
    /// One is lost on its way.
    Mishear(usize),
    /// The follower goes on: asks, is answered by Redis, or takes the answer in.
    Follow {
        most: usize,
        reads: bool,
        tells_place: bool,
    },
    /// The oldest entries go.
    Trim(usize),
    /// A server takes over that has not got the last so many changes.
    FailOver(usize),
    Flush,
    DeleteFeed,
    /// The follower goes on until the table is trusted.
    CatchUp,
}

impl World {
    fn new() -> Self {
        World {
            server: Server::default(),
            past: Vec::new(),
            before: HashMap::new(),
            once: 0,
            era: 0,
            now: Instant::now(),
            is_disturbed: false,
            state: State::default(),
            tables: TableLock::default(),
            question: None,
            pages: None,
            unheard: Vec::new(),
            heard: Vec::new(),
            caught_up: None,
        }
    }

    fn once(&mut self) -> u64 {
        self.once += 1;
        self.once
    }

    fn note_history(&mut self) {
        if let Some(last) = self.server.feed.last() {
            self.before
                .insert(last.at.nonce.clone(), last.previous.clone());
        }
    }

    fn disturb(&mut self) {
        self.is_disturbed = true;
        self.era += 1;
    }

    fn step(&mut self, step: &Step) -> TestCaseResult {
        match step {
            Step::Follow {
                most,
                reads,
                tells_place,
            } => {
                return self.follow(*most, *reads, *tells_place);
            }
            Step::Hear(which) => {
                if !self.unheard.is_empty() {
                    let done = self.unheard.remove(which % self.unheard.len());
                    return self.hear(done);
                }
            }
            Step::Mishear(which) => {
                if !self.unheard.is_empty() {
                    self.unheard.remove(which % self.unheard.len());
                }
            }
            Step::Change { cell, adds, is_own } => {
                self.past.push(self.server.clone());
                let once = self.once();
                self.server.change(once, *cell, *adds);
                self.note_history();
                if *is_own {
                    self.unheard.push(Done {
                        cell: *cell,
                        adds: *adds,
                        at: self.server.head(),
                        era: self.era,
                    });
                }
            }
            Step::Trim(count) => {
                let most = self.server.feed.len().saturating_sub(1);
                self.server.feed.drain(..most.min(*count));
                self.is_disturbed = true;
            }
            Step::FailOver(count) => {
                let kept = self.past.len().saturating_sub(*count);
                if kept < self.past.len() {
                    self.server = self.past[kept].clone();
                    self.past.truncate(kept);
                }
                self.disturb();
            }
            Step::CatchUp => return self.catch_up(),
            Step::Flush => {
                self.past.push(std::mem::take(&mut self.server));
                self.disturb();
            }
            Step::DeleteFeed => {
                self.past.push(self.server.clone());
                self.server.feed.clear();
                self.disturb();
            }
        }
        Ok(())
    }

    fn lose(&mut self, why: &str) -> TestCaseResult {
        prop_assert!(self.is_disturbed, "a false alarm: {why}");
        self.state.lose();
        Ok(())
    }

    fn hear(&mut self, done: Done) -> TestCaseResult {
        if self.state.position().is_none() {
            return Ok(());
        }
        let (change, adds) = (
            element(done.cell, done.adds.unwrap_or(0)),
            done.adds.is_some(),
        );
        let told = self
            .state
            .own_change(&self.tables, &change, adds, done.at.clone(), self.now);
        if let Err(why) = told {
            return self.lose(why);
        }
        let is_ahead = self
            .state
            .position()
            .is_some_and(|it| done.at.version > it.version);
        let is_latest = self.heard.iter().all(|(it, _)| {
            it.era == done.era && (it.cell != done.cell || it.at.version <= done.at.version)
        });
        if self.state.is_following() && !self.state.is_doubted() && is_ahead && is_latest {
            let is_there = self.live().get(&done.cell).copied();
            prop_assert_eq!(
                is_there,
                done.adds.map(|it| options_of(done.cell, it)),
                "not seen at once"
            );
        }
        if self.state.is_following() && !self.state.is_doubted() && !is_ahead {
            prop_assert!(
                self.has_passed(&done.at),
                "a change of another history is not noticed"
            );
        }
        self.heard.push((done, self.now));
        Ok(())
    }

    fn follow(&mut self, most: usize, reads: bool, tells_place: bool) -> TestCaseResult {
        let Some(mut question) = self.question.take() else {
            self.question = Some(self.ask(most, reads, tells_place));
            return Ok(());
        };
        if self.answer(&mut question) {
            self.question = Some(question);
            return Ok(());
        }
        match question {
            Question::Begin(at) => {
                self.state.begin(at.unwrap());
                self.heard.clear();
                self.pages = Some((0, self.era, false));
                Ok(())
            }
            Question::Page {
                size,
                tells_place,
                answer,
            } => self.take_page(size, tells_place, answer.unwrap()),
            Question::Poll {
                sent, most, answer, ..
            } => self.take_poll(sent, most, answer.unwrap()),
        }
    }

    fn ask(&self, most: usize, reads: bool, tells_place: bool) -> Question {
        match self.state.position() {
            None => Question::Begin(None),
            Some(_) if reads && !self.state.is_whole() => Question::Page {
                size: most,
                tells_place,
                answer: None,
            },
            Some(at) => Question::Poll {
                sent: self.now,
                from: at.version,
                most,
                answer: None,
            },
        }
    }

    /// Redis answers; false if it has before.
    fn answer(&mut self, question: &mut Question) -> bool {
        match question {
            Question::Begin(answer @ None) => {
                if self.server.feed.is_empty() {
                    let once = self.once();
                    self.server.append(once, None);
                    self.note_history();
                }
                *answer = Some(self.server.head());
            }
            Question::Poll {
                from,
                most,
                answer: answer @ None,
                ..
            } => {
                let entries = self.server.feed.iter().filter(|it| it.at.version >= *from);
                *answer = Some((
                    entries.take(*most).cloned().collect(),
                    self.server.table.clone(),
                ));
            }
            Question::Page {
                size,
                answer: answer @ None,
                ..
            } => {
                let first = self.pages.expect("pages are read").0;
                let page = self.server.table.range(first..(first + *size).min(CELLS));
                *answer = Some((page.map(|(&k, &v)| (k, v)).collect(), self.server.head()));
            }
            _ => return false,
        }
        true
    }

    fn take_page(
        &mut self,
        size: usize,
        tells_place: bool,
        (page, at): (Vec<(Cell, usize)>, Position),
    ) -> TestCaseResult {
        let (first, began, has_scanned) = self.pages.expect("pages are read");
        let has_scanned = has_scanned || !tells_place;
        self.pages = Some((first + size, began, has_scanned));
        let elements = page.iter().map(|&(cell, options)| element(cell, options));
        let taken = self
            .state
            .page(elements, tells_place.then_some(at), self.now);
        if let Err(why) = taken {
            return self.lose(why);
        }
        if first + size >= CELLS {
            // The follower sees that a connection was lost.
            if has_scanned && self.era != began {
                return self.lose("a scan of two servers");
            }
            self.state.whole(self.now);
        }
        Ok(())
    }

    fn take_poll(
        &mut self,
        sent: Instant,
        most: usize,
        (entries, table): (Vec<Entry>, Table),
    ) -> TestCaseResult {
        let to_end = entries.len() < most;
        let polled = self
            .state
            .poll(&self.tables, &entries, to_end, sent, |_, _| {});
        let progress = match polled {
            Ok(progress) => progress,
            Err(why) => return self.lose(why),
        };
        if progress.swapped {
            if let Some((_, began, true)) = self.pages {
                if began != self.era {
                    return self.lose("a scan of two servers");
                }
            }
        }
        if progress.caught_up {
            prop_assert!(self.state.is_following() && to_end);
            self.caught_up = Some(sent);
            let version = self.state.position().map_or(0, |it| it.version);
            let ahead = self.heard.iter().filter(|(it, _)| it.at.version > version);
            let mut ahead: Vec<&Done> = ahead.map(|(it, _)| it).collect();
            prop_assert_eq!(self.state.is_ahead(), !ahead.is_empty());
            ahead.sort_by_key(|it| it.at.version);
            let mut expected = table;
            for done in ahead {
                match done.adds {
                    Some(options) => expected.insert(done.cell, options),
                    None => expected.remove(&done.cell),
                };
            }
            self.expect(&expected)?;
            for (done, heard) in &self.heard {
                let is_known = done.at.version > version || self.has_passed(&done.at);
                prop_assert!(
                    is_known || *heard < sent,
                    "a table of another history is trusted"
                );
            }
        }
        Ok(())
    }

    /// Whether the table is of a history that has come by there.
    fn has_passed(&self, at: &Position) -> bool {
        let mut nonce = self
            .state
            .position()
            .map(|it| &it.nonce)
            .filter(|_| at.version > 0);
        while let Some(it) = nonce {
            if *it == at.nonce {
                return true;
            }
            nonce = self.before.get(it);
        }
        false
    }

    fn catch_up(&mut self) -> TestCaseResult {
        let began = self.now;
        for round in 0.. {
            prop_assert!(round < 1_000, "it never catches up");
            self.now += Duration::from_millis(1);
            self.follow(8, round % 2 == 0, true)?;
            if self.question.is_none() && self.caught_up.is_some_and(|sent| sent > began) {
                break;
            }
        }
        Ok(())
    }

    /// What a search would find.
    fn live(&self) -> BTreeMap<Cell, &'static str> {
        let tables = self.tables.read();
        (0..CELLS)
            .filter_map(|cell| {
                let (space, filter, destination) = parts(cell);
                let filter = parse_filter(filter.as_bytes()).unwrap();
                let options = tables.of(space).value(&filter, destination.as_bytes())?;
                let known = OPTIONS.iter().find(|it| it.as_bytes() == options);
                Some((cell, known.copied().unwrap_or("")))
            })
            .collect()
    }

    fn expect(&self, table: &Table) -> TestCaseResult {
        let expected = table
            .iter()
            .map(|(&cell, &options)| (cell, options_of(cell, options)));
        prop_assert_eq!(self.live(), expected.collect::<BTreeMap<_, _>>());
        let tables = self.tables.read();
        let routes: usize = SPACES.iter().map(|&space| tables.of(space).routes()).sum();
        prop_assert_eq!(routes, table.len());
        Ok(())
    }

    /// Nothing happens any more: within a few rounds the table is Redis's.
    fn settle(&mut self) -> TestCaseResult {
        while !self.unheard.is_empty() {
            self.step(&Step::Hear(0))?;
        }
        self.catch_up()?;
        prop_assert!(!self.state.is_ahead() && !self.state.is_doubted());
        self.expect(&self.server.table)
    }
}

fn step() -> impl Strategy<Value = Step> {
    // Few cells meet each other's changes; all are more than one page.
    let cell = prop_oneof![3 => 0..2usize, 1 => 0..CELLS];
    let change = (
        cell,
        prop::option::weighted(0.6, 0..OPTIONS.len()),
        any::<bool>(),
    );
    let follow = (2..12usize, any::<bool>(), prop::bool::weighted(0.8));
    prop_oneof![
        40 => follow.prop_map(|(most, reads, tells_place)| Step::Follow { most, reads, tells_place }),
        16 => change.prop_map(|(cell, adds, is_own)| Step::Change { cell, adds, is_own }),
        12 => (0..4usize).prop_map(Step::Hear),
        4 => Just(Step::CatchUp),
        1 => (0..4usize).prop_map(Step::Mishear),
        1 => (1..6usize).prop_map(Step::Trim),
        4 => (0..4usize).prop_map(Step::FailOver),
        1 => Just(Step::Flush),
        1 => Just(Step::DeleteFeed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// Steps that share an instant are those that a coarse clock can't tell apart.
    #[test]
    fn a_table_that_is_trusted_is_that_of_redis(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.5)), 1..120),
    ) {
        let mut world = World::new();
        for (step, ticks) in &steps {
            world.step(step)?;
            world.now += Duration::from_millis(u64::from(*ticks));
        }
        world.settle()?;
    }
}

fn change(cell: Cell, is_own: bool) -> Step {
    Step::Change {
        cell,
        adds: Some(0),
        is_own,
    }
}

fn follow(reads: bool) -> Step {
    Step::Follow {
        most: CELLS,
        reads,
        tells_place: true,
    }
}

/// Takes steps in one instant.
fn take(steps: &[Step]) -> World {
    let mut world = World::new();
    for step in steps {
        world.step(step).unwrap();
    }
    world
}

/// The reply of a server that has failed comes after that of the next one, whose feed has the same version.
#[test]
fn replies_of_two_servers_with_one_version_are_noticed() {
    let mut world = take(&[
        Step::CatchUp,
        change(0, true),
        Step::FailOver(1),
        change(1, true),
    ]);
    world.step(&Step::Hear(1)).unwrap();
    assert!(world.state.is_following());
    world.step(&Step::Hear(0)).unwrap();
    assert!(world.state.position().is_none(), "it must read anew");
    world.settle().unwrap();
}

/// A page knows of a change that a fail-over takes back before the next poll, in one tick of a coarse clock.
#[test]
fn a_page_of_a_server_that_failed_is_noticed() {
    let begin = [follow(true), follow(true), follow(true)];
    let page = [follow(true), change(0, false), follow(true), follow(true)];
    let poll = [
        Step::FailOver(1),
        follow(false),
        follow(false),
        follow(false),
    ];
    let mut world = take(&[&begin[..], &page, &poll].concat());
    world.settle().unwrap();
}

/// Somebody has changed the table, but not the feed.
#[test]
fn a_number_of_destinations_that_disagrees_is_noticed() {
    let mut world = take(&[change(0, false), Step::CatchUp]);
    world.server.table.insert(1, 0);
    world.is_disturbed = true;
    for step in [
        change(2, false),
        follow(false),
        follow(false),
        follow(false),
    ] {
        world.step(&step).unwrap();
    }
    assert!(world.state.position().is_none(), "it must read anew");
    world.settle().unwrap();
}
