-- Prelude: finding the filters in a trie that match a topic name; see trie_add.lua for what it holds.
--
-- Calls `found` with each real filter that matches, which answers how many results that has. Answers true and where
-- to go on: empty at the end, else there were more than `limit` nodes and results; `from` is such a place, or empty.
-- Answers nil and the error where the trie holds something else, or not yet all again. The walk is in an order, so
-- that it goes on rightly whatever was changed meanwhile: a node before those below it, the name's own level before
-- `+`.
-- Cost: at most two HGET for each trie node that matches a beginning of the name, and for each level on the way to
-- where it goes on. Such nodes are at most 2^i at level i, and never more than the filters that begin like the name
-- have levels: all other filters cost nothing.
local function trie_walk(trie, name, from, limit, found)
  local root = redis.call('HGET', trie, 'root')
  if redis.call('HGET', trie, 'restoring') then
    return nil, 'WRONGTYPE trie is being restored'
  end
  if not root then
    return true, ''
  end

  -- A beginning of a filter is that of the name up to a position, but for the levels where it has a `+`: they
  -- are a list, last first, of {first byte, last byte, those before}. The filter is put together only where one
  -- matches, since doing it at each level would take the square of a deep name's length.
  local function collect(plus, stop, tail)
    local parts = {tail}
    while plus do
      parts[#parts + 1] = string.sub(name, plus[2] + 1, stop)
      parts[#parts + 1] = '+'
      stop, plus = plus[1] - 1, plus[3]
    end
    if stop > 0 then
      parts[#parts + 1] = string.sub(name, 1, stop)
    end
    for i = 1, math.floor(#parts / 2) do
      parts[i], parts[#parts + 1 - i] = parts[#parts + 1 - i], parts[i]
    end
    return found(table.concat(parts))
  end

  -- A place is the byte where the next level of the name begins, 0 behind the last one, and those of the levels
  -- where the filters have a `+`.
  local function place(start, plus)
    local parts = {start or 0}
    while plus do
      parts[#parts + 1] = plus[1]
      plus = plus[3]
    end
    return table.concat(parts, ' ')
  end
  local goal, is_plus
  if from ~= '' then
    is_plus = {}
    for number in string.gmatch(from, '%d+') do
      if not goal then goal = tonumber(number) else is_plus[tonumber(number)] = true end
    end
  end

  -- Depth first: follow the name's own levels, and put each `+` met on a stack for later. `start` is where the
  -- next level of the name begins, nil behind the last one.
  local values, starts, pluses = {root}, {1}, {}
  local top, steps = 1, 0
  while top > 0 do
    local value, start, plus = values[top], starts[top], pluses[top]
    top = top - 1
    local is_on_way = false
    while value do
      if goal == (start or 0) then goal = nil end
      if not goal then
        if steps >= limit then return true, place(start, plus) end
        steps = steps + 1
      end
      local id, literals, marks = string.match(value, '^(%d+) (%d+) (%d)$')
      if not id then return nil, 'WRONGTYPE trie is damaged' end
      if not start then
        if bit.band(marks, 1) ~= 0 then
          steps = steps + collect(plus, #name, '')
        end
        if bit.band(marks, 4) ~= 0 then
          steps = steps + collect(plus, #name, '/#')
        end
        break
      end

      local slash = string.find(name, '/', start, true)
      local stop = slash and slash - 1 or #name
      local after = slash and slash + 1
      local goes_by_plus = goal and is_plus[start]
      -- Wildcards do not match a first level that begins with `$`.
      if marks ~= '0' and (start > 1 or string.sub(name, 1, 1) ~= '$') then
        if bit.band(marks, 4) ~= 0 and not goal then
          steps = steps + collect(plus, start - 2, start > 1 and '/#' or '#')
        end
        if bit.band(marks, 2) ~= 0 then
          is_on_way = goes_by_plus
          top = top + 1
          values[top] = redis.call('HGET', trie, id .. '/+')
          starts[top] = after
          pluses[top] = {start, stop, plus}
        end
      end
      if goes_by_plus then break end
      value = literals ~= '0' and redis.call('HGET', trie, id .. '/' .. string.sub(name, start, stop))
      start = after
    end
    -- The rest of the way is no longer there: what comes next in the order is on the stack.
    if not is_on_way then goal = nil end
  end
  return true, ''
end
