//! The order of messages within one millisecond.

use std::sync::Mutex;

/// A double at today's milliseconds since 1970 has room for 2^11 places within each, until 2109.
const PLACES: u32 = 1 << 11;
/// `PLACES` as a decimal fraction: one place is exactly this many units of the 11th digit.
const PLACE_UNITS: u64 = 100_000_000_000 / PLACES as u64;
const SLOTS: usize = 1 << 14;

/// Counts the messages of one client that have the same timestamp, so that their scores tell the
/// order in which this node submitted them.
///
/// It remembers the last pairs of client and timestamp, each in the slot of its hash, in fixed
/// memory. A pair that lost its slot starts again at place 0, which matters only where 16,384 other
/// pairs came between two messages of one client and one millisecond.
#[derive(Debug)]
pub struct Sequencer {
    slots: Mutex<Vec<(u64, u32)>>,
}

impl Default for Sequencer {
    fn default() -> Self {
        Sequencer {
            slots: Mutex::new(vec![(0, 0); SLOTS]),
        }
    }
}

impl Sequencer {
    /// The next place for this client at this millisecond; the last place is shared by all that
    /// come after it.
    pub fn next(&self, client: u64, millis: i64) -> u32 {
        let key = (client ^ (millis as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
        let mut slots = self
            .slots
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let slot = &mut slots[(key >> 1) as usize % SLOTS];
        *slot = match *slot {
            (known, place) if known == key => (key, (place + 1).min(PLACES - 1)),
            _ => (key, 0),
        };
        slot.1
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
        assert_eq!([0, 1, 2].map(|_| sequencer.next(7, 5)), [0, 1, 2]);
        assert_eq!(sequencer.next(8, 5), 0);
        assert_eq!(sequencer.next(7, 6), 0);
        assert_eq!(sequencer.next(7, 5), 3);
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
