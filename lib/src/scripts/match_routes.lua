-- Finds the routes whose filters match a topic name.
--
-- KEYS[1] route:{name}     KEYS[2] trie
-- ARGV[1] name             ARGV[2] what stands before the real filter in trie:{real filter}
--
-- Reply: filter, node, filter, node ... each pair once, in no order.
-- Cost: one HMGET for each level of the name until no filter begins like it, over the trie nodes that match
-- so far; then one SMEMBERS for each real filter that matches. No more trie nodes are visited than there are
-- beginnings of filters that match a beginning of the name, at most 2^i of them at level i: the number of
-- filters counts only where they all begin like the name.
--
-- See add_route.lua for what the trie holds.

local name, trie = ARGV[1], KEYS[2]
local reply = {}

-- A name can look like a shared filter, but no filter is meant that matches it.
if string.sub(name, 1, 7) ~= '$share/' then
  for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    reply[#reply + 1] = name
    reply[#reply + 1] = node
  end
end

-- HMGET in parts, since unpack is limited by Lua's stack.
local function fetch(fields)
  if #fields <= 1000 then
    return redis.call('HMGET', trie, unpack(fields))
  end
  local values = {}
  for first = 1, #fields, 1000 do
    for _, value in ipairs(redis.call('HMGET', trie, unpack(fields, first, math.min(first + 999, #fields)))) do
      values[#values + 1] = value
    end
  end
  return values
end

-- A step is {id, level, the step before}: the real filter is put together only for what matches.
local function collect(step)
  local levels = {}
  local at = step
  while at do
    levels[#levels + 1] = at[2]
    at = at[3]
  end
  for i = 1, math.floor(#levels / 2) do
    levels[i], levels[#levels + 1 - i] = levels[#levels + 1 - i], levels[i]
  end
  for _, member in ipairs(redis.call('SMEMBERS', ARGV[2] .. table.concat(levels, '/'))) do
    local filter, node = string.match(member, '^(.*)|(.*)$')
    reply[#reply + 1] = filter
    reply[#reply + 1] = node
  end
end

local root = {'0'}
local frontier = {root}
local start = 1
while #frontier > 0 do
  -- The next level of the name, or nil behind the last one, where `#` still matches its parent.
  local level
  if start then
    local slash = string.find(name, '/', start, true)
    level = string.sub(name, start, slash and slash - 1 or -1)
    start = slash and slash + 1
  end
  local wanted = {'#', '+', level}
  if not level then
    wanted = {'#'}
  elseif frontier[1] == root and string.sub(level, 1, 1) == '$' then
    wanted = {level}
  end

  local fields = {}
  for _, step in ipairs(frontier) do
    for _, child in ipairs(wanted) do
      fields[#fields + 1] = step[1] .. '/' .. child
    end
  end
  local values = fetch(fields)

  local next_frontier = {}
  for i, step in ipairs(frontier) do
    for j, child in ipairs(wanted) do
      local value = values[(i - 1) * #wanted + j]
      if value then
        local id, children, ends = string.match(value, '^(%d+) (%d+) ([01])$')
        local below = {id, child, step[1] ~= '0' and step or nil}
        if child == '#' or (not start and level) then
          -- Here the filter must end, or the `#` below it.
          if ends == '1' then
            collect(below)
          end
        end
        if child ~= '#' and children and children ~= '0' then
          next_frontier[#next_frontier + 1] = below
        end
      end
    end
  end
  frontier = next_frontier
  if not level then
    break
  end
end
return reply
