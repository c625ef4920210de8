//! The engine: a thread with a Tokio runtime, the connections' tasks on it, and the door to them.

use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::config::{Config, Topology};
use crate::context::Context;
use crate::dispatch::{Dispatcher, LinkStatus};
use crate::error::Error;
use crate::metrics::Counter;
use crate::queue::{Control, Queue};
use crate::replica::{self, Errand, Own};
use crate::request::{Request, Responder};
use crate::server::Warning;
use crate::sweeper;
use crate::topology::Lookout;

/// How long what still runs when the engine stops may take to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Engines started in the life of this process.
static STARTS: AtomicU64 = AtomicU64::new(0);

/// What is in flight, and what may be.
#[derive(Debug)]
pub struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    max_requests: AtomicUsize,
    max_bytes: AtomicUsize,
}

impl Load {
    fn new(config: &Config) -> Self {
        let load = Load {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_requests: AtomicUsize::new(0),
            max_bytes: AtomicUsize::new(0),
        };
        load.configure(config);
        load
    }

    fn configure(&self, config: &Config) {
        self.max_requests.store(config.limits.max_inflight, Relaxed);
        self.max_bytes
            .store(config.limits.max_inflight_bytes, Relaxed);
    }

    /// Makes room for a request; false when there is none.
    fn admit(&self, size: usize) -> bool {
        let requests = self.requests.fetch_add(1, Relaxed) + 1;
        let bytes = self.bytes.fetch_add(size, Relaxed) + size;
        let fits =
            requests <= self.max_requests.load(Relaxed) && bytes <= self.max_bytes.load(Relaxed);
        if !fits {
            self.release(size);
        }
        fits
    }

    pub(crate) fn release(&self, size: usize) {
        self.requests.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(size, Relaxed);
    }

    /// Requests and bytes in flight.
    pub fn current(&self) -> (usize, usize) {
        (self.requests.load(Relaxed), self.bytes.load(Relaxed))
    }
}

/// A running storage.
pub struct Engine {
    context: Arc<Context>,
    load: Arc<Load>,
    config: Mutex<Config>,
    queue: Arc<Queue>,
    links: Arc<Mutex<Vec<LinkStatus>>>,
    lookout: Lookout,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    runtime: tokio::runtime::Handle,
    started: Instant,
}

