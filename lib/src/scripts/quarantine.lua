-- Moves values of foreign types away from keys of ours; nothing is lost: each is kept for a week
-- under `foreign:{key}:{time}`.
-- KEYS: the keys
-- ARGV: 1 the prefix of all keys, 2 how long what was moved is kept (ms), then the type of each key
-- Answers the keys that were moved. Cost: O(keys).
local call = redis.call
local moved = {}
local time = call('TIME')
for i, key in ipairs(KEYS) do
  local found = call('TYPE', key).ok
  if found ~= 'none' and found ~= ARGV[i + 2] then
    local name = ARGV[1] .. 'foreign:' .. key .. ':' .. time[1] .. '.' .. time[2]
    call('RENAME', key, name)
    call('PEXPIRE', name, ARGV[2])
    moved[#moved + 1] = key
  end
end
return moved
