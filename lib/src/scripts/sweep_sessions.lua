-- Removes expired sessions from the indexes, 50 at most.
-- KEYS: sync:sessions, expiry:sessions
-- ARGV: 1 what stands before a client id, or its hash tag, in its session's key
-- Answers how many it saw. Cost: O(50 log N).
return expire_sessions(KEYS[1], KEYS[2], ARGV[1])
