//! The payloads of the extensions that hold no term: bignum, bitstring, pid, reference and fun.
//! What is read here is checked to the last byte. Knows no term.

use super::error::DecodeError::{self, BadExtension};
use super::external::{External, ReferenceWords, MAX_REFERENCE_WORDS};
use super::reader::{Item, Reader};
use super::writer::Writer;
use super::{EXT_BIGNUM, EXT_BITSTRING, EXT_FUN, EXT_PID, EXT_REFERENCE};
use std::borrow::Cow;

/// Writes a term as an extension. An atom has none: it is written as a string elsewhere.
pub(super) fn write(out: &mut Writer, term: &External<'_>) {
    match term {
        External::Atom(name) => out.str(name.as_bytes()),
        External::Bignum {
            negative,
            magnitude,
        } => {
            let ext = out.open_ext(EXT_BIGNUM);
            out.raw(&[u8::from(*negative)]);
            out.raw_reversed(magnitude);
            out.close_ext(ext);
        }
        External::Bitstring { last_bits, bytes } => {
            let ext = out.open_ext(EXT_BITSTRING);
            out.raw(&[*last_bits]);
            if let Some((last, whole)) = bytes.split_last() {
                out.raw(whole);
                out.raw(&[last & used_bits(*last_bits)]);
            }
            out.close_ext(ext);
        }
        External::Pid {
            node,
            id,
            serial,
            creation,
        } => {
            let ext = out.open_ext(EXT_PID);
            out.array(4);
            out.str(node.as_bytes());
            write_words(out, &[*id, *serial, *creation]);
            out.close_ext(ext);
        }
        External::Reference {
            node,
            creation,
            words,
        } => {
            let words = words.as_slice();
            let ext = out.open_ext(EXT_REFERENCE);
            out.array(2 + words.len() as u32);
            out.str(node.as_bytes());
            write_words(out, &[*creation]);
            write_words(out, words);
            out.close_ext(ext);
        }
        External::Fun {
            module,
            function,
            arity,
        } => {
            let ext = out.open_ext(EXT_FUN);
            out.array(3);
            out.str(module.as_bytes());
            out.str(function.as_bytes());
            out.uint(u64::from(*arity));
            out.close_ext(ext);
        }
    }
}

fn write_words(out: &mut Writer, words: &[u32]) {
    for &word in words {
        out.uint(word.into());
    }
}

/// Reads the payload of an extension. The names in it are UTF-8, but may be too long for an atom.
pub(super) fn read(kind: i8, payload: &[u8]) -> Result<External<'_>, DecodeError> {
    match kind {
        EXT_BIGNUM => read_bignum(payload),
        EXT_BITSTRING => read_bitstring(payload),
        EXT_PID => {
            let (mut fields, n) = array(payload)?;
            let term = External::Pid {
                node: name(&mut fields)?,
                id: uint(&mut fields)?,
                serial: uint(&mut fields)?,
                creation: uint(&mut fields)?,
            };
            whole(&fields, n == 4, term)
        }
        EXT_REFERENCE => {
            let (mut fields, n) = array(payload)?;
            let node = name(&mut fields)?;
            let creation = uint(&mut fields)?;
            let mut words = [0; MAX_REFERENCE_WORDS];
            let words = n
                .checked_sub(2)
                .and_then(|len| words.get_mut(..len))
                .ok_or(BadExtension)?;
            for word in words.iter_mut() {
                *word = uint(&mut fields)?;
            }
            let term = External::Reference {
                node,
                creation,
                words: ReferenceWords::new(words).ok_or(BadExtension)?,
            };
            whole(&fields, true, term)
        }
        EXT_FUN => {
            let (mut fields, n) = array(payload)?;
            let term = External::Fun {
                module: name(&mut fields)?,
                function: name(&mut fields)?,
                arity: uint(&mut fields)?,
            };
            whole(&fields, n == 3, term)
        }
        _ => Err(DecodeError::UnknownExtension),
    }
}

/// Opens a payload that must be one array, of which the number of elements is returned.
pub(super) fn array(payload: &[u8]) -> Result<(Reader<'_>, usize), DecodeError> {
    let mut fields = Reader::new(payload);
    match fields.next() {
        Ok(Item::Array(n)) => Ok((fields, n)),
        _ => Err(BadExtension),
    }
}

fn whole<'b>(
    fields: &Reader<'_>,
    good: bool,
    term: External<'b>,
) -> Result<External<'b>, DecodeError> {
    if good && fields.is_empty() {
        Ok(term)
    } else {
        Err(BadExtension)
    }
}

fn name<'b>(fields: &mut Reader<'b>) -> Result<Cow<'b, str>, DecodeError> {
    match fields.next() {
        Ok(Item::Str(text)) => std::str::from_utf8(text)
            .map(Cow::Borrowed)
            .map_err(|_| DecodeError::AtomNotUtf8),
        _ => Err(BadExtension),
    }
}

fn uint<T: TryFrom<u64>>(fields: &mut Reader<'_>) -> Result<T, DecodeError> {
    match fields.next() {
        Ok(Item::Uint(n)) => T::try_from(n).map_err(|_| BadExtension),
        _ => Err(BadExtension),
    }
}

fn read_bignum(payload: &[u8]) -> Result<External<'_>, DecodeError> {
    match payload {
        [sign @ (0 | 1), magnitude @ ..] if magnitude.first().is_some_and(|&byte| byte != 0) => {
            Ok(External::Bignum {
                negative: *sign == 1,
                magnitude: magnitude.iter().rev().copied().collect(),
            })
        }
        _ => Err(BadExtension),
    }
}

fn read_bitstring(payload: &[u8]) -> Result<External<'_>, DecodeError> {
    match payload {
        [last_bits @ 1..=7, bytes @ ..]
            if bytes
                .last()
                .is_some_and(|last| last & !used_bits(*last_bits) == 0) =>
        {
            Ok(External::Bitstring {
                last_bits: *last_bits,
                bytes,
            })
        }
        _ => Err(BadExtension),
    }
}

/// The mask of the bits of a byte that count, `n` being 1 to 7.
fn used_bits(n: u8) -> u8 {
    !(0xff >> n)
}
