//! The parts that know no term, against `rmpv` as the independent reader and writer.

use super::error::DecodeError;
use super::external::{External, ReferenceWords};
use super::reader::{Item, Reader};
use super::writer::Writer;
use super::{payload, EXT_BIGNUM, EXT_BITSTRING, EXT_FUN, EXT_PID, EXT_REFERENCE};
use proptest::collection::vec;
use proptest::prelude::*;
use rmpv::Value;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Boolean),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("finite", |x| x.is_finite())
            .prop_map(Value::F64),
        ".{0,40}".prop_map(Value::from),
        vec(any::<u8>(), 0..600).prop_map(Value::Binary),
        (any::<i8>(), vec(any::<u8>(), 0..300)).prop_map(|(kind, bytes)| Value::Ext(kind, bytes)),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..20).prop_map(Value::Array),
            vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
        ]
    })
}

fn write(out: &mut Writer, value: &Value) {
    match value {
        Value::Nil => out.nil(),
        Value::Boolean(b) => out.bool(*b),
        Value::Integer(n) => match n.as_i64() {
            Some(n) => out.int(n),
            None => out.uint(n.as_u64().unwrap()),
        },
        Value::F32(x) => out.float((*x).into()),
        Value::F64(x) => out.float(*x),
        Value::String(text) => out.str(text.as_bytes()),
        Value::Binary(bytes) => out.bin(bytes),
        Value::Array(elements) => {
            out.array(elements.len() as u32);
            elements.iter().for_each(|element| write(out, element));
        }
        Value::Map(pairs) => {
            out.map(pairs.len() as u32);
            for (key, value) in pairs {
                write(out, key);
                write(out, value);
            }
        }
        Value::Ext(kind, bytes) => {
            let ext = out.open_ext(*kind);
            out.raw(bytes);
            out.close_ext(ext);
        }
    }
}

fn written(value: &Value) -> Vec<u8> {
    let mut out = Writer::with_capacity(0);
    write(&mut out, value);
    let len = out.len();
    let bytes = out.finish();
    assert_eq!(bytes.len(), len);
    bytes
}

fn read(input: &mut Reader<'_>) -> Result<Value, DecodeError> {
    Ok(match input.next()? {
        Item::Nil => Value::Nil,
        Item::Bool(b) => b.into(),
        Item::Int(n) => n.into(),
        Item::Uint(n) => n.into(),
        Item::Float(x) => x.into(),
        Item::Str(text) => Value::from(std::str::from_utf8(text).unwrap()),
        Item::Bin(bytes) => Value::from(bytes),
        Item::Array(n) => Value::Array((0..n).map(|_| read(input)).collect::<Result<_, _>>()?),
        Item::Map(n) => Value::Map(
            (0..n)
                .map(|_| Ok((read(input)?, read(input)?)))
                .collect::<Result<_, _>>()?,
        ),
        Item::Ext(kind, bytes) => Value::Ext(kind, bytes.to_vec()),
    })
}

