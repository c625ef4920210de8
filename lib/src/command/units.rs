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

/// Whether these commands are one unit whose keys are in several slots, which no server of a cluster does.
pub(super) fn crosses_slots(commands: &[Command]) -> bool {
    let keys = commands.iter().filter_map(|it| first_key(it));
    let mut slots = keys.map(hash_slot);
    let first = slots.next();
    commands.len() > 1 && slots.any(|slot| Some(slot) != first) && units(commands).len() == 1
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
/// one before it does, or the one behind it; one that crosses slots is alone.
pub(super) fn by_slot(commands: &[Command]) -> Vec<Vec<usize>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut known = HashMap::new();
    let mut last = None;
    for unit in units(commands) {
        let own = &commands[unit.clone()];
        if crosses_slots(own) {
            parts.push((None, unit.collect()));
            continue;
        }
        let slot = slot_of(own);
        let at = part_for(slot, &mut parts, &known, last);
        known.extend(slot.map(|slot| (slot, at)));
        last = Some(at);
        parts[at].1.extend(unit);
    }
    parts.into_iter().map(|(_, positions)| positions).collect()
}

/// The slot, where it is known, and the positions.
type Part = (Option<u16>, Vec<usize>);

/// Which part a unit of this slot belongs to, maybe a new one.
fn part_for(
    slot: Option<u16>,
    parts: &mut Vec<Part>,
    known: &HashMap<u16, usize>,
    last: Option<usize>,
) -> usize {
    if let Some(at) = slot.and_then(|slot| known.get(&slot)) {
        return *at;
    }
    match last {
        Some(at) if slot.is_none() || parts[at].0.is_none() => {
            parts[at].0 = parts[at].0.or(slot);
            at
        }
        _ => {
            parts.push((slot, Vec::new()));
            parts.len() - 1
        }
    }
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
        let cases: [(&[&str], &[&[usize]]); 6] = [
            (&["SET a 1", "SET b 1", "GET a"], &[&[0, 2], &[1]]),
            (&["PING", "TIME"], &[&[0, 1]]),
            (
                &["SCRIPT x", "GET a", "TIME", "GET b", "PING"],
                &[&[0, 1, 2], &[3, 4]],
            ),
            (
                &[
                    "GET b",
                    "MULTI",
                    "SET b 1",
                    "SET {b}x 1",
                    "EXEC",
                    "GET {b}x",
                ],
                &[&[0, 1, 2, 3, 4, 5]],
            ),
            (
                &["GET b", "MULTI", "SET a 1", "SET b 1", "EXEC", "GET b"],
                &[&[0, 5], &[1, 2, 3, 4]],
            ),
            (&[], &[]),
        ];
        for (all, expected) in cases {
            assert_eq!(by_slot(&commands(all)), expected, "{all:?}");
        }
    }
}
