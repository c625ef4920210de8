-- Moves values of foreign types away from keys of ours; nothing is lost: each is kept for a week
-- under `foreign:{key}:{time}`.
-- KEYS: the keys
-- ARGV: 1 how long what was moved is kept (ms), then for each key: its type, as TYPE says it, and what its
--       value is moved to without the time; `integer' is a string of a number that is not negative and that
--       Lua holds exactly
--       Then for each trie in the keys' slot: its key, and what the keys of its parts begin with. A trie that lost
--       anything is marked as one that is being restored; see trie_walk.lua.
-- Answers the keys that were moved. Cost: O(keys).
local call = redis.call
local moved = {}
local time = call('TIME')
for i, key in ipairs(KEYS) do
  local found = call('TYPE', key).ok
  local wanted = ARGV[2 * i]
  if wanted == 'integer' and found == 'string' then
    local value = call('GET', key)
    if string.match(value, '^%d+$') and tonumber(value) < 2 ^ 53 then wanted = 'string' end
  end
  if found ~= 'none' and found ~= wanted then
    local name = ARGV[2 * i + 1] .. time[1] .. '.' .. time[2]
    call('RENAME', key, name)
    call('PEXPIRE', name, ARGV[1])
    moved[#moved + 1] = key
  end
end
for i = 2 * #KEYS + 2, #ARGV, 2 do
  local trie, parts = ARGV[i], ARGV[i + 1]
  for _, key in ipairs(moved) do
    if key == trie or string.sub(key, 1, #parts) == parts then call('HSET', trie, 'restoring', '') end
  end
end
return moved
