//! Writes MessagePack into one buffer. Knows no term.

use rmp::Marker;

/// Bytes kept free for the header of an extension whose payload is still to be written.
const EXT8_HEADER: usize = 3;

/// An extension that is being written; see [`Writer::open_ext`].
#[must_use]
pub(super) struct OpenExt {
    /// Where the header begins in `Writer::bytes`.
    at: usize,
    /// `Writer::growth` when it began.
    growth: usize,
    kind: i8,
}

/// An extension whose header needs more than the three bytes that were kept for it.
struct WideExt {
    at: usize,
    len: u32,
    kind: i8,
}

impl WideExt {
    fn header_len(&self) -> usize {
        if self.len <= u32::from(u16::MAX) {
            4
        } else {
            6
        }
    }
}

/// MessagePack under construction.
///
/// The length of an extension stands before its payload and is known only after it. Payloads of up
/// to 255 bytes fit the header that was kept free; for the others the header is widened in one pass
/// at the end, over all of them, so that deep nesting costs no repeated moves.
pub(super) struct Writer {
    bytes: Vec<u8>,
    wide: Vec<WideExt>,
    /// By how much the widening will lengthen `bytes`.
    growth: usize,
}

impl Writer {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            wide: Vec::new(),
            growth: 0,
        }
    }

    /// How long the result is so far.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.growth
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend_from_slice(&bytes);
    }

    #[inline]
    fn put_u8(&mut self, marker: Marker, n: u8) {
        self.put([marker.to_u8(), n]);
    }

    #[inline]
    fn put_u16(&mut self, marker: Marker, n: u16) {
        let [a, b] = n.to_be_bytes();
        self.put([marker.to_u8(), a, b]);
    }

    #[inline]
    fn put_u32(&mut self, marker: Marker, n: u32) {
        let [a, b, c, d] = n.to_be_bytes();
        self.put([marker.to_u8(), a, b, c, d]);
    }

    #[inline]
    fn put_u64(&mut self, marker: Marker, n: u64) {
        let mut bytes = [marker.to_u8(); 9];
        bytes[1..].copy_from_slice(&n.to_be_bytes());
        self.put(bytes);
    }

    #[inline]
    pub(super) fn nil(&mut self) {
        self.put([Marker::Null.to_u8()]);
    }

    #[inline]
    pub(super) fn bool(&mut self, value: bool) {
        let marker = if value { Marker::True } else { Marker::False };
        self.put([marker.to_u8()]);
    }

    /// Writes an integer in its shortest form.
    #[inline]
    pub(super) fn int(&mut self, n: i64) {
        match n {
            0.. => self.uint(n.unsigned_abs()),
            -32.. => self.put([n as u8]),
            -0x80.. => self.put_u8(Marker::I8, n as u8),
            -0x8000.. => self.put_u16(Marker::I16, n as u16),
            -0x8000_0000.. => self.put_u32(Marker::I32, n as u32),
            _ => self.put_u64(Marker::I64, n as u64),
        }
    }

    /// Writes an integer in its shortest form.
    #[inline]
    pub(super) fn uint(&mut self, n: u64) {
        match n {
            0..=0x7f => self.put([n as u8]),
            0x80..=0xff => self.put_u8(Marker::U8, n as u8),
            0x100..=0xffff => self.put_u16(Marker::U16, n as u16),
            0x1_0000..=0xffff_ffff => self.put_u32(Marker::U32, n as u32),
            _ => self.put_u64(Marker::U64, n),
        }
    }

    #[inline]
    pub(super) fn float(&mut self, x: f64) {
        self.put_u64(Marker::F64, x.to_bits());
    }

    /// Writes a string. `text` must be UTF-8 and shorter than 4 GiB.
    #[inline]
    pub(super) fn str(&mut self, text: &[u8]) {
        match text.len() {
            n @ 0..=31 => self.put([Marker::FixStr(n as u8).to_u8()]),
            n @ 32..=0xff => self.put_u8(Marker::Str8, n as u8),
            n @ 0x100..=0xffff => self.put_u16(Marker::Str16, n as u16),
            n => self.put_u32(Marker::Str32, n as u32),
        }
        self.raw(text);
    }

    /// Writes a binary, which must be shorter than 4 GiB.
    #[inline]
    pub(super) fn bin(&mut self, bytes: &[u8]) {
        match bytes.len() {
            n @ 0..=0xff => self.put_u8(Marker::Bin8, n as u8),
            n @ 0x100..=0xffff => self.put_u16(Marker::Bin16, n as u16),
            n => self.put_u32(Marker::Bin32, n as u32),
        }
        self.raw(bytes);
    }

    /// Begins an array; its `n` elements follow.
    #[inline]
    pub(super) fn array(&mut self, n: u32) {
        match n {
            0..=15 => self.put([Marker::FixArray(n as u8).to_u8()]),
            16..=0xffff => self.put_u16(Marker::Array16, n as u16),
            _ => self.put_u32(Marker::Array32, n),
        }
    }

    /// Begins a map; its `n` keys and values follow in turn.
    #[inline]
    pub(super) fn map(&mut self, n: u32) {
        match n {
            0..=15 => self.put([Marker::FixMap(n as u8).to_u8()]),
            16..=0xffff => self.put_u16(Marker::Map16, n as u16),
            _ => self.put_u32(Marker::Map32, n),
        }
    }

    /// Writes bytes as they are, a part of an extension's payload.
    #[inline]
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Like [`raw`](Self::raw), the last byte first.
    pub(super) fn raw_reversed(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes.iter().rev());
    }

    /// Begins an extension: what is written until [`close_ext`](Self::close_ext) is its payload.
    #[inline]
    pub(super) fn open_ext(&mut self, kind: i8) -> OpenExt {
        let open = OpenExt {
            at: self.bytes.len(),
            growth: self.growth,
            kind,
        };
        self.put([0; EXT8_HEADER]);
        open
    }

    #[inline]
    pub(super) fn close_ext(&mut self, open: OpenExt) {
        let OpenExt { at, growth, kind } = open;
        let len = self.bytes.len() - at - EXT8_HEADER + (self.growth - growth);
        if let Ok(len) = u8::try_from(len) {
            self.bytes[at..at + EXT8_HEADER].copy_from_slice(&[
                Marker::Ext8.to_u8(),
                len,
                kind as u8,
            ]);
        } else {
            let wide = WideExt {
                at,
                len: len as u32,
                kind,
            };
            self.growth += wide.header_len() - EXT8_HEADER;
            self.wide.push(wide);
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if !self.wide.is_empty() {
            self.widen_headers();
        }
        self.bytes
    }

    /// Moves what follows each wide header to its place, from the back to the front.
    fn widen_headers(&mut self) {
        self.wide.sort_unstable_by_key(|ext| ext.at);
        let mut end = self.bytes.len();
        let mut shift = self.growth;
        self.bytes.resize(end + shift, 0);
        for ext in self.wide.iter().rev() {
            let start = ext.at + EXT8_HEADER;
            self.bytes.copy_within(start..end, start + shift);
            let header_len = ext.header_len();
            shift -= header_len - EXT8_HEADER;
            let header = &mut self.bytes[ext.at + shift..][..header_len];
            let len = ext.len.to_be_bytes();
            if header_len == 4 {
                header.copy_from_slice(&[Marker::Ext16.to_u8(), len[2], len[3], ext.kind as u8]);
            } else {
                header[0] = Marker::Ext32.to_u8();
                header[1..5].copy_from_slice(&len);
                header[5] = ext.kind as u8;
            }
            end = ext.at;
        }
    }
}
