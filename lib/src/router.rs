//! Routes: which nodes have subscribers to what. And subscriptions: which persistent clients have.

mod changes;
mod find;
mod topics;

pub use changes::Changes;
pub use find::Find;
pub use topics::Topics;

use crate::context::Context;
use crate::keys::Keys;
use crate::outcome::{script_reply, TypedKeys};
use crate::request::Step;
use crate::resp::{Commands, Frame};
use crate::route_scripts::{change_keys, trie_keys, ScriptCall, Space};
use crate::scripts;
use crate::topic::{parse_filter, Filter};

pub(crate) fn encode(context: &Context, commands: &mut Commands<'_>, call: &ScriptCall) {
    let keys: Vec<&[u8]> = call.keys.iter().map(Vec::as_slice).collect();
    let out = scripts::call(context, commands, call.script, &keys, call.args.len());
    for argument in &call.args {
        out.arg(argument);
    }
}

/// The types of the keys that a change of this filter's routes, or a match of this name, touches in a shard.
fn typed_keys(keys: &Keys, space: Space, shard: u16, filter: &[u8]) -> TypedKeys {
    match parse_filter(filter) {
        Ok(filter) => change_keys(keys, shard, space, &filter),
        // A name that looks like a shared filter.
        Err(_) => {
            let text = String::from_utf8_lossy(filter);
            let filter = Filter {
                full: &text,
                group: None,
                real: &text,
            };
            change_keys(keys, shard, space, &filter)
        }
    }
}

/// What a script of the route table answered, or how to go on after its error. A trie that holds what no
/// script wrote is moved away as a whole.
fn table_reply(
    context: &Context,
    space: Space,
    shard: u16,
    filter: &[u8],
    replies: Vec<Frame>,
) -> Result<Frame, Step> {
    let error = replies.last().and_then(Frame::error);
    let text = String::from_utf8_lossy(error.unwrap_or_default()).into_owned();
    let is_damaged =
        text.contains("trie is damaged") || text.contains("hash value is not an integer");
    script_reply(replies, || {
        let mut keys = typed_keys(&context.keys, space, shard, filter);
        if is_damaged {
            let (trie, _) = trie_keys(&context.keys, space, shard);
            keys.retain(|(key, _)| *key != trie);
            keys.push((trie, "none"));
        }
        keys
    })
}
