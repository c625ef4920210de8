//! Redis Cluster's hash slots, and for each slot a tag that hashes to it.
//!
//! A key's slot is that of its hash tag: what stands between its first `{` and the next `}`, unless that is
//! nothing. Rule: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::sync::OnceLock;

use crate::slots::SLOTS;

/// The bytes of tags, in counting order.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// The longest tag that is needed.
const LONGEST: usize = 4;

/// CRC16/XMODEM: polynomial 0x1021, from 0 on.
const CRC_TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ (0x1021 * (crc >> 15));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The CRC that Redis Cluster uses.
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (crc << 8) ^ CRC_TABLE[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// The slot of a key.
pub fn hash_slot(key: &[u8]) -> u16 {
    slot_of_tag(hash_tag(key).unwrap_or(key))
}

/// The slot of keys with this hash tag, which is not empty.
pub fn slot_of_tag(tag: &[u8]) -> u16 {
    crc16(tag) % SLOTS
}

/// The part of a key that decides on its slot; `None` where that is the whole key.
pub fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&byte| byte == b'{')? + 1;
    let length = key[open..].iter().position(|&byte| byte == b'}')?;
    (length > 0).then(|| &key[open..open + length])
}

/// The tag that stands for a slot in the keys that belong to a slot and not to a client. It is part of the
/// layout: it never changes.
pub fn tag(slot: u16) -> &'static [u8] {
    static TAGS: OnceLock<Box<[Tag]>> = OnceLock::new();
    TAGS.get_or_init(all_tags)[usize::from(slot % SLOTS)].bytes()
}

#[derive(Clone, Copy, Default)]
struct Tag {
    bytes: [u8; LONGEST],
    length: u8,
}

impl Tag {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Counts through all strings over `DIGITS`, the shorter ones first, and gives each slot the first that
/// falls into it.
fn all_tags() -> Box<[Tag]> {
    let mut tags = vec![Tag::default(); usize::from(SLOTS)];
    let mut missing = tags.len();
    for length in 1..=LONGEST {
        for number in 0..DIGITS.len().pow(length as u32) {
            let tag = nth_tag(number, length);
            let of_slot = &mut tags[usize::from(slot_of_tag(tag.bytes()))];
            if of_slot.length == 0 {
                *of_slot = tag;
                missing -= 1;
                if missing == 0 {
                    return tags.into();
                }
            }
        }
    }
    unreachable!("four digits reach every slot");
}

fn nth_tag(number: usize, length: usize) -> Tag {
    let mut tag = Tag {
        length: length as u8,
        ..Tag::default()
    };
    let mut rest = number;
    for byte in tag.bytes[..length].iter_mut().rev() {
        *byte = DIGITS[rest % DIGITS.len()];
        rest /= DIGITS.len();
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(hash_slot(b"foo"), 12182);
        assert_eq!(hash_slot(b"{user1000}.following"), hash_slot(b"user1000"));
        assert_eq!(hash_slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(hash_slot(b"foo{{bar}}zap"), hash_slot(b"{bar"));
        assert_eq!(hash_slot(b"foo{bar}{zap}"), hash_slot(b"bar"));
        assert_eq!(hash_slot(b"foo{bar"), crc16(b"foo{bar") % SLOTS);
    }

    #[test]
    fn each_slot_has_a_tag_of_its_own() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of_tag(tag(slot)), slot);
            assert!((1..=LONGEST).contains(&tag(slot).len()));
        }
    }

    /// Data in a cluster is found by these tags: if this test fails, the data of every cluster is lost.
    #[test]
    fn the_tags_never_change() {
        let all: Vec<&[u8]> = (0..SLOTS).map(tag).collect();
        let of = |slot: usize| std::str::from_utf8(all[slot]).unwrap();
        assert_eq!(
            [of(0), of(1), of(8192), of(16383)],
            ["1bz", "emj", "fjl", "hia"]
        );
        assert_eq!(crc16(&all.join(&b' ')), 0x8d2c);
    }

    #[test]
    fn the_tags_are_made_in_no_time() {
        let begun = std::time::Instant::now();
        all_tags();
        assert!(begun.elapsed().as_millis() < 200, "{:?}", begun.elapsed());
    }
}
