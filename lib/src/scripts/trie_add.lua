-- Prelude: adding a filter to a trie.
--
-- The trie is one hash. Its nodes are the beginnings of real filters; a `#` is no node of its own but a mark of
-- the one that it follows. The field `{id of the parent}/{level}`, or `root` for the empty beginning, holds
-- `{id} {children that are no wildcard} {marks}`. Marks are the sum of 1 if a real filter ends here, 2 if there
-- is a child `+`, 4 if a real filter goes on with `#` and ends. The field `next` holds the highest id given so
-- far. So a filter takes memory for its own levels alone, however deep it is. While what a foreign value took from
-- the trie is put back, `restoring` holds the last filter that was.
--
-- Reads what adding a real filter takes, and answers the function that writes it; nil where the trie holds
-- something else. Cost: O(levels of the filter).
local function trie_add(trie, real)
  -- Down to the last trie node that exists; what is left over are the levels to make.
  local field, id, literals, marks = 'root', '0', '0', '0'
  local new_levels, mark = {}, 1
  local value = redis.call('HGET', trie, field)
  if value then
    id, literals, marks = string.match(value, '^(%d+) (%d+) (%d)$')
    if not id then return nil end
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
        if not id then return nil end
      else
        new_levels[1] = level
      end
    end
  end

  return function()
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
  end
end

-- The same for one of several members that have that real filter, which the set `members` holds.
local function trie_join(trie, members, member, real)
  redis.call('SISMEMBER', members, member)
  local write = trie_add(trie, real)
  return write and function()
    write()
    redis.call('SADD', members, member)
  end
end
