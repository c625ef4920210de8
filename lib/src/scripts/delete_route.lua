-- Deletes the route from a topic filter to a node. The last node of a filter takes the filter out of every
-- index, the last route of a real filter takes its branch out of the trie.
--
-- KEYS[1] route:{filter}   KEYS[2] sync:routes  KEYS[3] feed    KEYS[4] leases
-- and only for a wildcard or shared filter:
-- KEYS[5] route:wildcards  KEYS[6] trie         KEYS[7] trie:{real filter}
-- ARGV[1] filter  ARGV[2] node  ARGV[3] now, ms  ARGV[4] now, us  ARGV[5] a number used once
-- ARGV[6] length of the feed
-- ARGV[7] empty, or the beat that the node's lease must still have: what purges a dead node does not purge one
--         that has come back
-- and only for a wildcard or shared filter:
-- ARGV[8] filter|node      ARGV[9] real filter
--
-- Reply: 1 if the route was there, 0 if not, 2 if the node is alive; the feed's last version and its nonce.
-- Cost: O(levels of the filter).
--
-- As in add_route.lua, everything is read before anything is written, and each key is brought to the state without
-- the route whatever the others hold: deleting an absent route harms nothing. What takes no memory is written
-- first: a full server refuses a script only at its first command.

local filter, node, now = ARGV[1], ARGV[2], ARGV[3]
local feed = KEYS[3]
local known = redis.call('SISMEMBER', KEYS[1], node)
local left = redis.call('SCARD', KEYS[1]) - known
local indexed = redis.call('ZSCORE', KEYS[2], filter)
local version, nonce = feed_head(feed)
if ARGV[7] ~= '' and (redis.call('HGET', KEYS[4], node .. '|beat') or '') ~= ARGV[7] then
  return {2, version, nonce}
end

local leave_trie
if #KEYS > 4 then
  redis.call('ZSCORE', KEYS[5], ARGV[8])
  leave_trie = trie_leave(KEYS[6], KEYS[7], ARGV[8], ARGV[9])
  if not leave_trie then return redis.error_reply('WRONGTYPE trie is damaged') end
end

redis.call('SREM', KEYS[1], node)
if leave_trie then
  redis.call('ZREM', KEYS[5], ARGV[8])
  leave_trie()
end
if left == 0 then
  redis.call('ZREM', KEYS[2], filter)
elseif not indexed then
  redis.call('ZADD', KEYS[2], now, filter)
end
if known == 1 then
  local failure
  version, nonce, failure = feed_append(feed, version, nonce, ARGV[5], ARGV[4], ARGV[6], '-r', filter, node, '', left)
  if failure then return failure end
end
return {known, version, nonce}
