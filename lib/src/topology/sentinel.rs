//! Asking sentinels for the master: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.

use std::time::Duration;

use tokio::time::timeout;

use crate::config::{Redis, Server};
use crate::connection::{ok, Dialogue};
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
    /// Which one is asked next.
    next: usize,
    /// The highest epoch that a sentinel has named with a master. One that names a lower one was cut off
    /// from the others when they made a new master.
    epoch: u64,
}

impl Sentinels {
    /// The master, as the first sentinel says that answers. Each time another one is asked first, so that
    /// one which was cut off from the others is soon overruled.
    pub(super) async fn look(&mut self, config: &Redis) -> Result<Server, Why> {
        if self.made_with.as_ref() != Some(config) {
            *self = Sentinels {
                made_with: Some(config.clone()),
                tls: Connector::new(&config.sentinel_ssl, "redis.sentinel_ssl"),
                ..Sentinels::default()
            };
        }
        let count = config.servers.len();
        let (mut worst, mut newest) = (None, None);
        for offset in 0..count {
            let number = (self.next + offset) % count;
            match self.ask(config, number).await {
                Ok((server, epoch)) if epoch >= self.epoch => {
                    self.epoch = epoch;
                    self.next = (number + 1) % count;
                    return Ok(server);
                }
                Ok((server, epoch)) if newest.as_ref().is_none_or(|(_, it)| *it < epoch) => {
                    newest = Some((server, epoch));
                }
                Ok(_) => {}
                Err(why) => worst = Some(graver(worst, why)),
            }
        }
        self.next = (self.next + 1) % count.max(1);
        match (newest, worst) {
            // All of them have forgotten: they were set up anew.
            (Some((server, epoch)), None) => {
                self.epoch = epoch;
                Ok(server)
            }
            (_, worst) => Err(worst.unwrap_or(Why::Connecting)),
        }
    }

    async fn ask(&mut self, config: &Redis, number: usize) -> Result<(Server, u64), Why> {
        let name = config.sentinel.as_deref().unwrap_or_default();
        let mut dialogue = match self.open.take() {
            Some((open, dialogue)) if open == number => dialogue,
            _ => connect(config, self.tls.as_ref(), number).await?,
        };
        let answer = timeout(PATIENCE, ask_for_master(&mut dialogue, name)).await;
        let found = answer.unwrap_or(Err(Why::ConnectTimeout));
        let found = found.map_err(|why| at(&config.servers[number], why))?;
        self.open = Some((number, dialogue));
        Ok(found)
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

/// The master's address, and the epoch of its being one.
async fn ask_for_master(dialogue: &mut Dialogue, name: &str) -> Result<(Server, u64), Why> {
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
    Ok((server, config_epoch(&details).unwrap_or(0)))
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

fn config_epoch(details: &Frame) -> Option<u64> {
    let Frame::Array(fields) = details else {
        return None;
    };
    let mut pairs = fields.chunks_exact(2);
    pairs.find_map(|pair| match pair {
        [Frame::Bulk(field), Frame::Bulk(value)] if **field == *b"config-epoch" => {
            std::str::from_utf8(value).ok()?.parse().ok()
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

/// Of several reasons the one that an operator must do something about.
fn graver(known: Option<Why>, other: Why) -> Why {
    let passes = |why: &Why| matches!(why, Why::Refused | Why::ConnectTimeout | Why::Closed);
    match known {
        Some(known) if !passes(&known) => known,
        _ => other,
    }
}
