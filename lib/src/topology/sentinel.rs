//! Asking sentinels for the master: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{Redis, Server};
use crate::connection::{check_role, ok, Dialogue};
use crate::error::Why;
use crate::resp::Frame;
use crate::tls::Connector;

/// A sentinel that answers no sooner is as good as gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of the sentinels.
#[derive(Default)]
pub(super) struct Sentinels {
    /// The connection to the one that was asked last, and which one that is.
    open: Option<(usize, Dialogue)>,
    /// The settings that the connection was made with.
    made_with: Option<Redis>,
    tls: Option<Connector>,
    /// TLS to the servers that the sentinels name.
    server_tls: Option<Connector>,
    /// The master that was named last and believed.
    known: Option<Server>,
    /// Which one is asked next.
    next: usize,
    /// The highest epoch that a sentinel has named with a master. One that names a lower one was cut off
    /// from the others when they made a new master.
    epoch: u64,
}

/// A sentinel's answer.
struct Named {
    server: Server,
    /// Of its being the master.
    epoch: u64,
    /// Whether the sentinels are about to replace it.
    is_contested: bool,
}

/// What a sentinel says of a master whose days are numbered, though it still names it.
const CONTESTED: [&str; 2] = ["o_down", "failover_in_progress"];

impl Sentinels {
    /// The master, as the first sentinel says that answers. Each time another one is asked first, so that
    /// one which was cut off from the others is soon overruled. Where that must not take a while, `all` of
    /// them are asked, and the one that names the newest epoch is believed.
    pub(super) async fn look(&mut self, config: &Redis, all: bool) -> Result<Server, Why> {
        if self.made_with.as_ref() != Some(config) {
            self.renew(config);
        }
        let count = config.servers.len();
        let (mut reasons, mut named) = (Vec::new(), Vec::new());
        if all {
            (named, reasons) = ask_all(config, self.tls.as_ref()).await;
        } else {
            for offset in 0..count {
                let number = (self.next + offset) % count;
                match self.ask(config, number).await {
                    Ok(answer) if answer.epoch >= self.epoch => {
                        match self.believe(config, answer).await {
                            Ok(server) => {
                                self.next = (number + 1) % count;
                                return Ok(server);
                            }
                            Err(why) => reasons.push((number, why)),
                        }
                    }
                    Ok(answer) => named.push(answer),
                    Err(why) => reasons.push((number, why)),
                }
            }
        }
        self.next = (self.next + 1) % count.max(1);
        // Who could not be asked may know of a newer one; where everybody could, all have forgotten: they were
        // set up anew.
        let oldest = if reasons.is_empty() { 0 } else { self.epoch };
        named.retain(|answer| answer.epoch >= oldest);
        named.sort_by_key(|answer| std::cmp::Reverse(answer.epoch));
        let is_contested = named.iter().any(|answer| answer.is_contested);
        for answer in named {
            // Before the sentinels name another one, the old one may come back and think that it still is it.
            if is_contested && self.known.as_ref() == Some(&answer.server) {
                return Err(Why::NotMaster);
            }
            match self.believe(config, answer).await {
                Ok(server) => return Ok(server),
                Err(why) => reasons.push((self.next, why)),
            }
        }
        Err(gravest(reasons).unwrap_or(Why::Connecting))
    }

    /// A master that is known is left only for a server that says itself that it is one: some sentinel may
    /// not have heard yet that it no longer is.
    async fn believe(&mut self, config: &Redis, answer: Named) -> Result<Server, Why> {
        let server = answer.server;
        if self.known.as_ref().is_some_and(|known| *known != server) {
            check(config, self.server_tls.as_ref(), &server).await?;
        }
        self.epoch = answer.epoch;
        self.known = Some(server.clone());
        Ok(server)
    }

    /// Takes other settings over. What the same sentinels have said is still true.
    fn renew(&mut self, config: &Redis) {
        let are_same = self.made_with.as_ref().is_some_and(|before| {
            before.servers == config.servers && before.sentinel == config.sentinel
        });
        let before = std::mem::take(self);
        *self = Sentinels {
            made_with: Some(config.clone()),
            tls: Connector::new(&config.sentinel_ssl, "redis.sentinel_ssl"),
            server_tls: Connector::new(&config.ssl, "redis.ssl"),
            known: before.known.filter(|_| are_same),
            epoch: if are_same { before.epoch } else { 0 },
            ..Sentinels::default()
        };
    }

    async fn ask(&mut self, config: &Redis, number: usize) -> Result<Named, Why> {
        let dialogue = match self.open.take() {
            Some((open, dialogue)) if open == number => Some(dialogue),
            _ => None,
        };
        let (answer, dialogue) = ask(config, self.tls.as_ref(), number, dialogue).await?;
        self.open = Some((number, dialogue));
        Ok(answer)
    }
}

/// Asks all sentinels at once, so that one which is gone takes no others' time.
async fn ask_all(config: &Redis, tls: Option<&Connector>) -> (Vec<Named>, Vec<(usize, Why)>) {
    let mut asking = JoinSet::new();
    for number in 0..config.servers.len() {
        let (config, tls) = (config.clone(), tls.cloned());
        asking.spawn(async move { (number, ask(&config, tls.as_ref(), number, None).await) });
    }
    let (mut named, mut reasons) = (Vec::new(), Vec::new());
    for (number, answer) in asking.join_all().await {
        match answer {
            Ok((answer, _)) => named.push(answer),
            Err(why) => reasons.push((number, why)),
        }
    }
    (named, reasons)
}