fn rmpv_reads(mut bytes: &[u8]) -> Value {
    let value = rmpv::decode::read_value(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    value
}

/// Extensions in one another, each with some bytes before what it holds.
#[derive(Debug, Clone)]
struct Nested(usize, Vec<Nested>);

fn nested() -> impl Strategy<Value = Nested> {
    let filler = prop_oneof![0..20_usize, 240..260_usize, 65_500..65_540_usize];
    let leaf = filler.clone().prop_map(|n| Nested(n, vec![]));
    leaf.prop_recursive(6, 12, 3, move |inner| {
        (filler.clone(), vec(inner, 1..3)).prop_map(|(n, inner)| Nested(n, inner))
    })
}

impl Nested {
    fn write(&self, out: &mut Writer) {
        let ext = out.open_ext(1);
        out.raw(&vec![7; self.0]);
        self.1.iter().for_each(|inner| inner.write(out));
        out.close_ext(ext);
    }

    fn payload(&self) -> Vec<u8> {
        let mut bytes = vec![7; self.0];
        self.1.iter().for_each(|inner| bytes.extend(inner.model()));
        bytes
    }

    fn model(&self) -> Vec<u8> {
        let payload = self.payload();
        let len = payload.len() as u32;
        let mut bytes = match len {
            0..=0xff => vec![0xc7, len as u8],
            0x100..=0xffff => vec![0xc8, (len >> 8) as u8, len as u8],
            _ => [&[0xc9], &len.to_be_bytes()[..]].concat(),
        };
        bytes.push(1);
        bytes.extend(payload);
        bytes
    }
}

fn external() -> impl Strategy<Value = External<'static>> {
    let name = ".{0,20}".prop_map(std::borrow::Cow::from);
    prop_oneof![
        (name.clone(), any::<[u32; 3]>()).prop_map(|(node, [id, serial, creation])| {
            External::Pid {
                node,
                id,
                serial,
                creation,
            }
        }),
        (name.clone(), any::<u32>(), vec(any::<u32>(), 1..=5)).prop_map(
            |(node, creation, words)| External::Reference {
                node,
                creation,
                words: ReferenceWords::new(&words).unwrap(),
            }
        ),
        (name.clone(), name.clone(), any::<u8>()).prop_map(|(module, function, arity)| {
            External::Fun {
                module,
                function,
                arity,
            }
        }),
        (any::<bool>(), vec(any::<u8>(), 0..400), 1..=255_u8).prop_map(
            |(negative, mut magnitude, last)| {
                magnitude.push(last);
                External::Bignum {
                    negative,
                    magnitude: magnitude.into(),
                }
            }
        ),
    ]
}

fn kind_of(external: &External<'_>) -> i8 {
    match external {
        External::Atom(_) => 0,
        External::Bignum { .. } => EXT_BIGNUM,
        External::Bitstring { .. } => EXT_BITSTRING,
        External::Pid { .. } => EXT_PID,
        External::Reference { .. } => EXT_REFERENCE,
        External::Fun { .. } => EXT_FUN,
    }
}

fn payload_of(external: &External<'_>) -> Vec<u8> {
    let mut out = Writer::with_capacity(0);
    payload::write(&mut out, external);
    match rmpv_reads(&out.finish()) {
        Value::Ext(kind, payload) if kind == kind_of(external) => payload,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn another_library_reads_what_we_write(value in value()) {
        prop_assert_eq!(rmpv_reads(&written(&value)), value);
    }

    #[test]
    fn we_write_the_shortest_form(value in value()) {
        let mut theirs = Vec::new();
        rmpv::encode::write_value(&mut theirs, &value).unwrap();
        prop_assert!(has_ext(&value) || written(&value) == theirs);
    }

    #[test]
    fn we_read_what_another_library_writes(value in value()) {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &value).unwrap();
        let mut input = Reader::new(&bytes);
        prop_assert_eq!(read(&mut input), Ok(value));
        prop_assert!(input.is_empty());
    }

    #[test]
    fn a_part_of_a_value_is_truncated(value in value(), cut in any::<prop::sample::Index>()) {
        let bytes = written(&value);
        let part = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(read(&mut Reader::new(part)), Err(DecodeError::Truncated));
    }

    #[test]
    fn extensions_in_one_another_have_their_lengths(nested in nested()) {
        let mut out = Writer::with_capacity(0);
        nested.write(&mut out);
        let len = out.len();
        let bytes = out.finish();
        prop_assert_eq!(bytes.len(), len);
        prop_assert_eq!(bytes, nested.model());
    }

    #[test]
    fn payloads_come_back(external in external()) {
        let payload = payload_of(&external);
        prop_assert_eq!(payload::read(kind_of(&external), &payload), Ok(external.clone()));
        let bytes = external.to_bytes();
        prop_assert_eq!(External::parse(&bytes), Some(external));
    }

    #[test]
    fn a_payload_must_be_whole(external in external(), cut in any::<prop::sample::Index>()) {
        let mut payload = payload_of(&external);
        let kind = kind_of(&external);
        if kind != EXT_BIGNUM {
            prop_assert!(payload::read(kind, &payload[..cut.index(payload.len())]).is_err());
            payload.push(0);
            prop_assert!(payload::read(kind, &payload).is_err());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..80), kind in any::<i8>()) {
        let mut input = Reader::new(&bytes);
        while input.next().is_ok() {}
        let _ = payload::read(kind & 7, &bytes);
        let _ = External::parse(&bytes);
        let _ = External::parse(&[&[131], &bytes[..]].concat());
    }
}

