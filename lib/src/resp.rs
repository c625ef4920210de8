//! RESP2, Redis's wire protocol: writing commands and reading replies.
//!
//! Commands are written straight into a connection's output buffer. Replies are cut from its input
//! buffer in two passes: [`Scanner`] finds where a reply ends, reading each byte once however the
//! reply arrives in pieces, and [`Frame::parse`] then builds the value without copying payloads.
//! Protocol: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use bytes::Bytes;

/// Appends commands to a buffer.
pub struct Commands<'a> {
    out: &'a mut Vec<u8>,
    count: usize,
}

impl<'a> Commands<'a> {
    /// Writes behind what `out` holds.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Commands { out, count: 0 }
    }

    /// How many commands were begun, which is how many replies will come.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Begins a command of `length` arguments, its name included.
    pub fn begin(&mut self, length: usize) -> &mut Self {
        self.count += 1;
        self.header(b'*', length)
    }

    /// Writes a whole command.
    pub fn command(&mut self, arguments: &[&[u8]]) -> &mut Self {
        self.begin(arguments.len());
        for argument in arguments {
            self.arg(argument);
        }
        self
    }

    /// Writes one argument.
    pub fn arg(&mut self, bytes: &[u8]) -> &mut Self {
        self.header(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Writes one argument that is an integer in decimal.
    pub fn int(&mut self, value: impl itoa::Integer) -> &mut Self {
        let mut buffer = itoa::Buffer::new();
        self.arg(buffer.format(value).as_bytes())
    }

    fn header(&mut self, kind: u8, length: usize) -> &mut Self {
        let mut buffer = itoa::Buffer::new();
        self.out.push(kind);
        self.out.extend_from_slice(buffer.format(length).as_bytes());
        self.out.extend_from_slice(b"\r\n");
        self
    }
}

/// One reply. Payloads share the input buffer that they arrived in.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// `+OK`
    Simple(Bytes),
    /// `-CODE text`
    Error(Bytes),
    /// `:1`
    Integer(i64),
    /// `$3 abc`
    Bulk(Bytes),
    /// `$-1` and `*-1`
    Nil,
    /// `*2 …`
    Array(Vec<Frame>),
}

/// The server, or something in front of it, does not speak RESP2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Deeper nesting than any command of Redis answers with.
const MAX_DEPTH: usize = 64;
/// The longest line that can begin an element: a length, an integer or an error's text.
const MAX_LINE: usize = 64 * 1024;
/// `proto-max-bulk-len`'s own default.
const MAX_BULK: i64 = 512 * 1024 * 1024;
const MAX_ARRAY: i64 = 64 * 1024 * 1024;

/// Finds the end of the next reply in a buffer that grows, without looking at any byte twice.
#[derive(Debug, Default)]
pub struct Scanner {
    position: usize,
    line_from: usize,
    /// For each array that is open, how many elements are still to come.
    open: Vec<usize>,
}

impl Scanner {
    /// The length of the whole reply that `buffer` begins with, or `None` when more bytes are
    /// needed. After an answer the scanner is ready for the next reply.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, Malformed> {
        loop {
            let Some(end) = self.line_end(buffer)? else {
                return Ok(None);
            };
            let line = &buffer[self.position..end];
            let (kind, rest) = line.split_first().ok_or(Malformed("empty line"))?;
            let mut next = end + 2;
            let mut children = 0;
            match kind {
                b'+' | b'-' | b':' => {}
                b'$' => {
                    let length = length(rest, MAX_BULK)?;
                    if length >= 0 {
                        next += length as usize + 2;
                        if buffer.len() < next {
                            return Ok(None);
                        }
                    }
                }
                b'*' => children = length(rest, MAX_ARRAY)?.max(0) as usize,
                _ => return Err(Malformed("unknown type byte")),
            }
            self.position = next;
            self.line_from = next;
            if children > 0 {
                if self.open.len() == MAX_DEPTH {
                    return Err(Malformed("arrays nested too deep"));
                }
                self.open.push(children);
                continue;
            }
            while let Some(left) = self.open.last_mut() {
                *left -= 1;
                if *left > 0 {
                    break;
                }
                self.open.pop();
            }
            if self.open.is_empty() {
                *self = Scanner::default();
                return Ok(Some(next));
            }
        }
    }

    fn line_end(&mut self, buffer: &[u8]) -> Result<Option<usize>, Malformed> {
        let from = self.line_from.max(self.position);
        match buffer
            .get(from..)
            .and_then(|tail| tail.iter().position(|byte| *byte == b'\n'))
        {
            Some(at) if at + from > self.position && buffer[at + from - 1] == b'\r' => {
                Ok(Some(at + from - 1))
            }
            Some(_) => Err(Malformed("line feed without carriage return")),
            None if buffer.len().saturating_sub(self.position) > MAX_LINE => {
                Err(Malformed("line too long"))
            }
            None => {
                self.line_from = buffer.len();
                Ok(None)
            }
        }
    }
}

fn length(digits: &[u8], most: i64) -> Result<i64, Malformed> {
    let value = integer(digits)?;
    if (-1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Malformed("length out of range"))
    }
}

