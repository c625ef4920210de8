//! From MessagePack to a term. The input may be anything at all.

use super::build::{self, Builder, New};
use super::error::DecodeError;
use super::external::External;
use super::reader::{Item, Reader};
use super::{atoms, payload, EXT_IMPROPER_LIST, EXT_TUPLE, MAX_BYTES, MAX_DEPTH, MAX_KEY_DEPTH};
use rustler::types::atom::{false_, true_, undefined};
use rustler::{Binary, Env, Term};
use std::ops::Range;

/// Decodes a term, which must be the whole input.
///
/// Takes time and memory in proportion to the input, whatever lengths it declares. May be called on
/// any thread, with any kind of environment; but maps with more than some thousand pairs can be made
/// only on a scheduler's ([`DecodeError::NeedsScheduler`]).
pub(crate) fn decode<'a>(env: Env<'a>, bytes: &[u8]) -> Result<Term<'a>, DecodeError> {
    decode_from(env, bytes, None)
}

/// Decodes the term that is the part `range` of `source`. Binaries of more than 64 bytes in it are
/// parts of `source`, not copies, and keep it in memory.
pub(crate) fn decode_part<'a>(
    env: Env<'a>,
    source: Binary<'a>,
    range: Range<usize>,
) -> Result<Term<'a>, DecodeError> {
    let bytes = source.get(range).ok_or(DecodeError::Truncated)?;
    decode_from(env, bytes, Some(source))
}

fn decode_from<'a>(
    env: Env<'a>,
    bytes: &[u8],
    source: Option<Binary<'a>>,
) -> Result<Term<'a>, DecodeError> {
    if bytes.len() > MAX_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let mut decoder = Decoder {
        env,
        terms: Builder::new(env, source),
        key_depth: 0,
    };
    let mut input = Reader::new(bytes);
    decoder.term(&mut input, 0)?;
    if !input.is_empty() {
        return Err(DecodeError::TrailingBytes);
    }
    decoder.terms.finish().ok_or(DecodeError::Truncated)
}

struct Decoder<'a> {
    env: Env<'a>,
    terms: Builder<'a>,
    /// How many map keys we are in.
    key_depth: u32,
}

impl Decoder<'_> {
    /// Reads a term that is in `depth` containers, and puts it on the stack.
    fn term(&mut self, input: &mut Reader<'_>, depth: u32) -> Result<(), DecodeError> {
        match input.next()? {
            Item::Nil => self.terms.term(undefined().to_term(self.env)),
            Item::Bool(true) => self.terms.term(true_().to_term(self.env)),
            Item::Bool(false) => self.terms.term(false_().to_term(self.env)),
            Item::Int(n) => self.terms.int(n),
            Item::Uint(n) => self.terms.uint(n),
            Item::Float(x) => self.terms.float(x),
            Item::Str(name) => self.terms.term(atoms::make_atom(self.env, name)?),
            Item::Bin(bytes) => self.terms.binary(bytes),
            Item::Array(n) => {
                self.elements(input, n, depth)?;
                self.terms.list(n);
            }
            Item::Map(n) => self.map(input, n, depth)?,
            Item::Ext(EXT_TUPLE, payload) => {
                let n = self.array_payload(payload, depth)?;
                self.terms.tuple(n);
            }
            Item::Ext(EXT_IMPROPER_LIST, payload) => {
                let n = self.array_payload(payload, depth)?;
                if !self.terms.improper_list(n) {
                    return Err(DecodeError::BadExtension);
                }
            }
            Item::Ext(kind, payload) => self.external(kind, payload)?,
        }
        Ok(())
    }

    /// Reads `n` terms of a container that is in `depth` others.
    #[inline]
    fn elements(
        &mut self,
        input: &mut Reader<'_>,
        n: usize,
        depth: u32,
    ) -> Result<(), DecodeError> {
        check_depth(depth)?;
        for _ in 0..n {
            self.term(input, depth + 1)?;
        }
        Ok(())
    }

    fn array_payload(&mut self, payload: &[u8], depth: u32) -> Result<usize, DecodeError> {
        let (mut input, n) = payload::array(payload)?;
        self.elements(&mut input, n, depth)?;
        if input.is_empty() {
            Ok(n)
        } else {
            Err(DecodeError::BadExtension)
        }
    }

    fn map(&mut self, input: &mut Reader<'_>, n: usize, depth: u32) -> Result<(), DecodeError> {
        check_depth(depth)?;
        for _ in 0..n {
            if self.key_depth == MAX_KEY_DEPTH {
                return Err(DecodeError::TooDeep);
            }
            self.key_depth += 1;
            self.term(input, depth + 1)?;
            self.key_depth -= 1;
            self.terms.key();
            self.term(input, depth + 1)?;
        }
        self.terms.map(n)
    }

    /// Reads a term that the VM makes from its external form. Its atoms are made first, within the
    /// budget, so that the VM can be told to make none.
    #[inline(never)]
    fn external(&mut self, kind: i8, payload: &[u8]) -> Result<(), DecodeError> {
        let external = payload::read(kind, payload)?;
        let bytes = external.to_bytes();
        let term = match &external {
            External::Fun {
                module,
                function,
                arity,
            } => {
                let module = atoms::make_atom(self.env, module.as_bytes())?;
                let function = atoms::make_atom(self.env, function.as_bytes())?;
                match build::from_external(self.env, &bytes, New::Refused) {
                    None => {
                        atoms::admit_fun(module, function, *arity)?;
                        build::from_external(self.env, &bytes, New::Allowed)
                    }
                    known => known,
                }
            }
            External::Pid { node: name, .. }
            | External::Reference { node: name, .. }
            | External::Atom(name) => {
                atoms::make_atom(self.env, name.as_bytes())?;
                build::from_external(self.env, &bytes, New::Refused)
            }
            External::Bignum { .. } | External::Bitstring { .. } => {
                build::from_external(self.env, &bytes, New::Refused)
            }
        };
        self.terms.term(term.ok_or(DecodeError::BadExtension)?);
        Ok(())
    }
}

/// Checks that a container may be in `depth` others.
#[inline]
fn check_depth(depth: u32) -> Result<(), DecodeError> {
    if depth >= MAX_DEPTH {
        return Err(DecodeError::TooDeep);
    }
    Ok(())
}