fn has_ext(value: &Value) -> bool {
    match value {
        Value::Ext(..) => true,
        Value::Array(elements) => elements.iter().any(has_ext),
        Value::Map(pairs) => pairs.iter().any(|(k, v)| has_ext(k) || has_ext(v)),
        _ => false,
    }
}

#[test]
fn a_declared_length_is_no_promise() {
    for bytes in [
        &b"\xdd\xff\xff\xff\xff\xc0"[..],
        b"\xdf\xff\xff\xff\xff\xc0\xc0",
        b"\xdb\xff\xff\xff\xffa",
        b"\xc6\xff\xff\xff\xffa",
        b"\xc9\xff\xff\xff\xff\x01a",
    ] {
        assert_eq!(Reader::new(bytes).next(), Err(DecodeError::Truncated));
    }
}

#[test]
fn floats_that_no_term_is_are_refused() {
    for bytes in [
        &b"\xca\x7f\x80\x00\x00"[..],
        b"\xca\x7f\xc0\x00\x00",
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xcb\xff\xf8\x00\x00\x00\x00\x00\x00",
    ] {
        assert_eq!(Reader::new(bytes).next(), Err(DecodeError::NotFinite));
    }
    assert_eq!(
        Reader::new(b"\xca\x3f\x80\x00\x00").next(),
        Ok(Item::Float(1.0))
    );
}

#[test]
fn payloads_of_wrong_shape_are_refused() {
    let bad = |kind, payload: &[u8]| {
        assert_eq!(
            payload::read(kind, payload),
            Err(DecodeError::BadExtension),
            "{kind} {payload:?}"
        );
    };
    bad(EXT_BIGNUM, b"");
    bad(EXT_BIGNUM, b"\x00");
    bad(EXT_BIGNUM, b"\x00\x00\x01");
    bad(EXT_BIGNUM, b"\x02\x01");
    bad(EXT_BITSTRING, b"");
    bad(EXT_BITSTRING, b"\x01");
    bad(EXT_BITSTRING, b"\x00\x80");
    bad(EXT_BITSTRING, b"\x08\x80");
    bad(EXT_BITSTRING, b"\x01\xc0");
    bad(EXT_PID, b"\x94\xa1a\x01\x02");
    bad(
        EXT_PID,
        b"\x94\xa1a\x01\x02\xcf\x00\x00\x00\x01\x00\x00\x00\x00",
    );
    bad(EXT_PID, b"\x94\xc4\x01a\x01\x02\x03");
    bad(EXT_PID, b"\x95\xa1a\x01\x02\x03\x04");
    bad(EXT_REFERENCE, b"\x92\xa1a\x01");
    bad(EXT_REFERENCE, b"\x91\xa1a");
    bad(EXT_REFERENCE, b"\x98\xa1a\x01\x01\x02\x03\x04\x05\x06");
    bad(EXT_FUN, b"\x93\xa1a\xa1b\xcd\x01\x00");
    bad(EXT_FUN, b"\x92\xa1a\xa1b");
    assert_eq!(
        payload::read(EXT_FUN, b"\x93\xa1\xff\xa1b\x01"),
        Err(DecodeError::AtomNotUtf8)
    );
    assert_eq!(
        payload::read(99, b"\x01"),
        Err(DecodeError::UnknownExtension)
    );
}

#[test]
fn bits_that_do_not_count_are_written_as_zero() {
    let bits = External::Bitstring {
        last_bits: 3,
        bytes: b"\xff\xff",
    };
    assert_eq!(payload_of(&bits), b"\x03\xff\xe0");
}

#[test]
fn older_external_terms_are_read() {
    assert_eq!(
        External::parse(b"\x83g\x64\x00\x01\xe9\x00\x00\x00\x01\x00\x00\x00\x02\x03"),
        Some(External::Pid {
            node: "é".into(),
            id: 1,
            serial: 2,
            creation: 3
        })
    );
    assert_eq!(
        External::parse(b"\x83r\x00\x01s\x01n\x03\x00\x00\x00\x09"),
        Some(External::Reference {
            node: "n".into(),
            creation: 3,
            words: ReferenceWords::new(&[9]).unwrap()
        })
    );
    assert_eq!(External::parse(b"\x83p"), None, "a local fun");
}
