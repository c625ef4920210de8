//! Reading the replies of an atomic unit.

use crate::error::Error;
use crate::request::{Answer, Step};
use crate::resp::Frame;
use crate::scripts;

/// The keys that a unit touches, with the types that they must have, for when one is of another: those
/// that `TYPE` knows, and `integer` for a string that must be one.
pub(crate) type TypedKeys = Vec<(Vec<u8>, &'static str)>;

/// What a script answered, or how to go on after its error.
pub(crate) fn script_reply(
    mut replies: Vec<Frame>,
    keys: impl FnOnce() -> TypedKeys,
) -> Result<Frame, Step> {
    let Some(reply) = replies.pop() else {
        return Err(Step::Done(Err(Error::unexpected_reply("script"))));
    };
    if scripts::is_unknown(&reply) {
        return Err(Step::LoadScripts);
    }
    match reply.error() {
        None => Ok(reply),
        Some(text) if is_foreign(text) => {
            let text = String::from_utf8_lossy(text).into_owned();
            Err(Step::Repair(keys(), Error::Partial(text)))
        }
        Some(text) => Err(Step::Done(Err(script_error(text)))),
    }
}

/// What EXEC answered, command by command, or how to go on after an error. `replies` are those of
/// MULTI, of the queued commands and of EXEC.
pub(crate) fn transaction_replies(
    mut replies: Vec<Frame>,
    keys: impl FnOnce() -> TypedKeys,
) -> Result<Vec<Frame>, Step> {
    let last = replies.pop();
    // A command that was refused when it was queued says why; EXEC then only says that it was.
    if let Some(refused) = replies.iter().find_map(Frame::error) {
        return Err(Step::Done(Err(Error::from_reply(refused))));
    }
    let results = match last {
        Some(Frame::Array(results)) => results,
        Some(Frame::Error(text)) => return Err(Step::Done(Err(Error::from_reply(&text)))),
        _ => return Err(Step::Done(Err(Error::unexpected_reply("EXEC")))),
    };
    match results.iter().find_map(Frame::error) {
        None => Ok(results),
        Some(text) => {
            let foreign = is_foreign(text);
            let error = Error::Partial(String::from_utf8_lossy(text).into_owned());
            Err(if foreign {
                Step::Repair(keys(), error)
            } else {
                Step::Done(Err(error))
            })
        }
    }
}

/// What a command that reads answered, or how to go on after an error.
pub(crate) fn read_reply(
    replies: Vec<Frame>,
    keys: impl FnOnce() -> TypedKeys,
) -> Result<Frame, Step> {
    match replies.into_iter().next_back() {
        Some(Frame::Error(text)) if is_foreign(&text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            Err(Step::Repair(keys(), Error::Partial(text)))
        }
        Some(Frame::Error(text)) => Err(Step::Done(Err(Error::from_reply(&text)))),
        Some(reply) => Ok(reply),
        None => Err(Step::Done(Err(Error::unexpected_reply("read")))),
    }
}

/// Reads the answer of a script that fences: -1, the stored epoch, or any other integer for done.
pub(crate) fn fenced(reply: Frame, done: impl FnOnce(i64) -> Step) -> Step {
    match reply {
        Frame::Integer(-1) => Step::Done(Err(Error::Fenced)),
        Frame::Integer(value) => done(value),
        Frame::Bulk(epoch) => Step::Done(Err(
            match std::str::from_utf8(&epoch).map(str::parse::<u64>) {
                Ok(Ok(epoch)) => Error::StaleEpoch(epoch),
                _ => Error::unexpected_reply("fence"),
            },
        )),
        _ => Step::Done(Err(Error::unexpected_reply("fence"))),
    }
}

/// Whether an error says that the keys of a command are on another server of the cluster, or may be; nothing was
/// done.
pub(crate) fn is_redirect(reply: &Frame) -> bool {
    let codes = [&b"MOVED "[..], b"ASK ", b"TRYAGAIN ", b"CLUSTERDOWN "];
    let has_code = |text: &[u8]| codes.iter().any(|code| text.starts_with(code));
    reply.error().is_some_and(has_code)
}

/// The elements of an array of strings.
pub(crate) fn strings(reply: Frame) -> Option<Vec<bytes::Bytes>> {
    let Frame::Array(elements) = reply else {
        return None;
    };
    elements
        .into_iter()
        .map(|element| match element {
            Frame::Bulk(bytes) => Some(bytes),
            _ => None,
        })
        .collect()
}

pub(crate) fn done() -> Step {
    Step::Done(Ok(Answer::Ok))
}

fn is_foreign(text: &[u8]) -> bool {
    has(text, b"WRONGTYPE") || has(text, b"not an integer")
}

fn has(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// An error within a script stands in a longer text; before Redis 7 without the code in front.
fn script_error(text: &[u8]) -> Error {
    for code in ["OOM", "NOPERM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY"] {
        let text = String::from_utf8_lossy(text);
        if let Some(at) = text.find(&format!("{code} ")) {
            return Error::from_reply(text[at..].as_bytes());
        }
    }
    // Redis 7 leaves the code out where a user may not run a command within a script.
    if has(text, b"The user executing the scrip") {
        return Error::from_reply(
            &[b"NOPERM ", text.strip_prefix(b"ERR ").unwrap_or(text)].concat(),
        );
    }
    Error::from_reply(text)
}
