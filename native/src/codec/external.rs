//! Pids, references, funs and bignums in Erlang's external term format (the VM offers no other view
//! of them). Their bytes are taken apart and put together here, so that nothing that came from
//! outside reaches `enif_binary_to_term` unread.
//!
//! The format: <https://www.erlang.org/doc/apps/erts/erl_ext_dist.html>. Knows no term.

use std::borrow::Cow;

const VERSION: u8 = 131;
const BIT_BINARY: u8 = 77;
const NEW_PID: u8 = 88;
const NEWER_REFERENCE: u8 = 90;
const SMALL_INTEGER: u8 = 97;
const ATOM: u8 = 100;
const PID: u8 = 103;
const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const EXPORT: u8 = 113;
const NEW_REFERENCE: u8 = 114;
const SMALL_ATOM: u8 = 115;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;

/// A reference holds that many 32-bit words at most.
pub(super) const MAX_REFERENCE_WORDS: usize = 5;

/// A term of one of the kinds that are stored as what the external format says of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum External<'b> {
    Atom(Cow<'b, str>),
    Pid {
        node: Cow<'b, str>,
        id: u32,
        serial: u32,
        creation: u32,
    },
    Reference {
        node: Cow<'b, str>,
        creation: u32,
        words: ReferenceWords,
    },
    /// `fun module:function/arity`.
    Fun {
        module: Cow<'b, str>,
        function: Cow<'b, str>,
        arity: u8,
    },
    Bignum {
        negative: bool,
        /// Little-endian.
        magnitude: Cow<'b, [u8]>,
    },
    Bitstring {
        /// Bits of the last byte that count, from its most significant one on: 1 to 7.
        last_bits: u8,
        bytes: &'b [u8],
    },
}

/// The number of a reference: one to five words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReferenceWords {
    words: [u32; MAX_REFERENCE_WORDS],
    len: usize,
}

impl ReferenceWords {
    pub(super) fn new(words: &[u32]) -> Option<Self> {
        if words.is_empty() || words.len() > MAX_REFERENCE_WORDS {
            return None;
        }
        let mut all = [0; MAX_REFERENCE_WORDS];
        all[..words.len()].copy_from_slice(words);
        Some(Self {
            words: all,
            len: words.len(),
        })
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.words[..self.len]
    }
}

impl<'b> External<'b> {
    /// Reads what the VM made of a term. `None` for every other kind of term, a local fun among them.
    pub(super) fn parse(bytes: &'b [u8]) -> Option<Self> {
        let mut rest = Bytes(bytes);
        if rest.u8()? != VERSION {
            return None;
        }
        let term = match rest.u8()? {
            tag @ (NEW_PID | PID) => Self::Pid {
                node: rest.atom()?,
                id: rest.u32()?,
                serial: rest.u32()?,
                creation: rest.creation(tag == NEW_PID)?,
            },
            tag @ (NEWER_REFERENCE | NEW_REFERENCE) => rest.reference(tag == NEWER_REFERENCE)?,
            EXPORT => Self::Fun {
                module: rest.atom()?,
                function: rest.atom()?,
                arity: rest.small_integer()?,
            },
            SMALL_BIG => {
                let len = rest.u8()?;
                rest.bignum(len.into())?
            }
            LARGE_BIG => {
                let len = rest.u32()?;
                rest.bignum(len as usize)?
            }
            BIT_BINARY => {
                let len = rest.u32()? as usize;
                Self::Bitstring {
                    last_bits: rest.u8()?,
                    bytes: rest.take(len)?,
                }
            }
            tag => Self::Atom(rest.atom_after(tag)?),
        };
        rest.0.is_empty().then_some(term)
    }

    /// The term in the form that `enif_binary_to_term` takes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Atom(name) => put_atom(&mut out, name),
            Self::Pid {
                node,
                id,
                serial,
                creation,
            } => {
                out.push(NEW_PID);
                put_atom(&mut out, node);
                put_u32s(&mut out, &[*id, *serial, *creation]);
            }
            Self::Reference {
                node,
                creation,
                words,
            } => {
                let words = words.as_slice();
                out.extend_from_slice(&[NEWER_REFERENCE, 0, words.len() as u8]);
                put_atom(&mut out, node);
                put_u32s(&mut out, &[*creation]);
                put_u32s(&mut out, words);
            }
            Self::Fun {
                module,
                function,
                arity,
            } => {
                out.push(EXPORT);
                put_atom(&mut out, module);
                put_atom(&mut out, function);
                out.extend_from_slice(&[SMALL_INTEGER, *arity]);
            }
            Self::Bignum {
                negative,
                magnitude,
            } => {
                if let Ok(len) = u8::try_from(magnitude.len()) {
                    out.extend_from_slice(&[SMALL_BIG, len]);
                } else {
                    out.push(LARGE_BIG);
                    put_u32s(&mut out, &[magnitude.len() as u32]);
                }
                out.push(u8::from(*negative));
                out.extend_from_slice(magnitude);
            }
            Self::Bitstring { last_bits, bytes } => {
                out.push(BIT_BINARY);
                put_u32s(&mut out, &[bytes.len() as u32]);
                out.push(*last_bits);
                out.extend_from_slice(bytes);
            }
        }
        out
    }
}

fn put_atom(out: &mut Vec<u8>, name: &str) {
    out.push(ATOM_UTF8);
    out.extend_from_slice(&(name.len() as u16).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn put_u32s(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

/// What is left of an external term.
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn creation(&mut self, wide: bool) -> Option<u32> {
        if wide {
            self.u32()
        } else {
            self.u8().map(u32::from)
        }
    }

    fn small_integer(&mut self) -> Option<u8> {
        (self.u8()? == SMALL_INTEGER).then(|| self.u8())?
    }

    fn atom(&mut self) -> Option<Cow<'b, str>> {
        let tag = self.u8()?;
        self.atom_after(tag)
    }

    fn atom_after(&mut self, tag: u8) -> Option<Cow<'b, str>> {
        let len = match tag {
            SMALL_ATOM | SMALL_ATOM_UTF8 => self.u8()?.into(),
            ATOM | ATOM_UTF8 => self.u16()?,
            _ => return None,
        };
        let name = self.take(len.into())?;
        match tag {
            ATOM | SMALL_ATOM => Some(name.iter().map(|&byte| char::from(byte)).collect()),
            _ => std::str::from_utf8(name).ok().map(Cow::Borrowed),
        }
    }

    fn reference(&mut self, wide_creation: bool) -> Option<External<'b>> {
        let len = usize::from(self.u16()?);
        let node = self.atom()?;
        let creation = self.creation(wide_creation)?;
        let words = self.take(len.checked_mul(4)?)?;
        let words: Vec<u32> = words
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_be_bytes(*word))
            .collect();
        Some(External::Reference {
            node,
            creation,
            words: ReferenceWords::new(&words)?,
        })
    }

    fn bignum(&mut self, len: usize) -> Option<External<'b>> {
        Some(External::Bignum {
            negative: self.u8()? != 0,
            magnitude: Cow::Borrowed(self.take(len)?),
        })
    }
}
