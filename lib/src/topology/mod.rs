//! Who serves what: found by asking sentinels or the nodes of a cluster, and looked after from then on.

mod cluster;
mod sentinel;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{watch, Notify};

use crate::config::{Config, Redis, Server, Topology};
use crate::context::Context;
use crate::error::Why;
use crate::queue::{Control, Queue};

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
/// The same where nobody could be reached the last time.
const PAUSE_AWAY: Duration = Duration::from_millis(250);

/// Looks for who serves what, and tells the dispatcher through its queue.
#[derive(Clone)]
pub(crate) struct Lookout {
    queue: Arc<Queue>,
    config: watch::Sender<Arc<Config>>,
    hurry: Arc<Notify>,
    tells_again: Arc<AtomicBool>,
    /// How often it was asked to look by one who waits for the answer.
    asked: Arc<AtomicU64>,
    /// Why nobody could be asked the last time, though it is known who serves what.
    blind: Arc<Mutex<Option<Why>>>,
}

impl Lookout {
    pub(crate) fn new(config: &Config, queue: Arc<Queue>) -> Self {
        Lookout {
            queue,
            config: watch::Sender::new(Arc::new(config.clone())),
            hurry: Arc::new(Notify::new()),
            tells_again: Arc::default(),
            asked: Arc::default(),
            blind: Arc::default(),
        }
    }

    /// Why a fail-over would not be noticed now, if it would not.
    pub(crate) fn blind(&self) -> Option<Why> {
        self.blind_mut().clone()
    }

    fn blind_mut(&self) -> MutexGuard<'_, Option<Why>> {
        self.blind
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// There is a reason to look, and to tell what is found though it be known: the dispatcher may have heard
    /// otherwise meanwhile.
    pub(crate) fn hurry(&self) {
        self.tells_again.store(true, Relaxed);
        self.hurry.notify_one();
    }

    /// Has it looked up anew who the master is; [`Control::Looked`] comes with the answered number.
    pub(crate) fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, Relaxed) + 1;
        self.hurry();
        number
    }

    /// The settings have changed.
    pub(crate) fn reconfigure(&self, config: Arc<Config>) {
        self.config.send_replace(config);
        self.hurry();
    }

    /// Looks until the task is aborted.
    pub(crate) async fn run(self, context: Arc<Context>) {
        let mut looker = Looker::default();
        let mut view = View::Unknown(Why::Connecting);
        let mut looked_with = self.config.borrow().clone();
        let mut answered = 0;
        loop {
            let config = self.config.borrow().clone();
            if looks_elsewhere(&config.redis, &looked_with.redis) {
                view = View::Unknown(Why::Connecting);
            }
            looked_with = config.clone();
            let asked = self.asked.load(Relaxed);
            let found = match config.redis.topology {
                // What the settings say is all there is to know.
                Topology::Single => None,
                Topology::Sentinel => {
                    let found = looker.sentinel.look(&config.redis, asked > answered).await;
                    Some(found.map(View::Master))
                }
                Topology::Cluster => {
                    let found = looker.cluster.look(&config.redis, &context).await;
                    Some(found.map(View::Cluster))
                }
            };
            let is_away = matches!(&found, Some(Err(why)) if *why != Why::NotMaster);
            if let Some(found) = found {
                let is_answer = found.is_ok() && asked > answered;
                self.tell(&mut view, found);
                if is_answer {
                    answered = asked;
                    self.queue.control(Control::Looked(asked));
                }
            }
            let pause = if is_away { PAUSE_AWAY } else { PAUSE };
            tokio::time::sleep(pause + jitter()).await;
            let is_sentinel = config.redis.topology == Topology::Sentinel;
            if !is_sentinel || self.asked.load(Relaxed) == answered {
                let _ = tokio::time::timeout(PERIOD, self.hurry.notified()).await;
            }
        }
    }

    /// Tells what is new. What was known stays known when nobody can be asked.
    fn tell(&self, view: &mut View, found: Result<View, Why>) {
        let is_known = !matches!(view, View::Unknown(_));
        if is_known && matches!(found, Err(Why::NotMaster)) {
            // They could be asked: they are about to make another one.
            return;
        }
        let trouble = found.as_ref().err().filter(|_| is_known).cloned();
        let before = std::mem::replace(&mut *self.blind_mut(), trouble.clone());
        match (before, &trouble) {
            (None, Some(why)) => {
                tracing::warn!(why = %why, "nobody can be asked who serves what: a fail-over would not be noticed")
            }
            (Some(_), None) => tracing::info!("it can be asked again who serves what"),
            _ => {}
        }
        let found = match found {
            Ok(found) => found,
            Err(_) if is_known => return,
            Err(why) => View::Unknown(why),
        };
        let tells_again = self.tells_again.swap(false, Relaxed);
        let is_news = *view != found;
        if is_news {
            log(&found);
        }
        if is_news || tells_again && is_known {
            view.clone_from(&found);
            self.queue.control(Control::View(found));
        }
    }
}

fn jitter() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Duration::from_micros(u64::from(now.unwrap_or_default().subsec_micros()) % 40_000)
}

/// Whether what was known with other settings says nothing any more.
fn looks_elsewhere(redis: &Redis, before: &Redis) -> bool {
    let place = |redis: &Redis| {
        (
            redis.topology,
            redis.servers.clone(),
            redis.sentinel.clone(),
        )
    };
    place(redis) != place(before)
}

#[derive(Default)]
struct Looker {
    sentinel: sentinel::Sentinels,
    cluster: cluster::Nodes,
}

fn log(view: &View) {
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
