//! Reading the whole table, page by page: by its indexes, in their order.

use std::sync::Weak;

use bytes::Bytes;

use super::ask::{ask, Question};
use super::feed::{position, Position};
use super::state::Element;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::resp::Frame;
use crate::route_scripts::{ScriptCall, Space};
use crate::scripts::Script;

/// Filters of one page: well under a millisecond of the server's time.
const FILTERS: usize = 150;
/// Destinations of one filter that a page tells; those of larger ones are read by themselves.
const DESTINATIONS: usize = 200;
/// Elements that SSCAN and HSCAN are asked for at a time.
const SCANNED: usize = 400;

/// What is left to be read.
pub(super) struct Pages {
    part: Part,
    /// Filters with more destinations than a page tells.
    large: Vec<(Space, Bytes)>,
    /// Whether cursors were used, which mean nothing to another server.
    pub(super) has_scanned: bool,
    routes_alone: bool,
}

enum Part {
    Index(Space, Option<(Bytes, Bytes)>),
    Large(Space, Bytes, Bytes),
    End,
}

/// What was read.
pub(super) struct Page {
    pub(super) elements: Vec<(Space, Bytes, Bytes, Bytes)>,
    /// Where the feed stood; not told by a scan.
    pub(super) at: Option<Position>,
}

impl Page {
    pub(super) fn elements(&self) -> impl Iterator<Item = Element<'_>> {
        self.elements
            .iter()
            .map(|(space, filter, destination, options)| Element {
                space: *space,
                filter,
                destination,
                options,
            })
    }
}

impl Pages {
    pub(super) fn new() -> Self {
        Pages {
            part: Part::Index(Space::Routes, None),
            large: Vec::new(),
            has_scanned: false,
            routes_alone: false,
        }
    }

    /// Without the subscriptions.
    pub(super) fn of_routes() -> Self {
        Pages {
            routes_alone: true,
            ..Pages::new()
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.part, Part::End)
    }

    /// Reads the next page.
    pub(super) async fn next(&mut self, engine: &Weak<Engine>, shard: u16) -> Result<Page, Error> {
        match &self.part {
            Part::Index(space, after) => self.index(engine, shard, *space, after.clone()).await,
            Part::Large(space, filter, cursor) => {
                let (space, filter, cursor) = (*space, filter.clone(), cursor.clone());
                self.large(engine, shard, space, filter, cursor).await
            }
            Part::End => Err(Error::unexpected_reply("pages")),
        }
    }

    async fn index(
        &mut self,
        engine: &Weak<Engine>,
        shard: u16,
        space: Space,
        after: Option<(Bytes, Bytes)>,
    ) -> Result<Page, Error> {
        let reply = ask(engine, shard, move |context| {
            page_call(context, shard, space, &after, FILTERS, DESTINATIONS)
        });
        let unexpected = || Error::unexpected_reply("page_routes");
        let Frame::Array(reply) = reply.await? else {
            return Err(unexpected());
        };
        let at = position(&reply).ok_or_else(unexpected)?;
        let mut rest = reply.into_iter().skip(2);
        let mut bulk = || match rest.next() {
            Some(Frame::Bulk(bytes)) => Some(Frame::Bulk(bytes)),
            other => other,
        };
        let (Some(Frame::Bulk(member)), Some(Frame::Bulk(score))) = (bulk(), bulk()) else {
            return Err(unexpected());
        };
        let mut elements = Vec::new();
        while let Some(filter) = bulk() {
            let (Frame::Bulk(filter), Some(Frame::Integer(count))) = (filter, bulk()) else {
                return Err(unexpected());
            };
            let Ok(count) = usize::try_from(count) else {
                self.large.push((space, filter));
                continue;
            };
            let mut strings = Vec::with_capacity(count);
            for _ in 0..count {
                match bulk() {
                    Some(Frame::Bulk(bytes)) => strings.push(bytes),
                    _ => return Err(unexpected()),
                }
            }
            push_elements(&mut elements, space, &filter, strings);
        }
        self.part = match (score.is_empty(), space) {
            (false, _) => Part::Index(space, Some((member, score))),
            (true, Space::Routes) if !self.routes_alone => Part::Index(Space::Subscriptions, None),
            (true, _) => self.next_large(),
        };
        Ok(Page {
            elements,
            at: Some(at),
        })
    }

    fn next_large(&mut self) -> Part {
        match self.large.pop() {
            Some((space, filter)) => Part::Large(space, filter, Bytes::from_static(b"0")),
            None => Part::End,
        }
    }

    async fn large(
        &mut self,
        engine: &Weak<Engine>,
        shard: u16,
        space: Space,
        filter: Bytes,
        cursor: Bytes,
    ) -> Result<Page, Error> {
        self.has_scanned = true;
        let name = filter.clone();
        let reply = ask(engine, shard, move |context| {
            let keys = &context.keys;
            let (command, key) = match space {
                Space::Routes => ("SSCAN", keys.route(shard, &name)),
                Space::Subscriptions => ("HSCAN", keys.subscriptions(shard, &name)),
            };
            Question::Command(vec![
                command.into(),
                key,
                cursor.to_vec(),
                "COUNT".into(),
                SCANNED.to_string().into(),
            ])
        });
        let unexpected = || Error::unexpected_reply("SSCAN");
        let Frame::Array(mut parts) = reply.await? else {
            return Err(unexpected());
        };
        let (Some(Frame::Array(members)), Some(Frame::Bulk(cursor))) = (parts.pop(), parts.pop())
        else {
            return Err(unexpected());
        };
        let strings = members.into_iter().filter_map(|member| match member {
            Frame::Bulk(bytes) => Some(bytes),
            _ => None,
        });
        let mut elements = Vec::new();
        push_elements(&mut elements, space, &filter, strings.collect());
        self.part = match &cursor[..] {
            b"0" => self.next_large(),
            _ => Part::Large(space, filter, cursor),
        };
        Ok(Page { elements, at: None })
    }
}

fn push_elements(
    elements: &mut Vec<(Space, Bytes, Bytes, Bytes)>,
    space: Space,
    filter: &Bytes,
    strings: Vec<Bytes>,
) {
    match space {
        Space::Routes => elements.extend(
            strings
                .into_iter()
                .map(|node| (space, filter.clone(), node, Bytes::new())),
        ),
        Space::Subscriptions => elements.extend(
            strings
                .chunks_exact(2)
                .map(|pair| (space, filter.clone(), pair[0].clone(), pair[1].clone())),
        ),
    }
}

/// The script that reads a page behind a filter and its score.
pub(super) fn page_call(
    context: &Context,
    shard: u16,
    space: Space,
    after: &Option<(Bytes, Bytes)>,
    filters: usize,
    destinations: usize,
) -> Question {
    let keys = &context.keys;
    let (index, kind, prefix) = match space {
        // The key of the empty filter, which is none, is what stands before a filter.
        Space::Routes => (keys.routes_index(shard), "r", keys.route(shard, b"")),
        Space::Subscriptions => (
            keys.subscriptions_index(shard),
            "s",
            keys.subscriptions(shard, b""),
        ),
    };
    let is_encoded = space == Space::Routes && !keys.is_clustered();
    let (member, score) = after.clone().unwrap_or_default();
    Question::Script(ScriptCall {
        script: Script::PageRoutes,
        keys: vec![index, keys.feed(shard)],
        args: vec![
            kind.into(),
            prefix,
            if is_encoded { "1".into() } else { Vec::new() },
            filters.to_string().into(),
            destinations.to_string().into(),
            member.to_vec(),
            score.to_vec(),
        ],
    })
}
