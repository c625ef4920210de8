-- Prelude: finding the filters in a trie that match a topic name; see trie_add.lua for what it holds.
--
-- Calls `found` with each real filter that matches. True when done; nil where the trie holds something else.
-- Cost: at most two HGET for each trie node that matches a beginning of the name. Such nodes are at most 2^i at
-- level i, and never more than the filters that begin like the name have levels: all other filters cost nothing.
local function trie_walk(trie, name, found)
  local root = redis.call('HGET', trie, 'root')
  if not root then
    return true
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
    found(table.concat(parts))
  end

  -- Depth first: follow the name's own levels, and put each `+` met on a stack for later. `start` is where the
  -- next level of the name begins, nil behind the last one.
  local values, starts, pluses = {root}, {1}, {}
  local top = 1
  while top > 0 do
    local value, start, plus = values[top], starts[top], pluses[top]
    top = top - 1
    while value do
      local id, literals, marks = string.match(value, '^(%d+) (%d+) (%d)$')
      if not id then return nil end
      if not start then
        if bit.band(marks, 1) ~= 0 then
          collect(plus, #name, '')
        end
        if bit.band(marks, 4) ~= 0 then
          collect(plus, #name, '/#')
        end
        break
      end

      local slash = string.find(name, '/', start, true)
      local stop = slash and slash - 1 or #name
      local after = slash and slash + 1
      -- Wildcards do not match a first level that begins with `$`.
      if marks ~= '0' and (start > 1 or string.sub(name, 1, 1) ~= '$') then
        if bit.band(marks, 4) ~= 0 then
          collect(plus, start - 2, start > 1 and '/#' or '#')
        end
        if bit.band(marks, 2) ~= 0 then
          top = top + 1
          values[top] = redis.call('HGET', trie, id .. '/+')
          starts[top] = after
          pluses[top] = {start, stop, plus}
        end
      end
      value = literals ~= '0' and redis.call('HGET', trie, id .. '/' .. string.sub(name, start, stop))
      start = after
    end
  end
  return true
end
