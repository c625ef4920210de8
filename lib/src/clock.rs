//! Redis's clock, read without asking Redis.
//!
//! Every timestamp that is stored comes from one clock, the server's: this node adds the measured
//! difference to its own monotonic clock. So a node whose wall clock is an hour off, or is set while
//! it runs, neither expires nor reorders anything. Until the first measurement no request is sent,
//! so none can carry a time of another clock.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How much a measurement's error bound grows with its age: quartz clocks drift less.
const DRIFT_PER_SECOND: Duration = Duration::from_micros(100);

/// The server's clock as this node knows it.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Server time at `start`, in microseconds since 1970.
    offset: AtomicI64,
    last: AtomicI64,
    skew: AtomicI64,
    best: Mutex<Option<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    taken: Instant,
    uncertainty: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Clock {
            start: Instant::now(),
            offset: AtomicI64::new(0),
            last: AtomicI64::new(0),
            skew: AtomicI64::new(0),
            best: Mutex::new(None),
        }
    }
}

impl Clock {
    /// Takes in what the server answered to `TIME`, asked at `sent` and answered at `received`.
    /// The answer is off by half the round trip at most; a worse measurement than the one in use
    /// is taken only where the two contradict each other.
    pub fn measure(&self, server_micros: i64, sent: Instant, received: Instant) {
        let uncertainty = received.saturating_duration_since(sent) / 2;
        let middle = (sent + uncertainty).saturating_duration_since(self.start);
        let offset = server_micros - middle.as_micros() as i64;
        let mut best = self
            .best
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let better = best.is_none_or(|known| {
            let age = received.saturating_duration_since(known.taken);
            let known_now = known.uncertainty + DRIFT_PER_SECOND.mul_f64(age.as_secs_f64());
            let apart = (offset - self.offset.load(Relaxed)).unsigned_abs();
            uncertainty <= known_now || Duration::from_micros(apart) > known_now + uncertainty
        });
        if better {
            self.offset.store(offset, Relaxed);
            *best = Some(Sample {
                taken: received,
                uncertainty,
            });
        }
    }

    /// Another server may have another clock: forget how good the last measurement was.
    pub fn distrust(&self) {
        *self
            .best
            .lock()
            .unwrap_or_else(|broken| broken.into_inner()) = None;
    }

    /// Microseconds since 1970 on the server's clock; never less than before.
    pub fn now_micros(&self) -> i64 {
        let now = self.reference_micros();
        self.last.fetch_max(now, Relaxed).max(now)
    }

    /// The same as the server has it: where its clock was set back, so does this.
    pub(crate) fn reference_micros(&self) -> i64 {
        self.offset.load(Relaxed) + self.start.elapsed().as_micros() as i64
    }

    /// Microseconds since 1970 on the clock by which the server expires keys.
    pub fn server_micros(&self) -> i64 {
        self.reference_micros() + self.skew.load(Relaxed)
    }

    /// How far the clock of the server that is spoken to is ahead of the reference, in microseconds: in
    /// a cluster each master expires keys by its own.
    pub(crate) fn set_skew(&self, micros: i64) {
        self.skew.store(micros, Relaxed);
    }

    /// The millisecond, on the clock by which the server expires keys, in which `ttl` seconds are over.
    pub fn expires_at(&self, ttl: u64) -> i64 {
        self.server_micros() / 1000 + ttl as i64 * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_server_and_never_steps_back() {
        let clock = Clock::default();
        let t0 = Instant::now();
        let ms = Duration::from_millis(1);
        clock.measure(5_000_000_000, t0, t0 + 2 * ms);
        let first = clock.now_micros();
        assert!(
            (5_000_000_000 - 2_000..5_001_000_000).contains(&first),
            "{first}"
        );
        // A vague answer that does not contradict the known one is left aside.
        clock.measure(5_000_300_000, t0, t0 + 1000 * ms);
        assert!(clock.now_micros() - first < 200_000);
        // The server's clock was set back an hour: time stands still rather than going back.
        clock.measure(5_000_000_000 - 3_600_000_000, t0, t0 + ms);
        assert!(clock.now_micros() >= first);
        // Set forward: taken at once.
        clock.measure(9_000_000_000, t0, t0 + ms);
        assert!(clock.now_micros() >= 9_000_000_000 - 2_000);
    }
}
