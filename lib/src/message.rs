//! Messages: the queue of what a client has not acknowledged yet.

mod ack;
mod mark;
mod page;
mod store;
mod store_for;

pub use ack::{AckMessages, DeleteMessages};
pub use mark::{GetMarks, MarkMessages};
pub use page::GetMessages;
pub use store::{Limit, Message, OnFull, StoreMessages};
pub use store_for::StoreMessageFor;

use crate::context::Context;
use crate::outcome::TypedKeys;

/// The keys that all of one client's messages share.
fn shared_keys(context: &Context, client: &[u8]) -> TypedKeys {
    let slot = context.keys.client_slot(client);
    vec![
        (context.keys.queue(client), "zset"),
        (context.keys.messages_index(slot), "zset"),
        (context.keys.messages_expiry(slot), "zset"),
    ]
}

/// What stands before a client's message ids in the members of the indexes.
fn member_prefix(context: &Context, client: &[u8]) -> Vec<u8> {
    context.keys.message_member(client, b"")
}

/// What stands before a member in a message's key.
fn key_prefix(context: &Context) -> Vec<u8> {
    [context.keys.prefix(), b"msg:"].concat()
}

/// What stands before a member in the key of the note on a message's packet id.
fn sent_prefix(context: &Context) -> Vec<u8> {
    [context.keys.prefix(), b"sent:"].concat()
}
