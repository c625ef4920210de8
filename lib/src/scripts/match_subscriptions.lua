-- Finds the persistent clients with subscriptions that match a topic name.
--
-- KEYS[1] psub:{name}      KEYS[2] ptrie
-- ARGV[1] name             ARGV[2] what stands before the real filter in ptrie:{real filter}
-- ARGV[3] what stands before the filter in psub:{filter}
-- ARGV[4] where to go on, or empty      ARGV[5] about how many nodes and results at once
--
-- Reply: where to go on, or empty at the end; then filter, client id, options, filter, client id, options ... each
-- once, in no order. Or `!` and a key, where what stands there is of another type.
-- Cost: that of trie_walk.lua, one SMEMBERS for each real filter that matches, one HGETALL for each filter.

local name = ARGV[1]
local reply = {''}
local foreign, failure

-- What a command answers; an empty list where it fails. A key that is missing is on its way to another server with
-- its slot: that fails the script.
local function ask(command, key)
  local found = redis.pcall(command, key)
  if not found.err then
    if #found == 0 then is_missing(key, KEYS[2]) end
    return found
  end
  if string.find(found.err, 'WRONGTYPE', 1, true) then
    foreign = foreign or key
  else
    failure = failure or found
  end
  return {}
end

local function collect(filter, clients)
  for i = 1, #clients, 2 do
    local size = #reply
    reply[size + 1], reply[size + 2], reply[size + 3] = filter, clients[i], clients[i + 1]
  end
end

-- A name can look like a shared filter, but that filter does not match it.
if ARGV[4] == '' and string.sub(name, 1, 7) ~= '$share/' then
  collect(name, redis.call('HGETALL', KEYS[1]))
end
local walked, place = trie_walk(KEYS[2], name, ARGV[4], tonumber(ARGV[5]), function(real)
  local size = #reply
  for _, filter in ipairs(ask('SMEMBERS', ARGV[2] .. real)) do
    collect(filter, ask('HGETALL', ARGV[3] .. filter))
  end
  return (#reply - size) / 3
end)
if not walked then return redis.error_reply(place) end
if foreign then
  return {'!', foreign}
end
reply[1] = place
return failure or reply
