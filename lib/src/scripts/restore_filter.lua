-- Puts back what the trie has lost of a wildcard or shared filter, when a foreign value was moved away.
--
-- KEYS[1] route:{filter} or psub:{filter}       KEYS[2] trie or ptrie
-- KEYS[3] trie:{real filter} or ptrie:{real filter}
-- ARGV[1] `r` for routes, `s` for subscriptions     ARGV[2] filter     ARGV[3] real filter
--
-- Reply: 1, or 0 where the filter has gone meanwhile.
-- Cost: O(levels and nodes of the filter).

local filter = ARGV[2]
local members = {}
if ARGV[1] == 'r' then
  for i, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do members[i] = filter .. '|' .. node end
elseif redis.call('HLEN', KEYS[1]) > 0 then
  members[1] = filter
end
-- Where the next call that finds the trie not whole goes on.
local function note()
  if redis.call('HEXISTS', KEYS[2], 'restoring') == 1 then
    redis.call('HSET', KEYS[2], 'restoring', filter)
  end
end
if #members == 0 then
  note()
  return 0
end
local write = trie_add(KEYS[2], ARGV[3])
if not write then return redis.error_reply('WRONGTYPE trie is damaged') end
redis.call('SISMEMBER', KEYS[3], members[1])
write()
for _, member in ipairs(members) do redis.call('SADD', KEYS[3], member) end
note()
return 1
