//! Commands that callers write themselves.

mod first_key;
mod units;

use std::collections::VecDeque;
use std::ops::Range;

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::is_redirect;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};

use units::{by_slot, crosses_slots, slot_of, units};

/// Commands that change the state of a connection, or hold it up, for everyone who shares it.
const NOT_ALLOWED: &[&[u8]] = &[
    b"ASKING",
    b"AUTH",
    b"BLMOVE",
    b"BLMPOP",
    b"BLPOP",
    b"BRPOP",
    b"BRPOPLPUSH",
    b"BZMPOP",
    b"BZPOPMAX",
    b"BZPOPMIN",
    b"DISCARD",
    b"EXEC",
    b"HELLO",
    b"MONITOR",
    b"MULTI",
    b"PSUBSCRIBE",
    b"PSYNC",
    b"PUNSUBSCRIBE",
    b"QUIT",
    b"READONLY",
    b"READWRITE",
    b"RESET",
    b"SELECT",
    b"SSUBSCRIBE",
    b"SUBSCRIBE",
    b"SUNSUBSCRIBE",
    b"SYNC",
    b"UNSUBSCRIBE",
    b"UNWATCH",
    b"WAIT",
    b"WAITAOF",
    b"WATCH",
];

/// As the server says it of one command.
const CROSSES_SLOTS: &str = "CROSSSLOT Keys in request don't hash to the same slot";

/// Commands sent as they are: one, or several in one go. In a cluster, each goes to the owner of its first key.
pub struct Query {
    commands: Vec<Command>,
    is_pipeline: bool,
    /// Where the commands of each part stand, once they were split off.
    parts: Vec<Vec<usize>>,
    /// What is asked again, one by one, since its slot had moved; the replies to it are to be replaced.
    again: Option<Again>,
}

struct Again {
    replies: Vec<Frame>,
    units: VecDeque<Range<usize>>,
}

/// One command: its name and its arguments.
pub type Command = Vec<Vec<u8>>;

impl Query {
    /// One command.
    pub fn one(command: Command) -> Result<Self, Error> {
        allowed(&command)?;
        Ok(Query::of(vec![command], false))
    }

    /// Several commands, answered one by one. `MULTI` … `EXEC` is allowed within.
    pub fn pipeline(commands: Vec<Command>) -> Result<Self, Error> {
        let mut open = false;
        for command in &commands {
            let name = name(command);
            match (name.as_slice(), open) {
                (b"MULTI", false) => open = true,
                (b"EXEC" | b"DISCARD", true) => open = false,
                _ => allowed(command)?,
            }
        }
        if open {
            return Err(Error::NotAllowed("MULTI without EXEC".into()));
        }
        Ok(Query::of(commands, true))
    }

    fn of(commands: Vec<Command>, is_pipeline: bool) -> Self {
        Query {
            commands,
            is_pipeline,
            parts: Vec::new(),
            again: None,
        }
    }

    /// What the current step asks.
    fn step(&self) -> &[Command] {
        let unit = self.again.as_ref().and_then(|again| again.units.front());
        match unit {
            Some(unit) => &self.commands[unit.clone()],
            None => &self.commands,
        }
    }

    /// Takes the replies to the current step in; the replies to all commands once they are complete.
    fn complete(&mut self, replies: Vec<Frame>) -> Option<Vec<Frame>> {
        let Some(mut again) = self.again.take() else {
            if !self.takes_redirects() {
                return Some(replies);
            }
            let moved = |unit: &Range<usize>| replies[unit.clone()].iter().any(is_redirect);
            let units: VecDeque<_> = units(&self.commands).into_iter().filter(moved).collect();
            if units.is_empty() {
                return Some(replies);
            }
            self.again = Some(Again { replies, units });
            return None;
        };
        if let Some(unit) = again.units.pop_front() {
            again.replies.splice(unit, replies);
        }
        if again.units.is_empty() {
            return Some(again.replies);
        }
        self.again = Some(again);
        None
    }
}

fn name(command: &Command) -> Vec<u8> {
    command
        .first()
        .map_or(Vec::new(), |name| name.to_ascii_uppercase())
}

