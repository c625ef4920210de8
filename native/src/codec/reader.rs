//! Reads MessagePack. Knows no term, allocates nothing, believes no length.

use super::error::DecodeError;
use rmp::Marker;

/// One MessagePack object; of an array or a map, its head alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item<'b> {
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Str(&'b [u8]),
    Bin(&'b [u8]),
    /// That many objects follow.
    Array(usize),
    /// That many pairs of objects follow.
    Map(usize),
    Ext(i8, &'b [u8]),
}

/// What is left of the input.
pub(super) struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(super) fn next(&mut self) -> Result<Item<'b>, DecodeError> {
        let [marker] = self.bytes::<1>()?;
        Ok(match Marker::from_u8(marker) {
            Marker::FixPos(n) => Item::Uint(n.into()),
            Marker::FixNeg(n) => Item::Int(n.into()),
            Marker::Null => Item::Nil,
            Marker::True => Item::Bool(true),
            Marker::False => Item::Bool(false),
            Marker::U8 => Item::Uint(u8::from_be_bytes(self.bytes()?).into()),
            Marker::U16 => Item::Uint(u16::from_be_bytes(self.bytes()?).into()),
            Marker::U32 => Item::Uint(u32::from_be_bytes(self.bytes()?).into()),
            Marker::U64 => Item::Uint(u64::from_be_bytes(self.bytes()?)),
            Marker::I8 => Item::Int(i8::from_be_bytes(self.bytes()?).into()),
            Marker::I16 => Item::Int(i16::from_be_bytes(self.bytes()?).into()),
            Marker::I32 => Item::Int(i32::from_be_bytes(self.bytes()?).into()),
            Marker::I64 => Item::Int(i64::from_be_bytes(self.bytes()?)),
            Marker::F32 => finite(f32::from_be_bytes(self.bytes()?).into())?,
            Marker::F64 => finite(f64::from_be_bytes(self.bytes()?))?,
            Marker::FixStr(n) => Item::Str(self.slice(n.into())?),
            Marker::Str8 => Item::Str(self.slice_u8()?),
            Marker::Str16 => Item::Str(self.slice_u16()?),
            Marker::Str32 => Item::Str(self.slice_u32()?),
            Marker::Bin8 => Item::Bin(self.slice_u8()?),
            Marker::Bin16 => Item::Bin(self.slice_u16()?),
            Marker::Bin32 => Item::Bin(self.slice_u32()?),
            Marker::FixArray(n) => self.array(n.into())?,
            Marker::Array16 => {
                let n = self.len_u16()?;
                self.array(n)?
            }
            Marker::Array32 => {
                let n = self.len_u32()?;
                self.array(n)?
            }
            Marker::FixMap(n) => self.map(n.into())?,
            Marker::Map16 => {
                let n = self.len_u16()?;
                self.map(n)?
            }
            Marker::Map32 => {
                let n = self.len_u32()?;
                self.map(n)?
            }
            Marker::FixExt1 => self.ext(1)?,
            Marker::FixExt2 => self.ext(2)?,
            Marker::FixExt4 => self.ext(4)?,
            Marker::FixExt8 => self.ext(8)?,
            Marker::FixExt16 => self.ext(16)?,
            Marker::Ext8 => {
                let [n] = self.bytes()?;
                self.ext(n.into())?
            }
            Marker::Ext16 => {
                let n = self.len_u16()?;
                self.ext(n)?
            }
            Marker::Ext32 => {
                let n = self.len_u32()?;
                self.ext(n)?
            }
            Marker::Reserved => return Err(DecodeError::ReservedByte),
        })
    }

    #[inline]
    fn slice(&mut self, n: usize) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn len_u16(&mut self) -> Result<usize, DecodeError> {
        Ok(u16::from_be_bytes(self.bytes()?).into())
    }

    #[inline]
    fn len_u32(&mut self) -> Result<usize, DecodeError> {
        Ok(u32::from_be_bytes(self.bytes()?) as usize)
    }

    fn slice_u8(&mut self) -> Result<&'b [u8], DecodeError> {
        let [n] = self.bytes()?;
        self.slice(n.into())
    }

    fn slice_u16(&mut self) -> Result<&'b [u8], DecodeError> {
        let n = self.len_u16()?;
        self.slice(n)
    }

    fn slice_u32(&mut self) -> Result<&'b [u8], DecodeError> {
        let n = self.len_u32()?;
        self.slice(n)
    }

    /// An object takes a byte at least, so a count above what is left cannot be true.
    #[inline]
    fn array(&self, n: usize) -> Result<Item<'b>, DecodeError> {
        if n > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(Item::Array(n))
    }

    #[inline]
    fn map(&self, n: usize) -> Result<Item<'b>, DecodeError> {
        if n > self.rest.len() / 2 {
            return Err(DecodeError::Truncated);
        }
        Ok(Item::Map(n))
    }

    fn ext(&mut self, n: usize) -> Result<Item<'b>, DecodeError> {
        let [kind] = self.bytes()?;
        Ok(Item::Ext(kind as i8, self.slice(n)?))
    }
}

/// BEAM has neither infinities nor NaN.
fn finite<'b>(x: f64) -> Result<Item<'b>, DecodeError> {
    if x.is_finite() {
        Ok(Item::Float(x))
    } else {
        Err(DecodeError::NotFinite)
    }
}
