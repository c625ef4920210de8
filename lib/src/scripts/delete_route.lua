-- Deletes the route from a topic filter to a node. The last node of a filter takes the filter out of every
-- index, the last route of a real filter takes its branch out of the trie.
--
-- KEYS and ARGV: those of add_route.lua, without the time:
-- KEYS[1] route:{filter}   KEYS[2] sync:routes
-- and only for a wildcard or shared filter:
-- KEYS[3] route:wildcards  KEYS[4] trie         KEYS[5] trie:{real filter}
-- ARGV[1] filter  ARGV[2] node
-- and only for a wildcard or shared filter:
-- ARGV[3] filter|node      ARGV[4] real filter
--
-- Reply: 1 if the route was there, 0 if not.
-- Cost: O(levels of the filter).
--
-- See add_route.lua for what the trie holds. As there, everything is read before anything is written, and
-- each key is brought to the state without the route whatever the others hold: deleting an absent route
-- harms nothing.

local filter, node = ARGV[1], ARGV[2]
local known = redis.call('SISMEMBER', KEYS[1], node)
local last_node = redis.call('SCARD', KEYS[1]) == known
redis.call('ZSCORE', KEYS[2], filter)

-- Takes the end of a real filter out of the trie, and the trie nodes that nothing else needs. True where
-- the trie holds something else.
local function prune(trie, real)
  local value = redis.call('HGET', trie, 'root')
  if not value then
    return
  end
  local fields, levels, ids, literals, marks = {'root'}, {}, {}, {}, {}
  ids[1], literals[1], marks[1] = string.match(value, '^(%d+) (%d+) (%d)$')
  if not ids[1] then return true end
  local depth, mark = 1, 1
  for level in string.gmatch(real .. '/', '([^/]*)/') do
    if level == '#' then
      mark = 4
    else
      local field = ids[depth] .. '/' .. level
      value = redis.call('HGET', trie, field)
      if not value then
        return
      end
      depth = depth + 1
      fields[depth], levels[depth] = field, level
      ids[depth], literals[depth], marks[depth] = string.match(value, '^(%d+) (%d+) (%d)$')
      if not ids[depth] then return true end
    end
  end

  local gone = {}
  marks[depth] = bit.band(marks[depth], 7 - mark)
  while literals[depth] + 0 == 0 and marks[depth] + 0 == 0 do
    if depth == 1 then
      -- No filter is left: only `next` would stay behind.
      redis.call('DEL', trie)
      return
    end
    gone[#gone + 1] = fields[depth]
    depth = depth - 1
    if levels[depth + 1] == '+' then
      marks[depth] = bit.band(marks[depth], 5)
    else
      literals[depth] = literals[depth] - 1
    end
  end
  redis.call('HSET', trie, fields[depth], ids[depth] .. ' ' .. literals[depth] .. ' ' .. marks[depth])
  -- unpack is limited by Lua's stack.
  for first = 1, #gone, 1000 do
    redis.call('HDEL', trie, unpack(gone, first, math.min(first + 999, #gone)))
  end
end

if #KEYS > 2 then
  local wildcards, trie, routes = KEYS[3], KEYS[4], KEYS[5]
  local member, real = ARGV[3], ARGV[4]
  redis.call('ZSCORE', wildcards, member)
  if redis.call('SCARD', routes) == redis.call('SISMEMBER', routes, member) then
    if prune(trie, real) then return redis.error_reply('WRONGTYPE trie is damaged') end
  end
  redis.call('SREM', routes, member)
  redis.call('ZREM', wildcards, member)
end

if last_node then
  redis.call('ZREM', KEYS[2], filter)
end
return redis.call('SREM', KEYS[1], node)
