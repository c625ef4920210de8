-- One page of client ids, oldest save first, of sessions that are there.
-- KEYS: sync:sessions, expiry:sessions
-- ARGV: 1 what stands before a client id, or its hash tag, in its session's key, 2 offset, 3 limit
-- Answers the client ids, or -1: expired sessions were found and removed, ask again.
-- Cost: O(log N + limit); limit is at most 1,000 and each step takes under a millisecond.
local call = redis.call
if expire_sessions(KEYS[1], KEYS[2], ARGV[1]) == 50 then return -1 end
local from = tonumber(ARGV[2])
local page = call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1)
local gone = 0
for _, client in ipairs(page) do
  if is_missing(session_key(ARGV[1], client, is_clustered(KEYS[1])), KEYS[1]) then
    call('ZREM', KEYS[1], client)
    call('ZREM', KEYS[2], client)
    gone = gone + 1
  end
end
if gone > 0 then return -1 end
return page
