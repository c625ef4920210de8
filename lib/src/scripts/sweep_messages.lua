-- Removes expired messages from queues and indexes, 50 at most.
-- KEYS: sync:messages, expiry:messages
-- ARGV: 1 the prefix of all keys
-- Answers how many it saw. Cost: O(50 log N).
return expire_messages(KEYS[1], KEYS[2], ARGV[1])