/// Asks a sentinel, on a connection that is open or on a new one, which may be used again.
async fn ask(
    config: &Redis,
    tls: Option<&Connector>,
    number: usize,
    open: Option<Dialogue>,
) -> Result<(Named, Dialogue), Why> {
    let name = config.sentinel.as_deref().unwrap_or_default();
    let mut dialogue = match open {
        Some(dialogue) => dialogue,
        None => connect(config, tls, number).await?,
    };
    let answer = timeout(PATIENCE, ask_for_master(&mut dialogue, name)).await;
    let answer = answer.unwrap_or(Err(Why::ConnectTimeout));
    let answer = answer.map_err(|why| at(&config.servers[number], why))?;
    Ok((answer, dialogue))
}

/// Whether a server is a master.
async fn check(config: &Redis, tls: Option<&Connector>, server: &Server) -> Result<(), Why> {
    let checking = async {
        let mut dialogue = Dialogue::connect(server, tls).await?;
        let (user, password) = (&config.username, &config.password);
        dialogue.log_in(user.as_deref(), password.as_ref()).await?;
        check_role(&mut dialogue).await
    };
    let limit = config.connect_timeout.min(PATIENCE);
    let checked = timeout(limit, checking).await;
    match checked.unwrap_or(Err(Why::ConnectTimeout)) {
        // Whoever may not ask finds out by trying.
        Err(Why::NoPermission(_)) => Ok(()),
        checked => checked,
    }
}

async fn connect(config: &Redis, tls: Option<&Connector>, number: usize) -> Result<Dialogue, Why> {
    let server = &config.servers[number];
    let opening = async {
        let mut dialogue = Dialogue::connect(server, tls).await?;
        let (user, password) = (&config.sentinel_username, &config.sentinel_password);
        dialogue.log_in(user.as_deref(), password.as_ref()).await?;
        Ok(dialogue)
    };
    let limit = config.connect_timeout.min(PATIENCE);
    let opened = timeout(limit, opening).await;
    let opened = opened.unwrap_or(Err(Why::ConnectTimeout));
    opened.map_err(|why| at(server, why))
}

async fn ask_for_master(dialogue: &mut Dialogue, name: &str) -> Result<Named, Why> {
    let name = name.as_bytes();
    let ask = [b"SENTINEL", &b"get-master-addr-by-name"[..], name];
    let address = dialogue.call(&ask).await?;
    ok(&address)?;
    let unknown = || Why::UnknownMaster(String::from_utf8_lossy(name).into_owned());
    let server = match address {
        Frame::Array(parts) => server(&parts).ok_or(Why::Protocol("SENTINEL".into()))?,
        _ => return Err(unknown()),
    };
    // Users may be denied it: then the first answer is all there is.
    let details = dialogue.call(&[b"SENTINEL", b"master", name]).await?;
    Ok(Named {
        server,
        epoch: field(&details, b"config-epoch")
            .and_then(|it| it.parse().ok())
            .unwrap_or(0),
        is_contested: field(&details, b"flags")
            .is_some_and(|flags| CONTESTED.iter().any(|flag| flags.contains(flag))),
    })
}

fn server(parts: &[Frame]) -> Option<Server> {
    let [Frame::Bulk(host), Frame::Bulk(port)] = parts else {
        return None;
    };
    Some(Server::Tcp {
        host: String::from_utf8(host.to_vec()).ok()?,
        port: std::str::from_utf8(port).ok()?.parse().ok()?,
    })
}

fn field(details: &Frame, name: &[u8]) -> Option<String> {
    let Frame::Array(fields) = details else {
        return None;
    };
    let mut pairs = fields.chunks_exact(2);
    pairs.find_map(|pair| match pair {
        [Frame::Bulk(field), Frame::Bulk(value)] if **field == *name => {
            Some(String::from_utf8_lossy(value).into_owned())
        }
        _ => None,
    })
}

/// Says which sentinel it was.
fn at(server: &Server, why: Why) -> Why {
    let said = |text: String| format!("sentinel {server}: {text}");
    match why {
        Why::WrongPassword(text) => Why::WrongPassword(said(text)),
        Why::NoPermission(text) => Why::NoPermission(said(text)),
        Why::Server(text) => Why::Server(said(text)),
        Why::Io(text) => Why::Io(said(text)),
        other => other,
    }
}

/// Of several reasons the one that an operator must do something about; of several such ones always the same.
fn gravest(reasons: Vec<(usize, Why)>) -> Option<Why> {
    let passes = |why: &Why| matches!(why, Why::Refused | Why::ConnectTimeout | Why::Closed);
    let order = |(number, why): &(usize, Why)| (passes(why), *number);
    reasons.into_iter().min_by_key(order).map(|(_, why)| why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_reason_is_told_whoever_was_asked_first() {
        let wrong = |n: u8| Why::WrongPassword(format!("sentinel {n}"));
        let reasons = [(0, Why::Refused), (1, wrong(1)), (2, wrong(2))];
        for first in 0..3 {
            let mut rotated = reasons.to_vec();
            rotated.rotate_left(first);
            assert_eq!(gravest(rotated), Some(wrong(1)));
        }
        assert_eq!(gravest(vec![(3, Why::Closed)]), Some(Why::Closed));
        assert_eq!(gravest(Vec::new()), None);
    }
}
