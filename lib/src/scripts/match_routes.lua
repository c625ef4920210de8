-- Finds the routes whose filters match a topic name.
--
-- KEYS[1] route:{name}     KEYS[2] trie
-- ARGV[1] name             ARGV[2] what stands before the real filter in trie:{real filter}
-- ARGV[3] where to go on, or empty      ARGV[4] about how many nodes and results at once
--
-- Reply: where to go on, or empty at the end; then filter, node, filter, node ... each pair once, in no order. Or
-- `!` and a key, where what stands there is of another type.
-- Cost: that of trie_walk.lua, and one SMEMBERS for each real filter that matches.

local name = ARGV[1]
local reply = {''}
local foreign, failure

-- A name can look like a shared filter, but that filter does not match it.
if ARGV[3] == '' and string.sub(name, 1, 7) ~= '$share/' then
  for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    reply[#reply + 1] = name
    reply[#reply + 1] = node
  end
end

local walked, place = trie_walk(KEYS[2], name, ARGV[3], tonumber(ARGV[4]), function(filter)
  local members = redis.pcall('SMEMBERS', ARGV[2] .. filter)
  local size = #reply
  if members.err and string.find(members.err, 'WRONGTYPE', 1, true) then
    foreign = foreign or ARGV[2] .. filter
  elseif members.err then
    failure = failure or members
  else
    -- A slot on its way: fails the script where the key has yet to come.
    if #members == 0 then is_missing(ARGV[2] .. filter, KEYS[2]) end
    for _, member in ipairs(members) do
      reply[#reply + 1], reply[#reply + 2] = string.match(member, '^(.*)|(.*)$')
    end
  end
  return (#reply - size) / 2
end)
if not walked then return redis.error_reply(place) end
if foreign then
  return {'!', foreign}
end
reply[1] = place
return failure or reply
