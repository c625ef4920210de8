//! Who serves what: found by asking sentinels or the nodes of a cluster, and looked after from then on.

mod cluster;
mod sentinel;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{watch, Notify};

use crate::config::{Config, Server, Topology};
use crate::context::Context;
use crate::error::Why;

/// What is known of who serves what.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum View {
    /// Nothing, and why.
    Unknown(Why),
    /// One master serves everything.
    Master(Server),
    /// The masters of a cluster serve their slots.
    Cluster(Arc<SlotMap>),
}

/// Who serves which slots of a cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlotMap {
    /// Grows with every change that the cluster has agreed on.
    pub(crate) epoch: u64,
    pub(crate) masters: Vec<(Server, Vec<RangeInclusive<u16>>)>,
    /// How many slots nobody serves.
    pub(crate) unserved: u16,
}

/// How often is looked without any reason.
const PERIOD: Duration = Duration::from_secs(1);
/// Not more often than that, whatever the reason; jittered, so that many nodes do not ask at once.
const PAUSE: Duration = Duration::from_millis(80);

/// Between who looks and who uses what is found.
#[derive(Clone)]
pub(crate) struct Lookout {
    view: watch::Sender<View>,
    config: watch::Sender<Config>,
    hurry: Arc<Notify>,
}

impl Lookout {
    pub(crate) fn new(config: &Config) -> Self {
        Lookout {
            view: watch::Sender::new(first_view(config)),
            config: watch::Sender::new(config.clone()),
            hurry: Arc::new(Notify::new()),
        }
    }

    /// What is known, now and later.
    pub(crate) fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// There is a reason to look.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// The settings have changed.
    pub(crate) fn reconfigure(&self, config: &Config) {
        self.config.send_replace(config.clone());
        if config.redis.topology == Topology::Single {
            self.view.send_replace(first_view(config));
        }
        self.hurry();
    }

    /// Looks until the task is aborted.
    pub(crate) async fn run(self, context: Arc<Context>) {
        let mut looker = Looker::default();
        loop {
            let config = self.config.borrow().clone();
            let begun = Instant::now();
            match config.redis.topology {
                Topology::Single => {}
                Topology::Sentinel => {
                    let found = looker.sentinel.look(&config.redis).await;
                    self.publish(found.map(View::Master));
                }
                Topology::Cluster => {
                    let found = looker.cluster.look(&config.redis, &context).await;
                    self.publish(found.map(View::Cluster));
                }
            }
            let jitter = Duration::from_millis(begun.elapsed().subsec_nanos() as u64 % 40);
            tokio::time::sleep(PAUSE + jitter).await;
            let _ = tokio::time::timeout(PERIOD, self.hurry.notified()).await;
        }
    }

    /// What was known stays known when nobody can be asked.
    fn publish(&self, found: Result<View, Why>) {
        self.view.send_if_modified(|view| {
            let found = match found {
                Ok(found) => found,
                Err(why) => match view {
                    View::Unknown(_) => View::Unknown(why),
                    _ => return false,
                },
            };
            let differs = *view != found;
            if differs {
                tell(&found);
                *view = found;
            }
            differs
        });
    }
}

#[derive(Default)]
struct Looker {
    sentinel: sentinel::Sentinels,
    cluster: cluster::Nodes,
}

fn first_view(config: &Config) -> View {
    match (config.redis.topology, config.redis.servers.first()) {
        (Topology::Single, Some(server)) => View::Master(server.clone()),
        _ => View::Unknown(Why::Connecting),
    }
}

fn tell(view: &View) {
    match view {
        View::Unknown(why) => tracing::warn!(why = %why, "no master is known"),
        View::Master(server) => tracing::info!(master = %server, "the sentinels name a master"),
        View::Cluster(map) => tracing::info!(
            masters = map.masters.len(),
            unserved_slots = map.unserved,
            epoch = map.epoch,
            "the cluster's slots are known"
        ),
    }
}
