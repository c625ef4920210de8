//! The Lua scripts: where Redis itself has to decide.

use std::sync::OnceLock;

use crate::context::Context;
use crate::resp::{Commands, Frame};

macro_rules! scripts {
    ($($variant:ident = [$($file:literal),+];)+) => {
        /// A script. Each says in its own file what it takes, what it answers and what it costs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Script { $(#[allow(missing_docs)] $variant,)+ }

        impl Script {
            /// All scripts, with the text that Redis is given.
            pub const ALL: &'static [(Script, &'static str)] = &[
                $((Script::$variant, concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+)),)+
            ];
        }
    };
}

scripts! {
    SaveSession = ["fence", "save_session"];
    ClaimSession = ["fence", "claim_session"];
    DeleteSession = ["fence", "delete_session"];
    ListSessions = ["cluster", "expire_sessions", "list_sessions"];
    SweepSessions = ["cluster", "expire_sessions", "sweep_sessions"];
    PlaceMessages = ["keeps_place", "place_messages"];
    StoreLimited = ["cluster", "expire_messages", "keeps_place", "store_limited"];
    PageMessages = ["cluster", "expire_messages", "page_messages"];
    PruneMessages = ["cluster", "prune_messages"];
    AckMessages = ["fence", "ack_messages"];
    MarkMessages = ["fence", "mark_messages"];
    DeleteMessages = ["cluster", "fence", "delete_messages"];
    SweepMessages = ["cluster", "expire_messages", "sweep_messages"];
    Quarantine = ["quarantine"];
    AddRoute = ["feed", "trie_add", "add_route"];
    DeleteRoute = ["feed", "trie_prune", "delete_route"];
    MatchRoutes = ["cluster", "trie_walk", "match_routes"];
    AddSubscription = ["feed", "trie_add", "add_subscription"];
    DeleteSubscription = ["feed", "trie_prune", "delete_subscription"];
    MatchSubscriptions = ["cluster", "trie_walk", "match_subscriptions"];
    RestoreFilter = ["trie_add", "restore_filter"];
    BeginFeed = ["feed", "begin_feed"];
    PageRoutes = ["cluster", "feed", "page_routes"];
    RenewLease = ["feed", "renew_lease"];
    RevokeLease = ["revoke_lease"];
    EndLease = ["end_lease"];
}

impl Script {
    /// The text that Redis is given.
    pub fn text(self) -> &'static str {
        Script::ALL[self as usize].1
    }
}

/// The names that Redis gave the scripts. They depend on the text alone, so one answer holds for
/// every server.
#[derive(Debug, Default)]
pub struct Names([OnceLock<Vec<u8>>; Script::ALL.len()]);

impl Names {
    /// Notes the answer to `SCRIPT LOAD`.
    pub fn learn(&self, script: Script, reply: &Frame) -> bool {
        match reply {
            Frame::Bulk(name) if name.len() == 40 => {
                let _ = self.0[script as usize].set(name.to_vec());
                true
            }
            _ => false,
        }
    }

    fn get(&self, script: Script) -> &[u8] {
        self.0[script as usize].get().map_or(b"", Vec::as_slice)
    }
}

/// Writes `SCRIPT LOAD` for every script.
pub fn load_all(commands: &mut Commands<'_>) {
    for (_, text) in Script::ALL {
        commands.command(&[b"SCRIPT", b"LOAD", text.as_bytes()]);
    }
}

/// Begins an `EVALSHA`; `arguments` of them must follow, keys first.
pub fn call<'c, 'a>(
    context: &Context,
    commands: &'c mut Commands<'a>,
    script: Script,
    keys: &[&[u8]],
    arguments: usize,
) -> &'c mut Commands<'a> {
    commands
        .begin(3 + keys.len() + arguments)
        .arg(b"EVALSHA")
        .arg(context.scripts.get(script))
        .int(keys.len());
    for key in keys {
        commands.arg(key);
    }
    commands
}

/// Whether the reply says that the server does not know the script.
pub fn is_unknown(reply: &Frame) -> bool {
    reply
        .error()
        .is_some_and(|text| text.starts_with(b"NOSCRIPT"))
}
