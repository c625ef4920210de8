//! The entries of a route shard's feed; `feed.lua` says what each holds.

use bytes::Bytes;

use crate::resp::Frame;
use crate::route_scripts::Space;

/// Where a feed stands: a version and the nonce of its entry. Two feeds that agree in both agree in all before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Counts the changes.
    pub version: u64,
    /// A digest of the history.
    pub nonce: Bytes,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its own place.
    pub at: Position,
    /// The nonce of the entry before.
    pub previous: Bytes,
    /// When it was written, in microseconds on Redis's clock.
    pub micros: i64,
    /// What it changes; the entry that begins a feed changes nothing.
    pub change: Option<FeedChange>,
}

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedChange {
    /// The table.
    pub space: Space,
    /// Whether it adds; else it deletes.
    pub adds: bool,
    /// The topic filter.
    pub filter: Bytes,
    /// The node or client.
    pub destination: Bytes,
    /// A subscription's options.
    pub options: Bytes,
    /// How many destinations the filter has afterwards.
    pub count: usize,
}

/// The entries that XRANGE answered; `None` where one is none of ours.
pub fn parse(reply: Frame) -> Option<Vec<Entry>> {
    let Frame::Array(entries) = reply else {
        return None;
    };
    entries.into_iter().map(parse_entry).collect()
}

fn parse_entry(entry: Frame) -> Option<Entry> {
    let Frame::Array(parts) = entry else {
        return None;
    };
    let [Frame::Bulk(id), Frame::Array(fields)] = &parts[..] else {
        return None;
    };
    let version = number(id.strip_suffix(b"-0")?)?;
    let [n, nonce, p, previous, t, micros, k, kind, f, filter, d, destination, o, options, c, count] =
        &fields[..]
    else {
        return None;
    };
    let text = |frame: &Frame| match frame {
        Frame::Bulk(bytes) => Some(bytes.clone()),
        _ => None,
    };
    for (frame, name) in [
        (n, b"n"),
        (p, b"p"),
        (t, b"t"),
        (k, b"k"),
        (f, b"f"),
        (d, b"d"),
        (o, b"o"),
        (c, b"c"),
    ] {
        if text(frame)?.as_ref() != name {
            return None;
        }
    }
    let kind = match text(kind)?.as_ref() {
        b"+r" => Some((Space::Routes, true)),
        b"-r" => Some((Space::Routes, false)),
        b"+s" => Some((Space::Subscriptions, true)),
        b"-s" => Some((Space::Subscriptions, false)),
        b"0" => None,
        _ => return None,
    };
    let change = match kind {
        None => None,
        Some((space, adds)) => Some(FeedChange {
            space,
            adds,
            filter: text(filter)?,
            destination: text(destination)?,
            options: text(options)?,
            count: number(&text(count)?)?,
        }),
    };
    Some(Entry {
        at: Position {
            version,
            nonce: text(nonce)?,
        },
        previous: text(previous)?,
        micros: number(&text(micros)?)?,
        change,
    })
}

pub(super) fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The version and nonce at the beginning of a script's reply.
pub fn position(reply: &[Frame]) -> Option<Position> {
    match reply {
        [Frame::Integer(version), Frame::Bulk(nonce), ..] => Some(Position {
            version: u64::try_from(*version).ok()?,
            nonce: nonce.clone(),
        }),
        _ => None,
    }
}
