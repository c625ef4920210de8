//! The section `routes`.

use std::time::Duration;

use super::section::{quote, Fault, Section};

use super::validate::Read;
use super::value::Value;
use super::{text, units};

/// How routes are kept in memory: the section `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// What answers a match while the routes in memory are not known to be those in Redis.
    pub when_out_of_sync: WhenOutOfSync,
    /// How long the beat of a node's lease stands before the other nodes purge its routes.
    pub lease_timeout: Duration,
}

/// The key `routes.when_out_of_sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenOutOfSync {
    /// Redis.
    Redis,
    /// What is in memory, once anything is.
    Stale,
}

impl WhenOutOfSync {
    /// The value of the key that names this.
    pub fn as_str(self) -> &'static str {
        match self {
            WhenOutOfSync::Redis => "redis",
            WhenOutOfSync::Stale => "stale",
        }
    }
}

impl Default for Routes {
    fn default() -> Self {
        Routes {
            when_out_of_sync: WhenOutOfSync::Redis,
            lease_timeout: Duration::from_secs(30),
        }
    }
}

pub(super) fn routes(mut section: Section, default: Routes) -> Read<Routes> {
    let bounds = Duration::from_secs(5)..=Duration::from_secs(3600);
    let when = section.read(
        "when_out_of_sync",
        default.when_out_of_sync,
        when_out_of_sync,
    );
    let timeout = section.read("lease_timeout", default.lease_timeout, |value| {
        units::timeout(value, bounds)
    });
    let routes = Routes {
        when_out_of_sync: when.unwrap_or(default.when_out_of_sync),
        lease_timeout: timeout.unwrap_or(default.lease_timeout),
    };
    (routes, section.finish())
}

fn when_out_of_sync(value: &Value) -> Result<WhenOutOfSync, Fault> {
    const EXPECTED: &str = "redis or stale";
    match text::string(value, EXPECTED)? {
        "redis" => Ok(WhenOutOfSync::Redis),
        "stale" => Ok(WhenOutOfSync::Stale),
        other => Err(Fault::bad(quote(other), EXPECTED)),
    }
}
