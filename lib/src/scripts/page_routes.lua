-- Reads a page of the route table: filters in the order of their index, with all nodes or clients of each.
--
-- KEYS[1] sync:routes or sync:psubs             KEYS[2] feed
-- ARGV[1] `r` for routes, `s` for subscriptions
-- ARGV[2] what stands before the filter in route:{filter} or psub:{filter}
-- ARGV[3] 1 where `%` is encoded in that key
-- ARGV[4] most filters     ARGV[5] most nodes or clients of one filter: of more, none are read here
-- ARGV[6], ARGV[7] the last filter of the page before and its score; empty for the first page
--
-- Reply: the feed's last version and its nonce; the last filter and its score, or two empty strings at the end;
-- then for each filter: itself, the number of strings that follow (-1: too many to be read here), nodes, or clients
-- each with its options.
-- Cost: O(filters and nodes of the page + log of the index).

local index, feed = KEYS[1], KEYS[2]
local is_routes = ARGV[1] == 'r'
local first = 0
if ARGV[7] ~= '' then
  -- Where the last filter has gone, those of its score may be read again: it harms nothing.
  if redis.call('ZSCORE', index, ARGV[6]) == ARGV[7] then
    first = redis.call('ZRANK', index, ARGV[6]) + 1
  else
    first = redis.call('ZCOUNT', index, '-inf', '(' .. ARGV[7])
  end
end
local page = redis.call('ZRANGE', index, first, first + ARGV[4] - 1, 'WITHSCORES')
local version, nonce = feed_head(feed)
local reply = {version, nonce, '', ''}
for i = 1, #page, 2 do
  local filter = page[i]
  local key = filter
  if ARGV[3] == '1' then
    key = filter == 'wildcards' and '%77ildcards' or string.gsub(filter, '%%', '%%25')
  end
  key = ARGV[2] .. key
  local count = redis.pcall(is_routes and 'SCARD' or 'HLEN', key)
  -- A value of another type, which is moved away when the filter is used, holds nobody up.
  local is_foreign = type(count) == 'table' and string.find(count.err, 'WRONGTYPE', 1, true)
  if type(count) == 'table' and not is_foreign then return count end
  -- A slot on its way: fails the script where the key has yet to come.
  if count == 0 then is_missing(key, index) end
  local size = #reply
  reply[size + 1] = filter
  if is_foreign then
    reply[size + 2] = 0
  elseif count > tonumber(ARGV[5]) then
    reply[size + 2] = -1
  else
    local members = redis.call(is_routes and 'SMEMBERS' or 'HGETALL', key)
    reply[size + 2] = #members
    for n, member in ipairs(members) do reply[size + 2 + n] = member end
  end
end
if #page == 2 * ARGV[4] then
  reply[3], reply[4] = page[#page - 1], page[#page]
end
return reply