fn integer(digits: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Malformed("not an integer"))
}

impl Frame {
    /// Parses the reply that `bytes` begins with at `*at`, which a [`Scanner`] found to be whole,
    /// and moves `*at` behind it.
    pub fn parse(bytes: &Bytes, at: &mut usize) -> Result<Frame, Malformed> {
        let tail = bytes.get(*at..).unwrap_or_default();
        let end = tail
            .iter()
            .position(|byte| *byte == b'\r')
            .ok_or(Malformed("truncated"))?;
        let kind = tail[0];
        let text = *at + 1..*at + end;
        *at += end + 2;
        Ok(match kind {
            b'+' => Frame::Simple(bytes.slice(text)),
            b'-' => Frame::Error(bytes.slice(text)),
            b':' => Frame::Integer(integer(&bytes[text])?),
            b'$' => match length(&bytes[text], MAX_BULK)? {
                -1 => Frame::Nil,
                length => {
                    let from = *at;
                    let to = from + length as usize;
                    if bytes.len() < to + 2 {
                        return Err(Malformed("truncated"));
                    }
                    *at = to + 2;
                    Frame::Bulk(bytes.slice(from..to))
                }
            },
            b'*' => match length(&bytes[text], MAX_ARRAY)? {
                -1 => Frame::Nil,
                length => {
                    // Each element takes three bytes at least, which bounds what is reserved.
                    let room = (bytes.len() - (*at).min(bytes.len())) / 3;
                    let mut elements = Vec::with_capacity((length as usize).min(room));
                    for _ in 0..length {
                        elements.push(Frame::parse(bytes, at)?);
                    }
                    Frame::Array(elements)
                }
            },
            _ => return Err(Malformed("unknown type byte")),
        })
    }

    /// The error's text, when this is an error.
    pub fn error(&self) -> Option<&[u8]> {
        match self {
            Frame::Error(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(frame: &Frame, out: &mut Vec<u8>) {
        match frame {
            Frame::Simple(text) => out.extend([b"+", &text[..], b"\r\n"].concat()),
            Frame::Error(text) => out.extend([b"-", &text[..], b"\r\n"].concat()),
            Frame::Integer(value) => out.extend(format!(":{value}\r\n").into_bytes()),
            Frame::Nil => out.extend(b"$-1\r\n"),
            Frame::Bulk(data) => {
                out.extend(format!("${}\r\n", data.len()).into_bytes());
                out.extend_from_slice(data);
                out.extend(b"\r\n");
            }
            Frame::Array(elements) => {
                out.extend(format!("*{}\r\n", elements.len()).into_bytes());
                elements.iter().for_each(|element| write(element, out));
            }
        }
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(|text| Frame::Simple(text.into())),
            "[ -~]{0,20}".prop_map(|text| Frame::Error(text.into())),
            any::<i64>().prop_map(Frame::Integer),
            Just(Frame::Nil),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|data| Frame::Bulk(data.into())),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop::collection::vec(inner, 0..6).prop_map(Frame::Array)
        })
    }

    proptest! {
        #[test]
        fn replies_come_back_however_they_are_cut(
            sent in prop::collection::vec(frames(), 1..6),
            piece in 1..50usize,
        ) {
            let mut wire = Vec::new();
            sent.iter().for_each(|frame| write(frame, &mut wire));
            let (mut scanner, mut buffer, mut got) = (Scanner::default(), Vec::new(), Vec::new());
            for chunk in wire.chunks(piece) {
                buffer.extend_from_slice(chunk);
                while let Some(length) = scanner.scan(&buffer).unwrap() {
                    let whole: Bytes = buffer.drain(..length).collect::<Vec<_>>().into();
                    let mut at = 0;
                    got.push(Frame::parse(&whole, &mut at).unwrap());
                    prop_assert_eq!(at, length);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn garbage_never_panics(wire in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), any::<u8>()], 0..80)
        ) {
            let mut scanner = Scanner::default();
            if let Ok(Some(length)) = scanner.scan(&wire) {
                prop_assert!(length <= wire.len());
                let _ = Frame::parse(&Bytes::from(wire), &mut 0);
            }
        }

        #[test]
        fn commands_are_arrays_of_bulks(
            arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6)
        ) {
            let mut wire = Vec::new();
            let mut commands = Commands::new(&mut wire);
            commands.begin(arguments.len());
            arguments.iter().for_each(|argument| { commands.arg(argument); });
            prop_assert_eq!(commands.count(), 1);
            let expected = arguments.into_iter().map(|a| Frame::Bulk(a.into())).collect();
            prop_assert_eq!(Frame::parse(&wire.into(), &mut 0).unwrap(), Frame::Array(expected));
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for wire in [
            "$99999999999\r\n",
            "*-2\r\n",
            "$x\r\n",
            "?\r\n",
            "\r\n",
            "+a\n",
        ] {
            assert!(
                Scanner::default().scan(wire.as_bytes()).is_err(),
                "{wire:?}"
            );
        }
        let deep = "*1\r\n".repeat(MAX_DEPTH + 1);
        assert!(Scanner::default().scan(deep.as_bytes()).is_err());
    }
}
