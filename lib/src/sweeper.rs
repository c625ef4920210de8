//! Takes what has expired out of indexes and queues, in slices of under a millisecond of Redis's time.
//!
//! Every node sweeps; that two do it at once changes nothing but the time it takes. In a cluster the slots take
//! turns: each second a share of them is asked whether anything has expired there.

mod slice;

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Weak;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::error::Error;
use crate::metrics::Counter;
use crate::request::{Answer, Operation, Request};
use crate::resp::Frame;
use crate::slots::SLOTS;

use slice::{FindExpired, Index, Kind, Sweep};

/// Between two looks when nothing was found.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two slices, so that Redis serves others meanwhile.
const PAUSE: Duration = Duration::from_millis(5);
/// A slice that is full was not the last.
const SLICE: u64 = 50;
/// In how many turns all slots are looked at.
const TURNS: u16 = 16;
/// For one look.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sweeps until the engine is gone.
pub(crate) async fn run(engine: Weak<Engine>) {
    let mut turn = first_turn();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(is_clustered) = with(&engine, |it| it.context().keys.is_clustered()) else {
            return;
        };
        turn = (turn + 1) % TURNS;
        for kind in [Kind::Sessions, Kind::Messages] {
            let slots = match is_clustered {
                true => find_expired(&engine, kind, slots_of(turn)).await,
                false => vec![0],
            };
            for slot in slots {
                sweep(&engine, Index { kind, slot }).await;
            }
        }
    }
}

/// Nodes that start together take different turns.
fn first_turn() -> u16 {
    RandomState::new().hash_one(std::process::id()) as u16 % TURNS
}

/// The slots whose turn it is.
fn slots_of(turn: u16) -> Range<u16> {
    let share = SLOTS / TURNS;
    turn * share..(turn + 1) * share
}

/// The slots among these in which anything has expired.
async fn find_expired(engine: &Weak<Engine>, kind: Kind, slots: Range<u16>) -> Vec<u16> {
    match ask(engine, Box::new(FindExpired::new(kind, slots))).await {
        Some(Answer::Replies(found)) => found
            .iter()
            .filter_map(|reply| match reply {
                Frame::Integer(slot) => u16::try_from(*slot).ok(),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Takes all that has expired out of an index.
async fn sweep(engine: &Weak<Engine>, index: Index) {
    let counter = match index.kind {
        Kind::Sessions => Counter::ExpiredSessions,
        Kind::Messages => Counter::ExpiredMessages,
    };
    while let Some(Answer::Count(seen)) = ask(engine, Box::new(Sweep(index))).await {
        with(engine, |it| it.context().metrics.add(counter, seen));
        if seen < SLICE {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn with<T>(engine: &Weak<Engine>, use_it: impl FnOnce(&Engine) -> T) -> Option<T> {
    engine.upgrade().map(|engine| use_it(&engine))
}

/// `None` when Redis did not answer.
async fn ask(engine: &Weak<Engine>, operation: Box<dyn Operation>) -> Option<Answer> {
    let (sender, receiver) = oneshot::channel();
    let deadline = Instant::now() + DEADLINE;
    let request = Request::new(operation, deadline, Box::new(sender));
    engine.upgrade()?.submit(request).ok()?;
    match receiver.await.ok()? {
        Ok(answer) => Some(answer),
        Err(Error::Redis { code, text }) => {
            tracing::warn!(%code, %text, "sweeping failed");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_its_turn() {
        let mut slots: Vec<u16> = (0..TURNS).flat_map(slots_of).collect();
        slots.sort();
        assert_eq!(slots, Vec::from_iter(0..SLOTS));
        assert!(first_turn() < TURNS);
    }
}
