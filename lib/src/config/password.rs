//! Reading a password: as it stands, or from a file.

use std::path::Path;

use super::error::ErrorKind;
use super::file;
use super::secret::{Secret, MASK};
use super::section::{quote_path, Fault};
use super::value::Value;

/// Longer than any password.
const LONGEST_FILE: u64 = 64 * 1024;

const EXPECTED: &str = "a password in quotes, or file:///path of a file that holds it";

/// The password that `value` is or names; empty is none. No fault holds any part of it.
pub(super) fn password(value: &Value) -> Result<Option<Secret>, Fault> {
    match value {
        Value::Str(text) if text == MASK => Err(Fault::bad(
            "the mask that stands for a password",
            "the password itself",
        )),
        Value::Str(text) => match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => from_file(Path::new(path)).map(Some),
            Some(_) => Err(Fault::bad("file:// without an absolute path", EXPECTED)),
            None => Ok((!text.is_empty()).then(|| Secret::new(text.as_str()))),
        },
        Value::Bytes(bytes) => Ok(Some(Secret::new(bytes.as_slice()))),
        other => Err(Fault::wrong_type(other, EXPECTED)),
    }
}

fn from_file(path: &Path) -> Result<Secret, Fault> {
    let unreadable = |why: &str| {
        let found = format!("the file {}, which {why}", quote_path(path));
        Fault::new(
            ErrorKind::Unreadable,
            found,
            "a readable file that holds the password",
        )
    };
    let bytes = file::read(path, LONGEST_FILE)
        .map_err(|error| unreadable(&format!("cannot be read: {error}")))?;
    // An editor or `echo` ends the file with a newline that nobody means.
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err(unreadable("is empty"));
    }
    Ok(Secret::new(bytes))
}
