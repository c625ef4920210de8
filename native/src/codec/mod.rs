//! Terms as plain MessagePack, which any language reads with a stock library.
//!
//! | Erlang | MessagePack |
//! |---|---|
//! | `undefined` | nil |
//! | `true`, `false` | bool |
//! | any other atom | str |
//! | binary | bin |
//! | integer from -2^63 to 2^64 - 1 | int, the shortest form |
//! | float | float 64 |
//! | proper list | array |
//! | map | map |
//! | tuple | extension 1: an array of the elements |
//! | any other integer | extension 2: a byte 0, or 1 if it is negative; then the absolute value, big-endian, without leading zeros |
//! | bitstring that is no binary | extension 3: a byte that says how many bits of the last byte count (1 to 7, from the most significant one on); then the bytes, what does not count being zero |
//! | improper list | extension 4: an array of the elements and, last, of the tail |
//! | pid | extension 5: an array of node (str), id, serial, creation (int) |
//! | reference | extension 6: an array of node (str), creation and one to five words (int) |
//! | `fun M:F/A` | extension 7: an array of module, function (str), arity (int) |
//!
//! Local funs and ports have no encoding. Each of the others comes back as it was (`=:=`). Reading
//! also takes float 32 and integers in any form. Extension 0 is kept for a later format.
//!
//! What a stranger may have written is read with bounds: [`MAX_BYTES`] in all, [`MAX_DEPTH`]
//! containers in one another, [`MAX_KEY_DEPTH`] maps in one another's keys, and a budget of new
//! atoms, pids' nodes and funs' names included ([`atoms_left`]). Writing refuses what reading would.

mod error;
mod external;
mod payload;
mod reader;
mod writer;

// What follows calls into the VM, whose functions are not there when the unit tests are linked. The
// modules above know no term: the unit tests are theirs, `emqx_redis_codec_SUITE` tests the whole.
#[cfg(not(test))]
mod atoms;
#[cfg(not(test))]
mod build;
#[cfg(not(test))]
mod decode;
#[cfg(not(test))]
mod encode;
#[cfg(not(test))]
mod view;

#[cfg(test)]
mod tests;

pub(crate) use self::error::{DecodeError, EncodeError};
#[cfg(not(test))]
pub(crate) use self::{
    atoms::{atoms_left, make_atom},
    decode::{decode, decode_part},
    encode::encode,
};

const EXT_TUPLE: i8 = 1;
const EXT_BIGNUM: i8 = 2;
const EXT_BITSTRING: i8 = 3;
const EXT_IMPROPER_LIST: i8 = 4;
const EXT_PID: i8 = 5;
const EXT_REFERENCE: i8 = 6;
const EXT_FUN: i8 = 7;

/// No encoding is larger.
pub(crate) const MAX_BYTES: usize = 64 * 1024 * 1024;

/// No more containers may be in one another. Each takes a frame or two of the stack, which on a
/// dirty scheduler is 320 KiB.
const MAX_DEPTH: u32 = 256;

/// No more maps may be in one another's keys: to make a map, the VM hashes each key as a whole, the
/// keys inside it once more.
const MAX_KEY_DEPTH: u32 = 8;
