-- The ids of one page of a client's messages, in publish order, of messages that live.
-- KEYS: msgq, sync:messages, expiry:messages
-- ARGV: 1 the prefix of all keys, 2 offset, 3 limit
-- Answers the ids, or -1: expired messages were found and removed, ask again.
-- Cost: O(log N + limit).
if expire_messages(KEYS[2], KEYS[3], ARGV[1]) == 50 then return -1 end
local from = tonumber(ARGV[2])
return redis.call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1)
