//! Answers that say: not here, or not now. The server has done nothing, and the step can be sent again.
//! Redis Cluster specification: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use crate::config::Server;
use crate::error::Why;
use crate::resp::Frame;

/// What a server says instead of doing a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot belongs to another server.
    Moved(u16, Location),
    /// This once the other server is to be asked: the slot is being moved there.
    Ask(Location),
    /// The step's keys are apart while their slot is being moved.
    TryAgain,
    /// The server can't serve for the time being.
    Refused(Why),
}

/// A server as a redirection names it; without a host it is that of the server which named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    host: Option<String>,
    port: u16,
}

impl Location {
    /// The server, if `asked` named it.
    pub(super) fn server(&self, asked: &Server) -> Option<Server> {
        let host = match (&self.host, asked) {
            (Some(host), _) => host.clone(),
            (None, Server::Tcp { host, .. }) => host.clone(),
            (None, Server::Unix(_)) => return None,
        };
        Some(Server::Tcp {
            host,
            port: self.port,
        })
    }
}

/// What the replies to a step that is one atomic unit say, if they say that it was not done.
pub(super) fn of(replies: &[Frame]) -> Option<Redirect> {
    // Of a transaction the command that was refused says why, EXEC only that one was.
    replies.iter().filter_map(Frame::error).find_map(of_error)
}

/// The servers that any of the replies names as the owners of slots.
pub(super) fn moved(replies: &[Frame]) -> impl Iterator<Item = (u16, Location)> + '_ {
    let errors = replies.iter().filter_map(Frame::error);
    errors.filter_map(|error| match of_error(error) {
        Some(Redirect::Moved(slot, location)) => Some((slot, location)),
        _ => None,
    })
}

/// Whether it was a script that said so, which may have done something before.
pub(super) fn is_within_script(replies: &[Frame]) -> bool {
    let codes = [
        "MOVED ",
        "ASK ",
        "TRYAGAIN ",
        "CLUSTERDOWN ",
        "LOADING ",
        "MASTERDOWN ",
        "READONLY ",
    ];
    let refused = replies.iter().filter_map(Frame::error);
    let mut refused = refused.filter(|error| of_error(error).is_some());
    refused.any(|error| !codes.iter().any(|code| error.starts_with(code.as_bytes())))
}

fn of_error(error: &[u8]) -> Option<Redirect> {
    // What is large is no redirection.
    let text = std::str::from_utf8(&error[..error.len().min(400)]).ok()?;
    let mut words = text.split(' ');
    let code = words.next()?;
    match code {
        "MOVED" => {
            let slot = words.next()?.parse().ok()?;
            return Some(Redirect::Moved(slot, location(words.next()?)?));
        }
        "ASK" => return words.nth(1).and_then(location).map(Redirect::Ask),
        "TRYAGAIN" => return Some(Redirect::TryAgain),
        "CLUSTERDOWN" => {
            let text = text.trim_start_matches("CLUSTERDOWN ").to_owned();
            return Some(Redirect::Refused(Why::ClusterDown(text)));
        }
        "LOADING" | "MASTERDOWN" => return Some(Redirect::Refused(Why::Loading)),
        _ => {}
    }
    let has = |what: &str| text.contains(what);
    // Within a script; before Redis 7 behind other words.
    if has("READONLY You can't write against a read only") {
        Some(Redirect::Refused(Why::NotMaster))
    } else if has("attempted to access a non local key in a cluster node") {
        // A key that the script derives has been moved away already.
        Some(Redirect::TryAgain)
    } else if has("while the cluster is down") {
        Some(Redirect::Refused(Why::ClusterDown(text.to_owned())))
    } else {
        None
    }
}

/// `host:port`, `:port` or, of an IPv6 address, `::1:6379`.
fn location(text: &str) -> Option<Location> {
    let (host, port) = text.rsplit_once(':')?;
    Some(Location {
        host: (!host.is_empty() && host != "?").then(|| host.to_owned()),
        port: port.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &'static str) -> Option<Redirect> {
        of(&[Frame::Error(text.into())])
    }

    fn at(host: &str, port: u16) -> Location {
        Location {
            host: (!host.is_empty()).then(|| host.to_owned()),
            port,
        }
    }

    #[test]
    fn redirections_are_told_apart() {
        let moved = |host, port| Some(Redirect::Moved(3999, at(host, port)));
        assert_eq!(says("MOVED 3999 127.0.0.1:6381"), moved("127.0.0.1", 6381));
        assert_eq!(says("MOVED 3999 :6381"), moved("", 6381));
        assert_eq!(says("MOVED 3999 ::1:6381"), moved("::1", 6381));
        assert_eq!(
            says("ASK 3999 redis-2.local:6381"),
            Some(Redirect::Ask(at("redis-2.local", 6381)))
        );
        assert_eq!(
            says("TRYAGAIN Multiple keys request during rehashing of slot"),
            Some(Redirect::TryAgain)
        );
        let down = "CLUSTERDOWN Hash slot not served";
        let why = Why::ClusterDown("Hash slot not served".into());
        assert_eq!(says(down), Some(Redirect::Refused(why)));
        assert_eq!(says("WRONGTYPE Operation against a key"), None);
        assert_eq!(says("MOVED nowhere"), None);
    }

    #[test]
    fn a_script_on_a_replica_is_refused_whatever_the_version() {
        for text in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 1, on @user_script:8.",
            "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only replica.",
        ] {
            assert_eq!(says(text), Some(Redirect::Refused(Why::NotMaster)));
        }
    }

    #[test]
    fn a_location_without_a_host_is_the_asked_ones() {
        let asked = Server::Tcp {
            host: "10.0.0.1".into(),
            port: 1,
        };
        let server = |location: Location| location.server(&asked).map(|it| it.to_string());
        assert_eq!(server(at("", 2)), Some("10.0.0.1:2".into()));
        assert_eq!(server(at("::1", 2)), Some("[::1]:2".into()));
    }
}
