//! Events of the Rust side in OTP's `logger`.
//!
//! An event may arise on any thread, a scheduler's too, where no message may be sent. So events
//! are left in a short list, and a task of the engine sends them to the process `emqx_redis_log`,
//! which hands them to `logger`. Of a flood only so many a second are kept; how many were not is
//! said in their place.

use std::fmt::{self, Write};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use rustler::{Encoder, Env, LocalPid, OwnedEnv, Term};
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{span, Event, Level, Metadata, Subscriber};

use crate::atoms;
use crate::error_term::binary;

/// Events kept in one second.
const MOST: u32 = 50;

struct Line {
    level: Level,
    target: &'static str,
    message: String,
    fields: Vec<(&'static str, String)>,
}

struct Journal {
    logger: Option<LocalPid>,
    lines: Vec<Line>,
    second: Option<Instant>,
    kept: u32,
    suppressed: u64,
}

static JOURNAL: Mutex<Journal> = Mutex::new(Journal {
    logger: None,
    lines: Vec::new(),
    second: None,
    kept: 0,
    suppressed: 0,
});
static WRITTEN: Notify = Notify::const_new();
static INSTALL: Once = Once::new();

fn journal() -> std::sync::MutexGuard<'static, Journal> {
    JOURNAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on events go to this process.
pub(crate) fn forward_to(logger: LocalPid) {
    INSTALL.call_once(|| {
        // Fails only where a subscriber is installed already: there is none but this.
        let _ = tracing::subscriber::set_global_default(Bridge);
        // The usual hook prints, which can itself panic where standard error does not block.
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    });
    journal().logger = Some(logger);
}

/// Sends events on for about that long.
pub(crate) async fn forward_for(period: Duration) {
    let until = tokio::time::Instant::now() + period;
    while tokio::time::timeout_at(until, WRITTEN.notified())
        .await
        .is_ok()
    {
        flush();
    }
    flush();
}

/// Sends what is there. Not for a scheduler's thread.
pub(crate) fn flush() {
    let (logger, mut lines, suppressed) = {
        let mut journal = journal();
        let lines = std::mem::take(&mut journal.lines);
        let suppressed = match journal.second {
            Some(begun) if begun.elapsed() < Duration::from_secs(1) => 0,
            _ => std::mem::take(&mut journal.suppressed),
        };
        (journal.logger, lines, suppressed)
    };
    if suppressed > 0 {
        lines.push(Line {
            level: Level::WARN,
            target: "emqx_redis_nif::log",
            message: "log events were suppressed".into(),
            fields: vec![("suppressed", suppressed.to_string())],
        });
    }
    let Some(logger) = logger else {
        return;
    };
    let mut env = OwnedEnv::new();
    for line in lines {
        let _ = env.send_and_clear(&logger, |env| encode(env, &line));
    }
}

/// `{emqx_redis_log, Level, Target, Message, [{Name, Value}]}`, all binaries.
fn encode<'a>(env: Env<'a>, line: &Line) -> Term<'a> {
    let level: &[u8] = match line.level {
        Level::ERROR => b"error",
        Level::WARN => b"warning",
        Level::INFO => b"info",
        _ => b"debug",
    };
    let text = |text: &str| binary(env, text.as_bytes());
    let fields: Vec<(Term<'a>, Term<'a>)> = line
        .fields
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    (
        atoms::emqx_redis_log(),
        binary(env, level),
        text(line.target),
        text(&line.message),
        fields,
    )
        .encode(env)
}

/// Takes the events of our own crates, from `info` on.
struct Bridge;

impl Subscriber for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::INFO
            && metadata.target().starts_with("emqx_redis")
    }

    fn event(&self, event: &Event<'_>) {
        let mut journal = journal();
        let now = Instant::now();
        if journal
            .second
            .is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1))
        {
            journal.second = Some(now);
            journal.kept = 0;
        }
        if journal.kept >= MOST || journal.logger.is_none() {
            journal.suppressed += 1;
            return;
        }
        journal.kept += 1;
        let mut line = Line {
            level: *event.metadata().level(),
            target: event.metadata().target(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        journal.lines.push(line);
        drop(journal);
        WRITTEN.notify_one();
    }

    // There are no spans here.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name, text)),
        }
    }
}
