//! What an operator asks of the whole table.

use std::sync::Weak;

use bytes::Bytes;

use super::ask::{ask, find_shards, submit};
use super::errand::TopicsCursor;
use super::pages::{page_call, Pages};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::request::Answer;
use crate::resp::Frame;
use crate::route_scripts::Space;
use crate::router::Changes;

/// Filters listed by one script.
const LISTED: usize = 500;

/// Deletes the routes of a node, as Redis holds them. Of this node those stay that it wants.
pub(super) async fn clean_up(
    engine: &Weak<Engine>,
    context: &Context,
    node: &[u8],
) -> Result<Answer, Error> {
    let is_own = node == context.node;
    let mut deleted = 0;
    for shard in find_shards(engine, context).await? {
        let mut pages = Pages::of_routes();
        while !pages.is_over() {
            let page = pages.next(engine, shard).await?;
            let routes = page.elements().filter(|it| it.destination == node);
            let filters: Vec<Vec<u8>> = routes
                .filter(|it| !is_own || !context.replica.own.wants(it.filter))
                .map(|it| it.filter.to_vec())
                .collect();
            if filters.is_empty() {
                continue;
            }
            match submit(engine, Box::new(Changes::clean_up(filters, node))).await? {
                Answer::Count(count) => deleted += count,
                _ => return Err(Error::unexpected_reply("clean_up")),
            }
        }
    }
    Ok(Answer::Count(deleted))
}

/// Lists the filters of a table, shard by shard.
pub(super) async fn topics(
    engine: &Weak<Engine>,
    context: &Context,
    space: Space,
    limit: usize,
    after: Option<TopicsCursor>,
) -> Result<Answer, Error> {
    let shards = find_shards(engine, context).await?;
    let (mut shard, mut last) = match after {
        Some((shard, member, score)) => (shard, Some((member, score))),
        None => (0, None),
    };
    let mut filters: Vec<Bytes> = Vec::new();
    while shard < shards.end && filters.len() < limit {
        let most = LISTED.min(limit - filters.len());
        let after = last.clone();
        let reply = ask(engine, shard, move |context| {
            page_call(context, shard, space, &after, most, 0)
        });
        let unexpected = || Error::unexpected_reply("page_routes");
        let Frame::Array(reply) = reply.await? else {
            return Err(unexpected());
        };
        let [_, _, Frame::Bulk(member), Frame::Bulk(score), page @ ..] = &reply[..] else {
            return Err(unexpected());
        };
        filters.extend(page.iter().filter_map(|part| match part {
            Frame::Bulk(filter) => Some(filter.clone()),
            _ => None,
        }));
        last = Some((member.clone(), score.clone()));
        if score.is_empty() {
            (shard, last) = (shard + 1, None);
        }
    }
    let next = (shard < shards.end).then(|| {
        let (member, score) = last.unwrap_or_default();
        (shard, member, score)
    });
    Ok(Answer::Topics(filters, next))
}
