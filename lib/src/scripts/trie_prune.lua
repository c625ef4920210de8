-- Prelude: taking a filter out of a trie; see trie_add.lua for what it holds.
--
-- Reads what it takes to take out the end of a real filter, and the trie nodes that nothing else needs, and answers
-- the function that does it; nil where the trie holds something else. Cost: O(levels of the filter).
local function nothing() end

local function trie_prune(trie, real)
  local value = redis.call('HGET', trie, 'root')
  if not value then
    return nothing
  end
  local fields, levels, ids, literals, marks = {'root'}, {}, {}, {}, {}
  ids[1], literals[1], marks[1] = string.match(value, '^(%d+) (%d+) (%d)$')
  if not ids[1] then return nil end
  local depth, mark = 1, 1
  for level in string.gmatch(real .. '/', '([^/]*)/') do
    if level == '#' then
      mark = 4
    else
      local field = ids[depth] .. '/' .. level
      value = redis.call('HGET', trie, field)
      if not value then
        return nothing
      end
      depth = depth + 1
      fields[depth], levels[depth] = field, level
      ids[depth], literals[depth], marks[depth] = string.match(value, '^(%d+) (%d+) (%d)$')
      if not ids[depth] then return nil end
    end
  end

  return function()
    local gone = {}
    marks[depth] = bit.band(marks[depth], 7 - mark)
    while literals[depth] + 0 == 0 and marks[depth] + 0 == 0 do
      if depth == 1 then
        -- No filter is left: only `next` would stay behind, or the mark that others are to be restored.
        if redis.call('HEXISTS', trie, 'restoring') == 0 then
          redis.call('DEL', trie)
          return
        end
        gone[#gone + 1], gone[#gone + 2] = 'root', 'next'
        break
      end
      gone[#gone + 1] = fields[depth]
      depth = depth - 1
      if levels[depth + 1] == '+' then
        marks[depth] = bit.band(marks[depth], 5)
      else
        literals[depth] = literals[depth] - 1
      end
    end
    if gone[#gone] ~= 'next' then
      redis.call('HSET', trie, fields[depth], ids[depth] .. ' ' .. literals[depth] .. ' ' .. marks[depth])
    end
    -- unpack is limited by Lua's stack.
    for first = 1, #gone, 1000 do
      redis.call('HDEL', trie, unpack(gone, first, math.min(first + 999, #gone)))
    end
  end
end

-- The same for one of several members that have that real filter, which the set `members` holds: the last one takes it
-- out of the trie. What takes no memory is written first.
local function trie_leave(trie, members, member, real)
  local prune = nothing
  if redis.call('SCARD', members) == redis.call('SISMEMBER', members, member) then
    prune = trie_prune(trie, real)
  end
  return prune and function()
    redis.call('SREM', members, member)
    prune()
  end
end
