//! The section `mqtt`: what the plugin does in a broker.

use super::section::{quote, Fault, Section};
use super::text;
use super::validate::Read;
use super::value::Value;

/// What the plugin does in a broker: the section `mqtt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// What becomes of clients that need what can't be stored.
    pub when_unavailable: WhenUnavailable,
}

/// The key `mqtt.when_unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUnavailable {
    /// They are turned away, and come again.
    Reject,
    /// They are served as a broker without this plugin would.
    Degrade,
}

impl WhenUnavailable {
    /// The value of the key that names this.
    pub fn as_str(self) -> &'static str {
        match self {
            WhenUnavailable::Reject => "reject",
            WhenUnavailable::Degrade => "degrade",
        }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Mqtt {
            when_unavailable: WhenUnavailable::Reject,
        }
    }
}

pub(super) fn mqtt(mut section: Section, default: Mqtt) -> Read<Mqtt> {
    let when = section.read(
        "when_unavailable",
        default.when_unavailable,
        when_unavailable,
    );
    let mqtt = Mqtt {
        when_unavailable: when.unwrap_or(default.when_unavailable),
    };
    (mqtt, section.finish())
}

fn when_unavailable(value: &Value) -> Result<WhenUnavailable, Fault> {
    const EXPECTED: &str = "reject or degrade";
    match text::string(value, EXPECTED)? {
        "reject" => Ok(WhenUnavailable::Reject),
        "degrade" => Ok(WhenUnavailable::Degrade),
        other => Err(Fault::bad(quote(other), EXPECTED)),
    }
}
