-- Takes messages out of queue and indexes that are found to be gone.
-- KEYS: msgq, sync:messages, expiry:messages
-- ARGV: 1 what stands before a member in a message's key, then for each message: id, member
-- Answers how many were removed; fails where a value of another type stands at a message's key.
-- Cost: O(log N) a message.
local call = redis.call
local removed = 0
for i = 2, #ARGV, 2 do
  local key = ARGV[1] .. ARGV[i + 1]
  -- Not just EXISTS: MGET takes a value of another type for none, too.
  if call('STRLEN', key) == 0 then
    -- Where the slot is on its way, this fails the script; see cluster.lua.
    if is_clustered(KEYS[3]) then is_missing(key, KEYS[3]) end
    call('ZREM', KEYS[1], ARGV[i])
    call('ZREM', KEYS[2], ARGV[i + 1])
    call('ZREM', KEYS[3], ARGV[i + 1])
    removed = removed + 1
  end
end
return removed
