//! The pieces of a pipeline that are not to be torn apart: single commands, and what stands between MULTI
//! and EXEC; and which of them go to which slot of a cluster.

use std::collections::HashMap;
use std::ops::Range;

use super::first_key::first_key;
use super::{name, Command};
use crate::hash_slot::hash_slot;

/// The slot of the first key in these commands.
pub(super) fn slot_of(commands: &[Command]) -> Option<u16> {
    let keys = commands.iter();
    keys.filter_map(|it| first_key(it)).next().map(hash_slot)
}

/// Where each unit stands.
pub(super) fn units(commands: &[Command]) -> Vec<Range<usize>> {
    let mut units = Vec::with_capacity(commands.len());
    let mut begin = 0;
    let mut open = false;
    for (at, command) in commands.iter().enumerate() {
        match name(command).as_slice() {
            b"MULTI" => open = true,
            b"EXEC" | b"DISCARD" => open = false,
            _ => {}
        }
        if !open {
            units.push(begin..at + 1);
            begin = at + 1;
        }
    }
    units
}

/// The positions of the commands that go to the same slot, in their order. A unit without a key goes where the
/// one before it does, or the one behind it.
pub(super) fn by_slot(commands: &[Command]) -> Vec<Vec<usize>> {
    let mut parts: Vec<(Option<u16>, Vec<usize>)> = Vec::new();
    let mut known = HashMap::new();
    let mut last = 0;
    for unit in units(commands) {
        let slot = slot_of(&commands[unit.clone()]);
        let of_slot = slot.and_then(|slot| known.get(&slot).copied());
        last = match (of_slot, parts.get_mut(last)) {
            (Some(at), _) => at,
            (None, Some((part_slot, _))) if slot.is_none() || part_slot.is_none() => {
                *part_slot = part_slot.or(slot);
                last
            }
            _ => {
                parts.push((slot, Vec::new()));
                parts.len() - 1
            }
        };
        known.extend(slot.map(|slot| (slot, last)));
        parts[last].1.extend(unit);
    }
    parts.into_iter().map(|(_, positions)| positions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(all: &[&str]) -> Vec<Command> {
        let words = |it: &&str| it.split(' ').map(|word| word.into()).collect();
        all.iter().map(words).collect()
    }

    #[test]
    fn a_transaction_is_one_unit() {
        let commands = commands(&["GET a", "multi", "SET a 1", "SET a 2", "exec", "GET a"]);
        assert_eq!(units(&commands), [0..1, 1..5, 5..6]);
    }

    #[test]
    fn commands_go_apart_by_their_slots_and_keep_their_order_within_one() {
        let cases: [(&[&str], &[&[usize]]); 5] = [
            (&["SET a 1", "SET b 1", "GET a"], &[&[0, 2], &[1]]),
            (&["PING", "TIME"], &[&[0, 1]]),
            (
                &["SCRIPT x", "GET a", "TIME", "GET b", "PING"],
                &[&[0, 1, 2], &[3, 4]],
            ),
            (
                &["GET b", "MULTI", "SET a 1", "SET b 1", "EXEC", "GET {b}x"],
                &[&[0, 5], &[1, 2, 3, 4]],
            ),
            (&[], &[]),
        ];
        for (all, expected) in cases {
            assert_eq!(by_slot(&commands(all)), expected, "{all:?}");
        }
    }
}
