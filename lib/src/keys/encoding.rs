//! Names within keys: percent-encoding and hash tags.

use std::borrow::Cow;

pub(super) fn push_tag(out: &mut Vec<u8>, tag: &[u8]) {
    out.push(b'{');
    out.extend_from_slice(tag);
    out.push(b'}');
}

/// A client id as the hash tag of its keys. `scripts/cluster.lua` does the same.
pub(super) fn clustered_client(client: &[u8]) -> Cow<'_, [u8]> {
    match client {
        b"" => Cow::Borrowed(b"%"),
        _ => encode(client, &[(b'%', b"%25"), (b'}', b"%7D")]),
    }
}

pub(super) fn encode<'a>(name: &'a [u8], codes: &[(u8, &[u8; 3]); 2]) -> Cow<'a, [u8]> {
    let [(first, _), (second, _)] = codes;
    if !name.iter().any(|byte| byte == first || byte == second) {
        return Cow::Borrowed(name);
    }
    let mut encoded = Vec::with_capacity(name.len() + 8);
    for byte in name {
        match codes.iter().find(|(plain, _)| plain == byte) {
            Some((_, code)) => encoded.extend_from_slice(*code),
            None => encoded.push(*byte),
        }
    }
    Cow::Owned(encoded)
}

/// The inverse of [`encode`]; `None` for what it never yields.
pub(super) fn decode<'a>(encoded: &'a [u8], codes: &[(&[u8; 2], u8); 2]) -> Option<Cow<'a, [u8]>> {
    if !encoded.contains(&b'%') {
        return Some(Cow::Borrowed(encoded));
    }
    let mut name = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (code, tail) = tail.split_first_chunk()?;
            name.push(codes.iter().find(|(it, _)| *it == code)?.1);
            rest = tail;
        } else {
            name.push(byte);
        }
    }
    Some(Cow::Owned(name))
}
