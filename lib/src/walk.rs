//! Asking the same of many slots of a cluster: as many as one server owns in one round trip.

use std::collections::VecDeque;

use crate::context::Context;
use crate::outcome::is_redirect;
use crate::resp::Frame;

/// The most commands in one step.
const STEP: usize = 512;

/// What one command asks of one slot.
pub(crate) trait InSlot {
    /// The slot.
    fn slot(&self) -> u16;
}

impl InSlot for u16 {
    fn slot(&self) -> u16 {
        *self
    }
}

/// What is left to be asked. Each step asks what one server is believed to own; what turns out to be elsewhere is
/// then asked alone, so that whoever sends it can follow the server's redirection.
#[derive(Debug)]
pub(crate) struct Walk<T> {
    rest: VecDeque<T>,
    alone: VecDeque<T>,
    step: Vec<T>,
}

impl<T: InSlot> Walk<T> {
    pub(crate) fn over(all: impl IntoIterator<Item = T>) -> Self {
        Walk {
            rest: all.into_iter().collect(),
            alone: VecDeque::new(),
            step: Vec::new(),
        }
    }

    /// What the current step asks, one command for each. It stays the same until it is answered.
    pub(crate) fn step(&mut self, context: &Context) -> &[T] {
        if self.step.is_empty() {
            match self.alone.pop_front() {
                Some(one) => self.step.push(one),
                None => self.take_from_rest(context),
            }
        }
        &self.step
    }

    fn take_from_rest(&mut self, context: &Context) {
        let Some(first) = self.rest.front() else {
            return;
        };
        let owner = context.slots.owner(first.slot());
        let mut others = VecDeque::new();
        while let Some(item) = self.rest.pop_front() {
            match context.slots.owner(item.slot()) == owner {
                true => self.step.push(item),
                false => others.push_back(item),
            }
            if self.step.len() == STEP {
                break;
            }
        }
        others.append(&mut self.rest);
        self.rest = others;
    }

    /// The slot of the current step, or of the next: the first of its slots.
    pub(crate) fn slot(&self) -> Option<u16> {
        let next = || self.alone.front().or(self.rest.front());
        self.step.first().or_else(next).map(InSlot::slot)
    }

    /// Whether redirections in the replies to the current step are dealt with here.
    pub(crate) fn takes_redirects(&self) -> bool {
        match self.step.len() {
            0 => self.alone.is_empty(),
            length => length > 1,
        }
    }

    /// Ends the step: gives each reply with what had asked for it, without those that are asked again.
    pub(crate) fn answered(&mut self, replies: Vec<Frame>) -> Vec<(T, Frame)> {
        let takes_redirects = self.takes_redirects();
        let mut answered = Vec::with_capacity(replies.len());
        for (item, reply) in std::mem::take(&mut self.step).into_iter().zip(replies) {
            if takes_redirects && is_redirect(&reply) {
                self.alone.push_back(item);
            } else {
                answered.push((item, reply));
            }
        }
        answered
    }

    /// Asks this as well, before what is left.
    pub(crate) fn ask(&mut self, item: T) {
        self.rest.push_front(item);
    }

    /// Whether everything was answered.
    pub(crate) fn is_over(&self) -> bool {
        self.step.is_empty() && self.alone.is_empty() && self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn context(owners: &[u16]) -> Context {
        let context = Context::new(&Config::default(), b"n1".to_vec(), Default::default());
        for (slot, owner) in owners.iter().enumerate() {
            context.slots.set(slot as u16, *owner);
        }
        context
    }

    #[test]
    fn each_step_asks_one_server() {
        let context = context(&[1, 2, 1, 2, 1]);
        let mut walk = Walk::over(0..5u16);
        assert_eq!((walk.slot(), walk.takes_redirects()), (Some(0), true));
        assert_eq!(walk.step(&context), [0, 2, 4]);
        assert_eq!(walk.step(&context), [0, 2, 4], "until it is answered");
        assert_eq!(walk.answered(vec![Frame::Integer(7); 3]).len(), 3);
        assert_eq!(walk.slot(), Some(1));
        assert_eq!(walk.step(&context), [1, 3]);
        walk.answered(vec![Frame::Integer(7); 2]);
        assert!(walk.is_over());
        assert_eq!(walk.slot(), None);
    }

    #[test]
    fn what_has_moved_is_asked_alone() {
        let context = context(&[1, 1, 1, 2]);
        let mut walk = Walk::over(0..4u16);
        walk.step(&context);
        let moved = || Frame::Error("MOVED 1 127.0.0.1:7000".into());
        let replies = vec![Frame::Integer(5), moved(), moved()];
        assert_eq!(walk.answered(replies), [(0, Frame::Integer(5))]);
        for slot in [1, 2] {
            assert_eq!((walk.slot(), walk.takes_redirects()), (Some(slot), false));
            assert_eq!(walk.step(&context), [slot]);
            assert!(!walk.takes_redirects());
            assert_eq!(walk.answered(vec![Frame::Nil]), [(slot, Frame::Nil)]);
        }
        assert_eq!(walk.step(&context), [3]);
        // Whoever sends a single command follows; what it gives up is the answer.
        assert_eq!(walk.answered(vec![moved()]), [(3, moved())]);
        assert!(walk.is_over());
    }

    #[test]
    fn a_step_is_bounded() {
        let context = context(&[]);
        let mut walk = Walk::over(0..2000u16);
        let mut seen = Vec::new();
        while !walk.is_over() {
            let step = walk.step(&context).to_vec();
            assert!(step.len() <= STEP);
            walk.answered(vec![Frame::Nil; step.len()]);
            seen.extend(step);
        }
        assert_eq!(seen, Vec::from_iter(0..2000));
    }
}
