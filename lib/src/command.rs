//! Commands that callers write themselves.

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};

/// Commands that change the state of a connection, or hold it up, for everyone who shares it.
const NOT_ALLOWED: &[&[u8]] = &[
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

/// Commands sent as they are: one, or several in one go.
pub struct Query {
    commands: Vec<Vec<Vec<u8>>>,
    is_pipeline: bool,
}

/// One command: its name and its arguments.
pub type Command = Vec<Vec<u8>>;

impl Query {
    /// One command.
    pub fn one(command: Command) -> Result<Self, Error> {
        allowed(&command)?;
        Ok(Query {
            commands: vec![command],
            is_pipeline: false,
        })
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
        Ok(Query {
            commands,
            is_pipeline: true,
        })
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

    fn encode(&mut self, _: &Context, commands: &mut Commands<'_>) {
        for command in &self.commands {
            commands.begin(command.len());
            for argument in command {
                commands.arg(argument);
            }
        }
    }

    fn decode(&mut self, _: &Context, mut replies: Vec<Frame>) -> Step {
        if self.is_pipeline {
            return Step::Done(Ok(Answer::Replies(replies)));
        }
        Step::Done(match replies.pop() {
            Some(Frame::Error(text)) => Err(Error::from_reply(&text)),
            Some(reply) => Ok(Answer::Reply(reply)),
            None => Err(Error::unexpected_reply("query")),
        })
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
