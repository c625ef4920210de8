-- Removes acknowledged messages.
-- KEYS: epoch, msgq, sync:messages, expiry:messages, then the messages, then what tells their packet ids
-- ARGV: 1 epoch or '', then the messages' ids, then their members, in the keys' order
-- Answers 0, or what fence.lua answers. Cost: O(log N) a message, 5 commands in all.
local call = redis.call
local no = refusal(call('GET', KEYS[1]), ARGV[1])
if no then return no end
local count = (#KEYS - 4) / 2
call('DEL', unpack(KEYS, 5))
call('ZREM', KEYS[2], unpack(ARGV, 2, 1 + count))
call('ZREM', KEYS[3], unpack(ARGV, 2 + count))
call('ZREM', KEYS[4], unpack(ARGV, 2 + count))
return 0
