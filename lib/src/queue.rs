//! Where callers leave requests and a connection's task takes them up.

use std::sync::Mutex;
use std::task::Waker;

use crate::config::Config;
use crate::error::{Error, Why};
use crate::request::Request;
use crate::topology::View;

/// What a connection's task is told besides requests.
pub(crate) enum Control {
    /// Answer request `id` at once.
    Cancel(u64),
    /// Connect anew with these settings when what was sent is answered.
    Reconfigure(Box<Config>),
    /// Who serves what now.
    View(View),
    /// What was asked for the so manyth time has been looked up since.
    Looked(u64),
}

/// What happens to a request that is left.
enum Mode {
    Open,
    /// Redis has been away for too long.
    Failing(Why),
    Stopped,
}

/// A queue that many threads fill and one task empties. A plain mutex: it is held for a push or a
/// swap, and the task is woken only when it sleeps, so that a burst of requests is taken in one go.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
}

struct Inner {
    mode: Mode,
    next_id: u64,
    requests: Vec<Request>,
    controls: Vec<Control>,
    sleeper: Option<Waker>,
}

impl Queue {
    /// Requests are numbered from `first_id` on.
    pub(crate) fn new(first_id: u64) -> Self {
        Queue {
            inner: Mutex::new(Inner {
                mode: Mode::Open,
                next_id: first_id,
                requests: Vec::new(),
                controls: Vec::new(),
                sleeper: None,
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Leaves a request; `admit` sees the id it gets. A request that is refused is given back.
    pub(crate) fn push(
        &self,
        mut request: Request,
        admit: impl FnOnce(&mut Request, u64),
    ) -> Result<u64, Box<(Request, Error)>> {
        let mut inner = self.lock();
        match &inner.mode {
            Mode::Open => {}
            Mode::Failing(why) => return Err(Box::new((request, Error::Unavailable(why.clone())))),
            Mode::Stopped => return Err(Box::new((request, Error::Stopped))),
        }
        let id = inner.next_id;
        inner.next_id += 1;
        admit(&mut request, id);
        inner.requests.push(request);
        let sleeper = inner.sleeper.take();
        drop(inner);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
        Ok(id)
    }

    pub(crate) fn control(&self, control: Control) {
        let mut inner = self.lock();
        inner.controls.push(control);
        let sleeper = inner.sleeper.take();
        drop(inner);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Takes what was left. When there is nothing, `waker` is woken as soon as there is.
    pub(crate) fn take(
        &self,
        requests: &mut Vec<Request>,
        controls: &mut Vec<Control>,
        waker: &Waker,
    ) -> Taken {
        let mut inner = self.lock();
        std::mem::swap(&mut inner.requests, requests);
        std::mem::swap(&mut inner.controls, controls);
        let stopped = matches!(inner.mode, Mode::Stopped);
        if requests.is_empty() && controls.is_empty() && !stopped {
            match &mut inner.sleeper {
                Some(sleeper) => sleeper.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        if stopped {
            Taken::Stopped
        } else if requests.is_empty() && controls.is_empty() {
            Taken::Nothing
        } else {
            Taken::Something
        }
    }

    /// Requests are accepted, and wait.
    pub(crate) fn open(&self) {
        let mut inner = self.lock();
        if !matches!(inner.mode, Mode::Stopped) {
            inner.mode = Mode::Open;
        }
    }

    /// Requests are refused at once from here on.
    pub(crate) fn fail(&self, why: Why) {
        let mut inner = self.lock();
        if !matches!(inner.mode, Mode::Stopped) {
            inner.mode = Mode::Failing(why);
        }
    }

    /// Drops what was left after the task had ended; each request answers as it goes.
    pub(crate) fn drain(&self) {
        let left = std::mem::take(&mut self.lock().requests);
        drop(left);
    }

    /// Requests are refused for good.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        inner.mode = Mode::Stopped;
        let sleeper = inner.sleeper.take();
        drop(inner);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

/// What [`Queue::take`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Something,
    Nothing,
    Stopped,
}
