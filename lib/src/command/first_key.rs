//! Where a command's first key stands: in a cluster it says which server the command goes to.

/// Commands without keys. Any server does them, for itself.
const KEYLESS: &[&[u8]] = &[
    b"ACL",
    b"BGREWRITEAOF",
    b"BGSAVE",
    b"CLIENT",
    b"CLUSTER",
    b"COMMAND",
    b"CONFIG",
    b"DBSIZE",
    b"ECHO",
    b"EXEC",
    b"FAILOVER",
    b"FLUSHALL",
    b"FLUSHDB",
    b"FUNCTION",
    b"INFO",
    b"KEYS",
    b"LASTSAVE",
    b"LATENCY",
    b"LOLWUT",
    b"MODULE",
    b"MULTI",
    b"DISCARD",
    b"PING",
    b"PUBLISH",
    b"PUBSUB",
    b"RANDOMKEY",
    b"REPLICAOF",
    b"ROLE",
    b"SAVE",
    b"SCAN",
    b"SCRIPT",
    b"SHUTDOWN",
    b"SLAVEOF",
    b"SLOWLOG",
    b"SWAPDB",
    b"TIME",
];

/// The first key of a command; `None` where it has none. Of commands that are not known, modules' for
/// instance, the first argument counts.
pub(super) fn first_key(command: &[Vec<u8>]) -> Option<&[u8]> {
    let name = command.first()?.to_ascii_uppercase();
    let argument = |at: usize| command.get(at).map(Vec::as_slice);
    let is = |at: usize, word: &[u8]| argument(at).is_some_and(|it| it.eq_ignore_ascii_case(word));
    let behind = |word: &[u8], from: usize| {
        let at = (from..command.len()).find(|at| is(*at, word))?;
        argument(at + 1)
    };
    match &name[..] {
        name if KEYLESS.contains(&name) => None,
        b"EVAL" | b"EVALSHA" | b"EVAL_RO" | b"EVALSHA_RO" | b"FCALL" | b"FCALL_RO" => {
            argument(3).filter(|_| !is(2, b"0"))
        }
        b"ZUNION" | b"ZINTER" | b"ZDIFF" | b"ZINTERCARD" | b"SINTERCARD" | b"LMPOP" | b"ZMPOP" => {
            argument(2)
        }
        b"XREAD" => behind(b"STREAMS", 1),
        // Behind GROUP, the group and the consumer, whatever they are called.
        b"XREADGROUP" => behind(b"STREAMS", 4),
        b"BITOP" | b"OBJECT" | b"XINFO" | b"XGROUP" => argument(2),
        b"MEMORY" => argument(2).filter(|_| is(1, b"USAGE")),
        b"DEBUG" => argument(2).filter(|_| is(1, b"OBJECT")),
        // An empty key stands for those behind KEYS.
        b"MIGRATE" => argument(3)
            .filter(|key| !key.is_empty())
            .or_else(|| behind(b"KEYS", 6)),
        _ => argument(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_keys_stand_where_redis_says() {
        for (words, expected) in [
            ("GET k", Some("k")),
            ("mset k 1 l 2", Some("k")),
            ("ping", None),
            ("PING hello", None),
            ("SCAN 0", None),
            ("EVAL script 2 k l a", Some("k")),
            ("evalsha name 0 a", None),
            ("FCALL f 1 k", Some("k")),
            ("XREAD COUNT 2 STREAMS k l 0 0", Some("k")),
            ("XREADGROUP GROUP streams c STREAMS k >", Some("k")),
            ("XINFO STREAM k", Some("k")),
            ("XGROUP CREATE k g $", Some("k")),
            ("OBJECT ENCODING k", Some("k")),
            ("MEMORY USAGE k", Some("k")),
            ("MEMORY STATS", None),
            ("DEBUG SLEEP 0", None),
            ("BITOP AND k l m", Some("k")),
            ("ZUNION 2 k l", Some("k")),
            ("ZUNIONSTORE k 2 l m", Some("k")),
            ("SINTERCARD 1 k", Some("k")),
            ("MIGRATE h 1 k 0 5", Some("k")),
            ("MIGRATE h 1  0 5 REPLACE KEYS k l", Some("k")),
            ("SPUBLISH k text", Some("k")),
            ("MY.MODULE k", Some("k")),
            ("GET", None),
            ("", None),
        ] {
            let command: Vec<Vec<u8>> = words.split(' ').map(|word| word.into()).collect();
            assert_eq!(first_key(&command), expected.map(str::as_bytes), "{words}");
        }
    }
}
