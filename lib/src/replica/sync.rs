//! Waiting until a change is known: to this node, or to every node that holds a lease.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::ask::{ask, Question};
use super::lease::{Leases, NodeLease};
use super::{Replica, Shard, MAX_LAG};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Error;
use crate::request::Answer;
use crate::resp::Frame;
use crate::route_scripts::ScriptCall;
use crate::scripts::Script;

/// A node that has not applied a change for so long since it was waited for loses its lease. By then it has long not
/// believed in it: it has said that it is up to date when it was, [`super::lease`]'s bound and [`MAX_LAG`] before.
const LATE: Duration = Duration::from_secs(7);
/// After a new connection a lease may be missing that its node believes in yet.
const STEADY: Duration = Duration::from_millis(3500);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

struct Waiting<'a>(&'a Shard);

impl<'a> Waiting<'a> {
    fn on(shard: &'a Shard) -> Self {
        shard.waiting.fetch_add(1, Relaxed);
        shard.hurry.notify_one();
        Waiting(shard)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Answers `Ok` once this node, or every node with a lease, has applied these versions of shards' feeds.
pub(super) async fn run(
    engine: &Weak<Engine>,
    context: &Context,
    versions: Vec<(u16, u64)>,
    all: bool,
) -> Result<Answer, Error> {
    context.replica.want();
    for (shard, version) in versions {
        let shard_of = await_shard(&context.replica, shard).await;
        await_applied(shard_of, version).await;
        if all {
            await_all(engine, shard_of, shard, version).await?;
        }
    }
    Ok(Answer::Ok)
}

/// The replica has its shards once Redis was reached.
async fn await_shard(replica: &Replica, shard: u16) -> &Shard {
    loop {
        if let Some(shard) = replica.shard(shard) {
            return shard;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn await_applied(shard: &Shard, version: u64) {
    shard.hurry.notify_one();
    let mut position = shard.position.subscribe();
    // The sender is in the replica, which the caller holds.
    let _ = position.wait_for(|applied| *applied >= version).await;
}

async fn await_all(
    engine: &Weak<Engine>,
    shard: &Shard,
    number: u16,
    version: u64,
) -> Result<(), Error> {
    let began = Instant::now();
    let _waiting = Waiting::on(shard);
    let mut leases = shard.leases.subscribe();
    loop {
        let Some(late) = find_late(shard, &leases.borrow_and_update(), version, began) else {
            let _ = tokio::time::timeout(LOOK, leases.changed()).await;
            continue;
        };
        if late.is_empty() {
            return Ok(());
        }
        if began.elapsed() > LATE {
            for lease in late {
                revoke(engine, number, version, lease).await?;
            }
        }
        let _ = tokio::time::timeout(LOOK, leases.changed()).await;
    }
}

/// The nodes with a lease that have not applied the version; `None` where these leases tell nothing.
fn find_late(
    shard: &Shard,
    leases: &Leases,
    version: u64,
    began: Instant,
) -> Option<Vec<NodeLease>> {
    let is_steady = shard.lease().steady_since.elapsed() > STEADY;
    if leases.asked < began || !is_steady {
        return None;
    }
    let is_late = |it: &&NodeLease| it.applied.is_some_and(|applied| applied < version);
    Some(leases.nodes.iter().filter(is_late).cloned().collect())
}

async fn revoke(
    engine: &Weak<Engine>,
    shard: u16,
    version: u64,
    lease: NodeLease,
) -> Result<(), Error> {
    let node = String::from_utf8_lossy(&lease.node).into_owned();
    let reply = ask(engine, shard, move |context| {
        Question::Script(ScriptCall {
            script: Script::RevokeLease,
            keys: vec![context.keys.leases(shard)],
            args: vec![
                lease.node.to_vec(),
                lease.life.to_vec(),
                version.to_string().into(),
            ],
        })
    });
    if reply.await? == Frame::Integer(1) {
        tracing::warn!(shard, node, "a node lags behind and has lost its lease");
    }
    Ok(())
}

// A node believes in its lease for no longer than this after it was last up to date; see `LATE`.
const _: () = assert!(LATE.as_millis() > 2 * MAX_LAG.as_millis());
