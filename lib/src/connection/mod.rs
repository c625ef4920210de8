//! Opening a connection: everything that happens between a socket and the first request on it.

mod dialogue;
pub(crate) mod layout;

use std::time::Instant;

use bytes::Bytes;
use tokio::time::timeout;

pub(crate) use dialogue::{io_why, ok, Dialogue, Stream};
pub use layout::{ENCODING_VERSION, LAYOUT_VERSION};

use crate::config::{self, Server, Topology};
use crate::context::Context;
use crate::error::Why;
use crate::resp::Frame;
use crate::server::ServerReport;
use crate::tls::Connector;

/// A connection that is ready for requests.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) report: ServerReport,
    pub(crate) identity: Option<Identity>,
    /// What the server's clock said, for each time that it was asked.
    pub(crate) times: Vec<TimeSample>,
    /// Whether every lost connection that the server may still have is closed there.
    pub(crate) closed_lost: bool,
}

/// An answer to `TIME`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeSample {
    /// Microseconds since 1970 on the server's clock.
    pub(crate) micros: i64,
    pub(crate) sent: Instant,
    pub(crate) received: Instant,
}

/// What the server calls a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `CLIENT ID`, unique in the life of a server.
    pub(crate) client: i64,
    /// `run_id`, which tells the server's lives apart.
    pub(crate) run: String,
}

/// Connects to a server, logs in, and makes sure that the server is fit to be used: that it has loaded
/// its data, is a master where it has to be, knows the scripts, and holds no newer layout.
///
/// `lost` are connections that were lost before. The server may still have bytes of them to read, and so
/// would do older writes after newer ones: they are closed there first. `life` is the `run_id` that the
/// server must still have, where nobody could be asked whether it is the master.
pub(crate) async fn open(
    config: &config::Redis,
    tls: Option<&Connector>,
    context: &Context,
    server: &Server,
    lost: &[Identity],
    life: Option<&str>,
) -> Result<Opened, Why> {
    let opening = async {
        let mut setup = Dialogue::connect(server, tls).await?;
        prepare(&mut setup, config).await?;
        let (report, run) = inspect_server(&mut setup).await?;
        // Users may be denied INFO, which tells the role too.
        if config.topology == Topology::Sentinel && report.role.as_deref() != Some("master") {
            check_role(&mut setup).await?;
        }
        if life.is_some_and(|life| run.as_deref() != Some(life)) {
            return Err(Why::NotMaster);
        }
        let identity = identify(&mut setup, run).await?;
        let closed_lost = close_lost(&mut setup, lost, identity.as_ref()).await?;
        let times = ask_time(&mut setup).await?;
        layout::load_scripts(&mut setup, context).await?;
        // In a cluster one server alone has `meta`: whoever looks the cluster up reads it there.
        if config.topology != Topology::Cluster {
            layout::check(&mut setup, context).await?;
        }
        Ok(Opened {
            stream: setup.into_stream(),
            report,
            identity,
            times,
            closed_lost,
        })
    };
    timeout(config.connect_timeout, opening)
        .await
        .unwrap_or(Err(Why::ConnectTimeout))
}

async fn prepare(setup: &mut Dialogue, config: &config::Redis) -> Result<(), Why> {
    setup
        .log_in(config.username.as_deref(), config.password.as_ref())
        .await?;
    if config.database > 0 {
        let number = config.database.to_string();
        ok(&setup.call(&[b"SELECT", number.as_bytes()]).await?)?;
    }
    // Only a convenience for whoever reads CLIENT LIST: a user may be denied it.
    setup
        .call(&[b"CLIENT", b"SETNAME", b"emqx_redis_storage"])
        .await?;
    Ok(())
}

/// Whether the server says that it is a master.
pub(crate) async fn check_role(setup: &mut Dialogue) -> Result<(), Why> {
    match setup.call(&[b"ROLE"]).await? {
        Frame::Array(parts)
            if parts.first() == Some(&Frame::Bulk(Bytes::from_static(b"master"))) =>
        {
            Ok(())
        }
        Frame::Array(_) => Err(Why::NotMaster),
        reply => ok(&reply),
    }
}

async fn ask_time(setup: &mut Dialogue) -> Result<Vec<TimeSample>, Why> {
    let mut samples = Vec::new();
    for _ in 0..3 {
        let sent = Instant::now();
        let reply = setup.call(&[b"TIME"]).await?;
        let received = Instant::now();
        ok(&reply)?;
        samples.push(TimeSample {
            micros: time_reply(&reply).ok_or(Why::Protocol("TIME".into()))?,
            sent,
            received,
        });
    }
    Ok(samples)
}

/// What the server calls this connection, as far as the user may know.
async fn identify(setup: &mut Dialogue, run: Option<String>) -> Result<Option<Identity>, Why> {
    let id = setup.call(&[b"CLIENT", b"ID"]).await?;
    Ok(match (id, run) {
        (Frame::Integer(client), Some(run)) => Some(Identity { client, run }),
        _ => None,
    })
}

/// Closes lost connections at the server; true when none is left there.
async fn close_lost(
    setup: &mut Dialogue,
    lost: &[Identity],
    own: Option<&Identity>,
) -> Result<bool, Why> {
    let Some(own) = own else {
        return Ok(lost.is_empty());
    };
    let mut all_closed = true;
    for lost in lost.iter().filter(|lost| lost.run == own.run) {
        let id = lost.client.to_string();
        let reply = setup
            .call(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])
            .await?;
        if let Some(text) = reply.error() {
            all_closed = false;
            tracing::warn!(
                error = %String::from_utf8_lossy(text),
                "CLIENT KILL failed: writes of the lost connection may yet be done"
            );
        }
    }
    Ok(all_closed)
}

/// The report, and the server's `run_id`.
async fn inspect_server(setup: &mut Dialogue) -> Result<(ServerReport, Option<String>), Why> {
    // INFO without arguments, as users may be allowed nothing more; denied, it tells nothing.
    let info = match setup.call(&[b"INFO"]).await? {
        Frame::Bulk(text) => text,
        _ => Bytes::new(),
    };
    let info = String::from_utf8_lossy(&info);
    let run = info
        .lines()
        .find_map(|line| line.strip_prefix("run_id:"))
        .map(|run| run.trim().to_owned());
    let report = ServerReport {
        rdb_enabled: ask_for_snapshots(setup).await?,
        ..ServerReport::from_info(&info)
    };
    Ok((report, run))
}

/// Whether the server makes snapshots by itself, which INFO does not tell.
async fn ask_for_snapshots(setup: &mut Dialogue) -> Result<Option<bool>, Why> {
    Ok(match setup.call(&[b"CONFIG", b"GET", b"save"]).await? {
        Frame::Array(pair) => match pair.get(1) {
            Some(Frame::Bulk(points)) => Some(!points.is_empty()),
            _ => None,
        },
        _ => None,
    })
}

/// Microseconds since 1970 from the reply to `TIME`.
pub(crate) fn time_reply(reply: &Frame) -> Option<i64> {
    let Frame::Array(parts) = reply else {
        return None;
    };
    let number = |part: Option<&Frame>| match part {
        Some(Frame::Bulk(digits)) => std::str::from_utf8(digits).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    Some(number(parts.first())? * 1_000_000 + number(parts.get(1))?)
}
