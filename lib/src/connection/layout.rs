//! The versions that `meta` names: of the layout of the data and of the encoding of stored terms.

use super::{ok, Dialogue};
use crate::context::Context;
use crate::error::Why;
use crate::repair::KEPT_MS;
use crate::resp::{Commands, Frame};
use crate::scripts::{self, Script};

/// The newest layout of the data that this version reads and writes; see `docs/data-layout.md`.
pub const LAYOUT_VERSION: i64 = 1;
/// The version of the encoding of stored terms.
pub const ENCODING_VERSION: i64 = 1;

/// Writes our versions where none are named, and refuses newer ones.
pub(crate) async fn check(setup: &mut Dialogue, context: &Context) -> Result<(), Why> {
    for (field, version) in [("layout", LAYOUT_VERSION), ("encoding", ENCODING_VERSION)] {
        match agree_on(setup, context, field, version).await? {
            Some(found) if found > version => {
                return Err(Why::Layout(format!(
                    "`meta` holds {field} version {found}, this version knows up to {version}"
                )))
            }
            _ => {}
        }
    }
    Ok(())
}

/// The number that a field of `meta` holds: ours, where nobody was there before. `None` where it can't
/// be written, as on a replica.
pub(crate) async fn agree_on(
    setup: &mut Dialogue,
    context: &Context,
    field: &str,
    own: i64,
) -> Result<Option<i64>, Why> {
    let (meta, field, own) = (context.keys.meta(), field.as_bytes(), own.to_string());
    // A read-only replica can't take it, and every operation will say so.
    let write: [&[u8]; 4] = [b"HSETNX", &meta, field, own.as_bytes()];
    setup.call(&write).await?;
    let mut stored = setup.call(&[b"HGET", &meta, field]).await?;
    let is_foreign = |text: &[u8]| text.starts_with(b"WRONGTYPE");
    if stored.error().is_some_and(is_foreign) {
        quarantine(setup, context, &meta).await?;
        setup.call(&write).await?;
        stored = setup.call(&[b"HGET", &meta, field]).await?;
    }
    ok(&stored)?;
    match &stored {
        Frame::Bulk(digits) => match std::str::from_utf8(digits).map(str::parse) {
            Ok(Ok(number)) => Ok(Some(number)),
            _ => Err(Why::Layout(format!(
                "`meta` holds {} version {}, which is no number",
                String::from_utf8_lossy(field),
                String::from_utf8_lossy(digits)
            ))),
        },
        Frame::Nil => Ok(None),
        _ => Err(Why::Protocol("HGET".into())),
    }
}

/// Has the server know all scripts.
pub(crate) async fn load_scripts(setup: &mut Dialogue, context: &Context) -> Result<(), Why> {
    let mut output = Vec::new();
    scripts::load_all(&mut Commands::new(&mut output));
    setup.write(&output).await?;
    for (script, _) in Script::ALL {
        let reply = setup.read().await?;
        ok(&reply)?;
        if !context.scripts.learn(*script, &reply) {
            return Err(Why::Protocol("SCRIPT LOAD".into()));
        }
    }
    Ok(())
}

/// A foreign value at `meta` must not keep the storage away from its data.
async fn quarantine(setup: &mut Dialogue, context: &Context, meta: &[u8]) -> Result<(), Why> {
    let mut output = Vec::new();
    let mut commands = Commands::new(&mut output);
    scripts::call(context, &mut commands, Script::Quarantine, &[meta], 3)
        .int(KEPT_MS)
        .arg(b"hash")
        .arg(&context.keys.foreign(meta));
    setup.write(&output).await?;
    ok(&setup.read().await?)?;
    tracing::warn!(key = %meta.escape_ascii(), "a foreign value stood at this key; it was moved to `foreign:…` for a week");
    Ok(())
}
