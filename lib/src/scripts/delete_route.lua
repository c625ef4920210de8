-- Deletes the route from a topic filter to a node. The last node of a filter takes the filter out of every
-- index, the last route of a real filter takes its branch out of the trie.
--
-- KEYS and ARGV: those of add_route.lua, without ARGV[3]:
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
-- As when adding, everything is read before anything is written, and each key is brought to the state
-- without the route whatever the others hold: deleting an absent route harms nothing.

local filter, node = ARGV[1], ARGV[2]
local known = redis.call('SISMEMBER', KEYS[1], node)
local last_node = redis.call('SCARD', KEYS[1]) == known
redis.call('ZSCORE', KEYS[2], filter)

if #KEYS > 2 then
  local wildcards, trie, routes = KEYS[3], KEYS[4], KEYS[5]
  local member, real = ARGV[3], ARGV[4]
  redis.call('ZSCORE', wildcards, member)

  if redis.call('SCARD', routes) == redis.call('SISMEMBER', routes, member) then
    local fields, ids, children, ends = {}, {}, {}, {}
    local parent = '0'
    for level in string.gmatch(real .. '/', '([^/]*)/') do
      local depth = #fields + 1
      fields[depth] = parent .. '/' .. level
      local value = redis.call('HGET', trie, fields[depth])
      ids[depth], children[depth], ends[depth] = string.match(value or '', '^(%d+) (%d+) ([01])$')
      parent = ids[depth]
      if not parent then
        break
      end
    end

    if parent and ends[#fields] == '1' then
      -- Up again, as long as nothing else needs the trie node.
      local depth, gone = #fields, {}
      ends[depth] = '0'
      while depth > 0 and children[depth] + 0 == 0 and ends[depth] == '0' do
        gone[#gone + 1] = fields[depth]
        depth = depth - 1
        if depth > 0 then
          children[depth] = children[depth] - 1
        end
      end
      if depth > 0 then
        redis.call('HSET', trie, fields[depth], ids[depth] .. ' ' .. children[depth] .. ' ' .. ends[depth])
      end
      -- unpack is limited by Lua's stack.
      for first = 1, #gone, 1000 do
        redis.call('HDEL', trie, unpack(gone, first, math.min(first + 999, #gone)))
      end
      -- Only `next` is left of an empty trie.
      if depth == 0 and redis.call('HLEN', trie) == 1 then
        redis.call('DEL', trie)
      end
    end
  end
  redis.call('SREM', routes, member)
  redis.call('ZREM', wildcards, member)
end

if last_node then
  redis.call('ZREM', KEYS[2], filter)
end
return redis.call('SREM', KEYS[1], node)