fn allowed(command: &Command) -> Result<(), Error> {
    let name = name(command);
    let second = command
        .get(1)
        .map_or(Vec::new(), |word| word.to_ascii_uppercase());
    // CLIENT REPLY would swallow replies, CLIENT PAUSE stops every client, XREAD BLOCK waits.
    let blocks = matches!(&name[..], b"XREAD" | b"XREADGROUP")
        && command
            .iter()
            .any(|word| word.eq_ignore_ascii_case(b"BLOCK"));
    let silences =
        name == b"CLIENT" && matches!(&second[..], b"REPLY" | b"TRACKING" | b"NO-TOUCH" | b"PAUSE");
    if name.is_empty() || NOT_ALLOWED.contains(&&name[..]) || blocks || silences {
        let name = String::from_utf8_lossy(&name).into_owned();
        return Err(Error::NotAllowed(match blocks || silences {
            true => format!("{name} {}", String::from_utf8_lossy(&second)),
            false => name,
        }));
    }
    Ok(())
}

impl Operation for Query {
    fn kind(&self) -> OperationKind {
        OperationKind::Query
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        // It would be sent from server to server.
        if context.keys.is_clustered() && crosses_slots(&self.commands) {
            return;
        }
        for command in self.step() {
            commands.begin(command.len());
            for argument in command {
                commands.arg(argument);
            }
        }
    }

    fn decode(&mut self, _: &Context, mut replies: Vec<Frame>) -> Step {
        if replies.is_empty() {
            replies = vec![Frame::Error(CROSSES_SLOTS.into()); self.commands.len()];
        }
        let Some(mut replies) = self.complete(replies) else {
            return Step::Again;
        };
        if self.is_pipeline {
            return Step::Done(Ok(Answer::Replies(replies)));
        }
        Step::Done(match replies.pop() {
            Some(Frame::Error(text)) => Err(Error::from_reply(&text)),
            Some(reply) => Ok(Answer::Reply(reply)),
            None => Err(Error::unexpected_reply("query")),
        })
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        slot_of(self.step())
    }

    /// The commands of a pipeline are not one atomic unit: those that were done are not done again.
    fn takes_redirects(&self) -> bool {
        self.again.is_none() && units(&self.commands).len() > 1
    }

    fn split(&mut self, context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        if !context.keys.is_clustered() {
            return None;
        }
        let parts = by_slot(&self.commands);
        if parts.len() < 2 {
            return None;
        }
        self.parts = parts;
        let mut commands = std::mem::take(&mut self.commands);
        let part = |positions: &Vec<usize>| {
            let own = positions
                .iter()
                .map(|at| std::mem::take(&mut commands[*at]));
            Box::new(Query::of(own.collect(), true)) as Box<dyn Operation>
        };
        Some(self.parts.iter().map(part).collect())
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        let any_done = results.iter().any(Result::is_ok);
        let mut all = vec![Frame::Nil; self.parts.iter().map(Vec::len).sum()];
        for (positions, result) in self.parts.iter().zip(results) {
            match result {
                Ok(Answer::Replies(replies)) if replies.len() == positions.len() => {
                    for (at, reply) in positions.iter().zip(replies) {
                        all[*at] = reply;
                    }
                }
                Ok(_) => return Err(Error::unexpected_reply("pipeline")),
                Err(error) if any_done => return Err(error.once_begun()),
                Err(error) => return Err(error),
            }
        }
        Ok(Answer::Replies(all))
    }

    /// Nobody knows what a command of a caller does.
    fn may_repeat(&self) -> bool {
        false
    }

    fn size(&self) -> usize {
        let arguments = self.commands.iter().flatten();
        arguments.map(|argument| argument.len() + 24).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &str) -> Command {
        words.split(' ').map(|word| word.into()).collect()
    }

    #[test]
    fn what_would_hurt_others_on_the_connection_is_refused() {
        for words in [
            "",
            "select 1",
            "BLPOP a 0",
            "XREAD BLOCK 0 STREAMS a $",
            "client reply off",
            "MULTI",
        ] {
            assert!(
                matches!(Query::one(command(words)), Err(Error::NotAllowed(_))),
                "{words}"
            );
        }
        assert!(Query::one(command("GET select")).is_ok());
        let pipeline = |all: &[&str]| Query::pipeline(all.iter().map(|it| command(it)).collect());
        assert!(pipeline(&["MULTI", "SET a 1", "EXEC"]).is_ok());
        assert!(pipeline(&["MULTI", "SET a 1"]).is_err());
        assert!(pipeline(&["EXEC"]).is_err());
    }
}
