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
-- The trie is one hash. Its nodes are the beginnings of real filters; a `#` is no node of its own but a mark of
-- the one that it follows. The field `{id of the parent}/{level}`, or `root` for the empty beginning, holds
-- `{id} {children that are no wildcard} {marks}`. Marks are the sum of 1 if a real filter ends here, 2 if there
-- is a child `+`, 4 if a real filter goes on with `#` and ends. The field `next` holds the highest id given so
-- far. So a filter takes memory for its own levels alone, however deep it is.
--
-- Everything is read before anything is written: a foreign value at any of the keys fails the script while
-- nothing has changed yet. And what is there is looked at key by key, so that adding a route again repairs
-- whatever key of it went missing.

local filter, node, now = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('SISMEMBER', KEYS[1], node)
local indexed = redis.call('ZSCORE', KEYS[2], filter)

if #KEYS > 2 then
  local wildcards, trie, routes = KEYS[3], KEYS[4], KEYS[5]
  local member, real = ARGV[4], ARGV[5]
  redis.call('ZSCORE', wildcards, member)
  redis.call('SISMEMBER', routes, member)

  -- Down to the last trie node that exists; what is left over are the levels to make.
  local field, id, literals, marks = 'root', '0', '0', '0'
  local new_levels, mark = {}, 1
  local value = redis.call('HGET', trie, field)
  if value then
    id, literals, marks = string.match(value, '^(%d+) (%d+) (%d)$')
    if not id then return redis.error_reply('WRONGTYPE trie is damaged') end
  end
  for level in string.gmatch(real .. '/', '([^/]*)/') do
    if level == '#' then
      mark = 4
    elseif #new_levels > 0 then
      new_levels[#new_levels + 1] = level
    else
      value = redis.call('HGET', trie, id .. '/' .. level)
      if value then
        field = id .. '/' .. level
        id, literals, marks = string.match(value, '^(%d+) (%d+) (%d)$')
        if not id then return redis.error_reply('WRONGTYPE trie is damaged') end
      else
        new_levels[1] = level
      end
    end
  end

  -- The highest id first: nothing but a foreign value at `next` can fail from here on.
  local count = #new_levels
  local new_id = count > 0 and redis.call('HINCRBY', trie, 'next', count) - count
  local writes = {}
  for i = 0, count do
    local level = new_levels[i + 1]
    if not level then
      marks = bit.bor(marks, mark)
    elseif level == '+' then
      marks = bit.bor(marks, 2)
    else
      literals = literals + 1
    end
    writes[#writes + 1] = field
    writes[#writes + 1] = id .. ' ' .. literals .. ' ' .. marks
    -- unpack is limited by Lua's stack.
    if not level or #writes == 1000 then
      redis.call('HSET', trie, unpack(writes))
      writes = {}
    end
    if level then
      new_id = new_id + 1
      field, id, literals, marks = id .. '/' .. level, new_id, 0, 0
    end
  end
  redis.call('SADD', routes, member)
  redis.call('ZADD', wildcards, 'NX', now, member)
end

if known == 0 or not indexed then
  redis.call('ZADD', KEYS[2], now, filter)
end
return redis.call('SADD', KEYS[1], node)
