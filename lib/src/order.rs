//! The order of messages within one millisecond.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;

/// A double at today's milliseconds since 1970 has room for 2^11 places within each, until 2109.
const PLACES: u32 = 1 << 11;
/// `PLACES` as a decimal fraction: one place is exactly this many units of the 11th digit.
const PLACE_UNITS: u64 = 100_000_000_000 / PLACES as u64;
/// Pairs of client and millisecond that are remembered at least.
const REMEMBERED: usize = 1 << 15;

/// Counts the messages of one client that have the same timestamp, so that their scores tell the
/// order in which this node submitted them.
///
/// It remembers the pairs of client and timestamp that were used last, in two generations: when the
/// younger one is full it becomes the older one, and what was in the older one is forgotten. A pair that
/// was forgotten starts again at place 0, which matters only where 32,768 other pairs came between
/// two messages of one client and one millisecond.
#[derive(Debug, Default)]
pub struct Sequencer {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    younger: Places,
    older: Places,
}

/// How many messages each client has had at each millisecond.
type Places = HashMap<(u64, i64), u32, BuildHasherDefault<Mixer>>;

/// Mixes a hash of a client and a time. The client's is a good hash already, and who finds clients that
/// collide gains nothing but slower places for them.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_i64(&mut self, value: i64) {
        self.write_u64(value as u64);
    }
}

impl Sequencer {
    /// The next place for this client at this millisecond, or at the first later one that has room:
    /// more messages than a millisecond has places for go on in the next one.
    pub fn next(&self, client: u64, millis: i64) -> (i64, u32) {
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let mut millis = millis;
        loop {
            match generations.next((client, millis)) {
                Some(place) => return (millis, place),
                None => millis = millis.saturating_add(1),
            }
        }
    }
}

impl Generations {
    fn next(&mut self, pair: (u64, i64)) -> Option<u32> {
        let known = self.younger.get(&pair).or_else(|| self.older.get(&pair));
        let place = known.copied().unwrap_or(0);
        if self.younger.len() >= REMEMBERED && !self.younger.contains_key(&pair) {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(pair, (place + 1).min(PLACES));
        (place < PLACES).then_some(place)
    }
}

/// A sorted set's score for a millisecond and a place in it, in decimal.
pub fn score(millis: i64, place: u32) -> String {
    let fraction = u64::from(place) * PLACE_UNITS;
    if fraction == 0 {
        return millis.to_string();
    }
    // Of a negative time the fraction counts towards zero, so that later places stay greater.
    match millis {
        0.. => format!("{millis}.{fraction:011}"),
        -1 => format!("-0.{:011}", 100_000_000_000 - fraction),
        _ => format!("{}.{:011}", millis + 1, 100_000_000_000 - fraction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_count_up_for_each_client_and_millisecond() {
        let sequencer = Sequencer::default();
        let places = [0, 1, 2].map(|_| sequencer.next(7, 5));
        assert_eq!(places, [(5, 0), (5, 1), (5, 2)]);
        assert_eq!(sequencer.next(8, 5), (5, 0));
        assert_eq!(sequencer.next(7, 6), (6, 0));
        assert_eq!(sequencer.next(7, 5), (5, 3));
    }

    #[test]
    fn a_full_millisecond_goes_on_in_the_next() {
        let sequencer = Sequencer::default();
        let all: Vec<_> = (0..3 * PLACES + 1).map(|_| sequencer.next(7, 5)).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(all.last(), Some(&(8, 0)));
        assert_eq!(sequencer.next(7, 6), (8, 1));
    }

    #[test]
    fn many_clients_at_once_do_not_disturb_each_other() {
        let sequencer = Sequencer::default();
        for place in 0..3 {
            for client in 0..REMEMBERED as u64 {
                assert_eq!(sequencer.next(client << 40, 5), (5, place));
            }
        }
        // Memory is bounded all the same.
        for client in 0..5 * REMEMBERED as u64 {
            sequencer.next(client, 6);
        }
        let generations = sequencer.generations.lock().unwrap();
        assert!(generations.younger.len() + generations.older.len() <= 2 * REMEMBERED);
    }

    proptest! {
        #[test]
        fn scores_order_as_time_and_place_do(
            a in (-5_000_000_000_000i64..4_000_000_000_000, 0..PLACES),
            b in (-5_000_000_000_000i64..4_000_000_000_000, 0..PLACES),
            same in any::<bool>(),
        ) {
            let b = if same { (a.0, b.1) } else { b };
            let (sa, sb): (f64, f64) = (
                score(a.0, a.1).parse().unwrap(),
                score(b.0, b.1).parse().unwrap(),
            );
            // Times before 1835 and after 2109 have less room; there only milliseconds count.
            if a.0.abs() < 1 << 42 && b.0.abs() < 1 << 42 {
                prop_assert_eq!(sa.partial_cmp(&sb).unwrap(), a.cmp(&b));
            }
        }
    }
}
