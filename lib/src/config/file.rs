//! Reading the files that a configuration names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::units::format_size;

/// The content of a regular file of at most `longest` bytes, so that a wrong path costs no memory.
pub(super) fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    // A pipe would block, a device might never end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(longest + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > longest {
        let longest = format_size(longest);
        return Err(io::Error::other(format!("longer than {longest}")));
    }
    Ok(bytes)
}
