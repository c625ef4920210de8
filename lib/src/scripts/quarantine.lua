-- Moves values of foreign types away from keys of ours; nothing is lost: each is kept for a week
-- under `foreign:{key}:{time}`.
-- KEYS: the keys
-- ARGV: 1 the prefix of all keys, 2 how long what was moved is kept (ms), then the type of each key, as
--       TYPE says it; `integer' is a string of a number that is not negative and that Lua holds exactly
-- Answers the keys that were moved. Cost: O(keys).
local call = redis.call
local moved = {}
local time = call('TIME')
for i, key in ipairs(KEYS) do
  local found = call('TYPE', key).ok
  local wanted = ARGV[i + 2]
  if wanted == 'integer' and found == 'string' then
    local value = call('GET', key)
    if string.match(value, '^%d+$') and tonumber(value) < 2 ^ 53 then wanted = 'string' end
  end
  if found ~= 'none' and found ~= wanted then
    local name = ARGV[1] .. 'foreign:' .. key .. ':' .. time[1] .. '.' .. time[2]
    call('RENAME', key, name)
    call('PEXPIRE', name, ARGV[2])
    moved[#moved + 1] = key
  end
end
return moved
