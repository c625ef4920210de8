//! Asking the nodes of a cluster for its slots: <https://redis.io/docs/latest/commands/cluster-slots/>.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::SlotMap;
use crate::config::{Redis, Server};
use crate::connection::{layout, ok, Dialogue};
use crate::context::Context;
use crate::error::Why;
use crate::hash_slot::hash_slot;
use crate::resp::Frame;
use crate::slots::SLOTS;
use crate::tls::Connector;

/// A node that answers no sooner is as good as gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many route shards a new cluster gets; `meta` holds the number from then on.
const ROUTE_SHARDS: i64 = 16;
/// Of many nodes so many are asked at most.
const SEEDS: usize = 8;

/// What is known of the nodes.
#[derive(Default)]
pub(super) struct Nodes {
    /// Masters and replicas that the last answer named.
    known: Vec<Server>,
    open: Option<(Server, Dialogue)>,
    made_with: Option<Redis>,
    tls: Option<Connector>,
    next: usize,
    epoch: u64,
    /// Whether `meta` was read.
    is_checked: bool,
}

/// What a node says.
struct Answer {
    /// Whether it is one of those that the cluster is made up of.
    is_ok: bool,
    map: SlotMap,
    /// Masters and replicas.
    known: Vec<Server>,
}

impl Answer {
    fn rank(&self) -> (bool, u64) {
        (self.is_ok, self.map.epoch)
    }
}

impl Nodes {
    /// The slots, as the first node says that is part of the cluster and knows of everything that was known
    /// before; else as the one says that knows most.
    pub(super) async fn look(
        &mut self,
        config: &Redis,
        context: &Context,
    ) -> Result<Arc<SlotMap>, Why> {
        if self.made_with.as_ref() != Some(config) {
            *self = Nodes {
                made_with: Some(config.clone()),
                tls: Connector::new(&config.ssl, "redis.ssl"),
                is_checked: self.is_checked,
                ..Nodes::default()
            };
        }
        let (mut last, mut best) = (Why::Connecting, None);
        for server in self.candidates(config) {
            match self.ask(config, &server).await {
                Ok(answer) if answer.is_ok && answer.map.epoch >= self.epoch => {
                    return self.take(config, context, answer).await;
                }
                Ok(answer)
                    if best
                        .as_ref()
                        .is_none_or(|best| answer.rank() > Answer::rank(best)) =>
                {
                    best = Some(answer);
                }
                Ok(_) => {}
                Err(why) => last = why,
            }
        }
        match best {
            Some(answer) => self.take(config, context, answer).await,
            None => Err(last),
        }
    }

    async fn take(
        &mut self,
        config: &Redis,
        context: &Context,
        answer: Answer,
    ) -> Result<Arc<SlotMap>, Why> {
        if !self.is_checked {
            check_layout(config, self.tls.as_ref(), context, &answer.map).await?;
            self.is_checked = true;
        }
        // A node that is cut off counts elections that the others know nothing of.
        if answer.is_ok {
            self.epoch = answer.map.epoch;
        }
        self.known = answer.known;
        Ok(Arc::new(answer.map))
    }

    /// Whom to ask, in order: those that are known, beginning with another one each time, then the seeds.
    fn candidates(&mut self, config: &Redis) -> Vec<Server> {
        self.next = self.next.wrapping_add(1);
        let mut all = self.known.clone();
        if !all.is_empty() {
            let first = self.next % all.len();
            all.rotate_left(first);
            all.truncate(SEEDS);
        }
        for seed in &config.servers {
            if !all.contains(seed) {
                all.push(seed.clone());
            }
        }
        all
    }

    async fn ask(&mut self, config: &Redis, server: &Server) -> Result<Answer, Why> {
        let mut dialogue = match self.open.take() {
            Some((open, dialogue)) if open == *server => dialogue,
            _ => connect(config, self.tls.as_ref(), server).await?,
        };
        let answer = timeout(PATIENCE, ask_for_slots(&mut dialogue, server)).await;
        let found = answer.unwrap_or(Err(Why::ConnectTimeout))?;
        self.open = Some((server.clone(), dialogue));
        Ok(found)
    }
}

async fn connect(
    config: &Redis,
    tls: Option<&Connector>,
    server: &Server,
) -> Result<Dialogue, Why> {
    let opening = async {
        let mut dialogue = Dialogue::connect(server, tls).await?;
        let user = config.username.as_deref();
        dialogue.log_in(user, config.password.as_ref()).await?;
        Ok(dialogue)
    };
    let limit = config.connect_timeout.min(PATIENCE);
    let opened = timeout(limit, opening).await;
    opened.unwrap_or(Err(Why::ConnectTimeout))
}