impl Engine {
    /// Starts the engine; it connects in the background. `own` are the routes that a node of this name has added
    /// before, where it did not stop but fail. `background` runs on the runtime beside it
    /// until the engine stops; `on_stopped` is called on the engine's thread, as the last thing it
    /// does.
    pub fn start(
        config: Config,
        node: Vec<u8>,
        own: Arc<Own>,
        background: impl Future<Output = ()> + Send + 'static,
        on_stopped: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Arc<Engine>> {
        let context = Arc::new(Context::new(&config, node, own));
        // Who still holds an id of an engine that has ended must not cancel a request of this one.
        let first_id = (STARTS.fetch_add(1, Relaxed) << 40) + 1;
        let queue = Arc::new(Queue::new(first_id));
        let links = Arc::new(Mutex::new(vec![LinkStatus::connecting()]));
        let lookout = Lookout::new(&config, queue.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Threads beside the engine's own resolve names and build large answers.
            .max_blocking_threads(2)
            .thread_keep_alive(Duration::from_secs(1))
            .thread_name("emqx_redis_aux")
            .build()?;
        let engine = Arc::new(Engine {
            runtime: runtime.handle().clone(),
            load: Arc::new(Load::new(&config)),
            config: Mutex::new(config.clone()),
            queue: queue.clone(),
            links: links.clone(),
            lookout: lookout.clone(),
            thread: Mutex::new(None),
            started: Instant::now(),
            context: context.clone(),
        });
        let shared = engine.clone();
        let main = async move {
            let mut tasks = JoinSet::new();
            tasks.spawn(background);
            tasks.spawn(sweeper::run(Arc::downgrade(&shared)));
            tasks.spawn(replica::run(Arc::downgrade(&shared), context.clone()));
            tasks.spawn(lookout.clone().run(context.clone()));
            drop(shared);
            let dispatcher = Dispatcher::new(queue.clone(), context, config, lookout, links);
            let dispatcher = tasks.spawn(dispatcher.run()).id();
            while let Some(ended) = tasks.join_next_with_id().await {
                match ended {
                    Ok((id, ())) if id != dispatcher => {}
                    Ok(_) => break,
                    Err(error) => {
                        // Without it the others would go on as if nothing were amiss: end, so that the owner
                        // starts anew.
                        tracing::error!(%error, "a task failed");
                        break;
                    }
                }
            }
        };
        let guard = engine.clone();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| runtime.block_on(main))).is_err() {
                tracing::error!("the runtime panicked");
            }
            // Whatever ended the runtime, nothing is accepted any more, and what was is answered.
            guard.queue.stop();
            guard.queue.drain();
            drop(guard);
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
            on_stopped();
        };
        let thread = std::thread::Builder::new()
            .name("emqx_redis".into())
            // Decoding a deeply nested term recurses.
            .stack_size(8 * 1024 * 1024)
            .spawn(body)?;
        *lock(&engine.thread) = Some(thread);
        Ok(engine)
    }

    /// Leaves a request, and answers its number. It is answered through its responder, except where it is
    /// refused here.
    pub fn submit(&self, mut request: Request) -> Result<u64, Error> {
        request.operation.submitted(&self.context);
        let size = request.size();
        if !self.load.admit(size) {
            request.refuse();
            self.context.metrics.add(Counter::Overloaded, 1);
            return Err(Error::Overloaded);
        }
        let load = self.load.clone();
        match self
            .queue
            .push(request, |request, number| request.admit(number, load))
        {
            Ok(number) => {
                self.context.metrics.add(Counter::Submitted, 1);
                Ok(number)
            }
            Err(refused) => {
                let (request, error) = *refused;
                self.load.release(size);
                request.refuse();
                if let Error::Unavailable(_) = error {
                    self.context.metrics.add(Counter::Unavailable, 1);
                }
                Err(error)
            }
        }
    }

    /// Leaves a request of the library's own, which is not counted among those in flight.
    pub(crate) fn submit_internal(&self, request: Request) -> Result<u64, Error> {
        let pushed = self
            .queue
            .push(request, |request, number| request.id = number);
        pushed.map_err(|refused| {
            let (request, error) = *refused;
            request.refuse();
            error
        })
    }

    /// Has an errand done. It is answered through the responder, by the deadline.
    pub fn run_errand(
        self: &Arc<Self>,
        errand: Errand,
        deadline: Instant,
        responder: Box<dyn Responder>,
    ) {
        let engine = Arc::downgrade(self);
        let work = replica::run_errand(engine, self.context.clone(), errand, deadline, responder);
        self.runtime.spawn(work);
    }

    /// Has a request answered at once: `Cancelled` when it was not sent, `Unknown` when it was. One
    /// that is answered already stays so.
    pub fn cancel(&self, number: u64) {
        self.queue.control(Control::Cancel(number));
    }

    /// Applies a changed configuration. What is sent is answered first; what waits is sent on the
    /// new connections. What decides where data is can't change while running.
    pub fn reconfigure(&self, config: Config) -> Result<(), &'static str> {
        let mut current = lock(&self.config);
        if *current == config {
            return Ok(());
        }
        if current.key_prefix != config.key_prefix {
            return Err("key_prefix");
        }
        let is_cluster = |config: &Config| config.redis.topology == Topology::Cluster;
        if is_cluster(&current) != is_cluster(&config) {
            return Err("redis.type");
        }
        self.context.configure(&config);
        self.load.configure(&config);
        let changed = Box::new(config.clone());
        self.queue.control(Control::Reconfigure(changed));
        *current = config;
        Ok(())
    }

    /// Begins to stop: answers everything and closes the connections.
    pub fn stop(&self) {
        self.queue.stop();
    }

    /// Awaits the end of the engine's thread. Blocks; not for a scheduler.
    pub fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// What an operator should know beside what the servers' reports tell.
    pub fn warnings(&self) -> Vec<Warning> {
        let blind = self.lookout.blind();
        blind.iter().map(Warning::unwatched).collect()
    }

    /// The configuration in force.
    pub fn config(&self) -> Config {
        lock(&self.config).clone()
    }

    /// The shared context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The deadline of a request that sets none of its own.
    pub fn request_timeout(&self) -> Duration {
        lock(&self.config).redis.request_timeout
    }

    /// What is in flight.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The connections.
    pub fn links(&self) -> Vec<LinkStatus> {
        lock(&self.links).clone()
    }

    /// How long the engine has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn ends(background: impl Future<Output = ()> + Send + 'static) -> bool {
        let (sender, receiver) = mpsc::channel();
        let ended = move || sender.send(()).unwrap_or_default();
        let engine = Engine::start(
            Config::default(),
            Vec::new(),
            Arc::default(),
            background,
            ended,
        )
        .unwrap();
        let ends = receiver.recv_timeout(Duration::from_secs(2)).is_ok();
        engine.stop();
        ends
    }

    #[test]
    fn a_task_that_fails_ends_the_engine() {
        assert!(ends(async { panic!("on purpose") }));
        assert!(!ends(async {}));
    }
}
