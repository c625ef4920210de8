-- Adds the route from a topic filter to a node.
--
-- KEYS[1] route:{filter}   KEYS[2] sync:routes
-- and only for a wildcard or shared filter:
-- KEYS[3] route:wildcards  KEYS[4] trie         KEYS[5] trie:{real filter}
-- ARGV[1] filter  ARGV[2] node  ARGV[3] now, ms
-- and only for a wildcard or shared filter:
-- ARGV[4] filter|node      ARGV[5] real filter: the filter without $share/Group/
--
-- Reply: 1 if the route is new, 0 if it was there.
-- Cost: O(levels of the filter).
--
-- The trie is one hash. The field `{id of the parent}/{level}` (the root's id is 0) holds the trie node
-- `{id} {number of children} {1 if a route's real filter ends here, else 0}`, so that a filter takes
-- memory for its own levels alone, however deep it is; the field `next` holds the highest id given so far.
--
-- Everything is read before anything is written: a foreign value at any of the keys fails the script while
-- nothing has changed yet. And what is there is looked at key by key, so that adding a route again repairs
-- whatever part of it went missing.

local filter, node, now = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('SISMEMBER', KEYS[1], node)
local indexed = redis.call('ZSCORE', KEYS[2], filter)

if #KEYS > 2 then
  local wildcards, trie, routes = KEYS[3], KEYS[4], KEYS[5]
  local member, real = ARGV[4], ARGV[5]
  redis.call('ZSCORE', wildcards, member)
  redis.call('SISMEMBER', routes, member)

  -- Down along the trie nodes that exist; what is left over are the levels to make.
  local parent, parent_field, parent_children, parent_ends = '0', nil, nil, nil
  local new_levels = {}
  for level in string.gmatch(real .. '/', '([^/]*)/') do
    local found
    if #new_levels == 0 then
      local field = parent .. '/' .. level
      local value = redis.call('HGET', trie, field)
      local id, children, ends = string.match(value or '', '^(%d+) (%d+) ([01])$')
      if id then
        parent, parent_field, parent_children, parent_ends = id, field, children, ends
        found = true
      end
    end
    if not found then
      new_levels[#new_levels + 1] = level
    end
  end

  if #new_levels > 0 then
    local id = redis.call('HINCRBY', trie, 'next', #new_levels) - #new_levels
    if parent_field then
      redis.call('HSET', trie, parent_field, parent .. ' ' .. (parent_children + 1) .. ' ' .. parent_ends)
    end
    local writes = {}
    for i, level in ipairs(new_levels) do
      id = id + 1
      local last = i == #new_levels
      writes[#writes + 1] = parent .. '/' .. level
      writes[#writes + 1] = id .. (last and ' 0 1' or ' 1 0')
      parent = id
      -- unpack is limited by Lua's stack.
      if last or #writes == 1000 then
        redis.call('HMSET', trie, unpack(writes))
        writes = {}
      end
    end
  elseif parent_ends == '0' then
    redis.call('HSET', trie, parent_field, parent .. ' ' .. parent_children .. ' 1')
  end
  redis.call('SADD', routes, member)
  redis.call('ZADD', wildcards, 'NX', now, member)
end

if known == 0 or not indexed then
  redis.call('ZADD', KEYS[2], now, filter)
end
return redis.call('SADD', KEYS[1], node)