async fn ask_for_slots(dialogue: &mut Dialogue, asked: &Server) -> Result<Answer, Why> {
    let info = dialogue.call(&[b"CLUSTER", b"INFO"]).await?;
    ok(&info)?;
    let slots = dialogue.call(&[b"CLUSTER", b"SLOTS"]).await?;
    ok(&slots)?;
    let Frame::Array(ranges) = slots else {
        return Err(Why::Protocol("CLUSTER SLOTS".into()));
    };
    let mut map = SlotMap {
        epoch: info_field(&info, "cluster_current_epoch")
            .and_then(|it| it.parse().ok())
            .unwrap_or(0),
        masters: Vec::new(),
        unserved: SLOTS,
    };
    let mut masters: BTreeMap<String, (Server, Vec<RangeInclusive<u16>>)> = BTreeMap::new();
    let mut known = Vec::new();
    for range in &ranges {
        let (slots, nodes) =
            slot_range(range, asked).ok_or(Why::Protocol("CLUSTER SLOTS".into()))?;
        for node in &nodes {
            if !known.contains(node) {
                known.push(node.clone());
            }
        }
        if let Some(master) = nodes.into_iter().next() {
            map.unserved -= (slots.end().saturating_sub(*slots.start()) + 1).min(map.unserved);
            let its = masters.entry(master.to_string());
            its.or_insert_with(|| (master, Vec::new())).1.push(slots);
        }
    }
    map.masters = masters.into_values().collect();
    if map.masters.is_empty() {
        return Err(Why::ClusterDown("no slot is served".into()));
    }
    Ok(Answer {
        is_ok: info_field(&info, "cluster_state").as_deref() == Some("ok"),
        map,
        known,
    })
}

fn info_field(info: &Frame, name: &str) -> Option<String> {
    let Frame::Bulk(text) = info else {
        return None;
    };
    let text = String::from_utf8_lossy(text);
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let field = fields.find(|(field, _)| *field == name);
    field.map(|(_, value)| value.trim().to_owned())
}

/// The first and last slot, and the nodes that serve them, the master first.
fn slot_range(range: &Frame, asked: &Server) -> Option<(RangeInclusive<u16>, Vec<Server>)> {
    let Frame::Array(parts) = range else {
        return None;
    };
    let [Frame::Integer(from), Frame::Integer(to), nodes @ ..] = &parts[..] else {
        return None;
    };
    let slot = |number: &i64| u16::try_from(*number).ok().filter(|slot| *slot < SLOTS);
    let nodes = nodes.iter().filter_map(|node| node_server(node, asked));
    Some((slot(from)?..=slot(to)?, nodes.collect()))
}

/// A node without a host is one that only knows its port: it is where it was asked.
fn node_server(node: &Frame, asked: &Server) -> Option<Server> {
    let Frame::Array(parts) = node else {
        return None;
    };
    let (host, port) = match &parts[..] {
        [Frame::Bulk(host), Frame::Integer(port), ..] => (std::str::from_utf8(host).ok()?, port),
        [Frame::Nil, Frame::Integer(port), ..] => ("", port),
        _ => return None,
    };
    let host = match (host, asked) {
        ("" | "?", Server::Tcp { host, .. }) => host.clone(),
        (host, _) => host.to_owned(),
    };
    Some(Server::Tcp {
        host,
        port: u16::try_from(*port).ok()?,
    })
}

/// Reads `meta` where it is, and learns from it into how many shards the routes are cut.
async fn check_layout(
    config: &Redis,
    tls: Option<&Connector>,
    context: &Context,
    map: &SlotMap,
) -> Result<(), Why> {
    let slot = hash_slot(&context.keys.meta());
    let mut masters = map.masters.iter();
    let owner = masters.find(|(_, ranges)| ranges.iter().any(|range| range.contains(&slot)));
    let Some((server, _)) = owner else {
        return Err(Why::ClusterDown("the slot of `meta` is not served".into()));
    };
    let checking = async {
        let mut dialogue = connect(config, tls, server).await?;
        layout::load_scripts(&mut dialogue, context).await?;
        layout::check(&mut dialogue, context).await?;
        let field = "route_shards";
        let shards = layout::agree_on(&mut dialogue, context, field, ROUTE_SHARDS).await?;
        let learnt = shards.is_none_or(|shards| {
            u16::try_from(shards).is_ok_and(|shards| context.keys.learn_shards(shards))
        });
        match learnt {
            true => Ok(()),
            false => Err(Why::Layout(
                "`meta` holds a bad number of route shards".into(),
            )),
        }
    };
    let checked = timeout(config.connect_timeout, checking).await;
    checked.unwrap_or(Err(Why::ConnectTimeout))
}
