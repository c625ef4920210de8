-- Adds the route from a topic filter to a node.
--
-- KEYS[1] route:{filter}   KEYS[2] sync:routes  KEYS[3] feed    KEYS[4] leases
-- and only for a wildcard or shared filter:
-- KEYS[5] route:wildcards  KEYS[6] trie         KEYS[7] trie:{real filter}
-- ARGV[1] filter  ARGV[2] node  ARGV[3] now, ms  ARGV[4] now, us  ARGV[5] a number used once
-- ARGV[6] length of the feed
-- ARGV[7] the life of the node, if it adds the route itself: that proves it alive. With a `=` before it the route is
--         added only while the lease is not of another life
-- and only for a wildcard or shared filter:
-- ARGV[8] filter|node      ARGV[9] real filter: the filter without $share/Group/
--
-- Reply: 1 if the route is new, 0 if it was there, 2 if the lease is of another life; the feed's last version and its nonce.
-- Cost: O(levels of the filter).
--
-- Everything is read before anything is written: a foreign value at any of the keys fails the script while
-- nothing has changed yet. And what is there is looked at key by key, so that adding a route again repairs
-- whatever key of it went missing. A filter keeps its place in the index while it has nodes, so that whoever reads
-- the index in pages misses none.

local filter, node, now = ARGV[1], ARGV[2], ARGV[3]
local feed = KEYS[3]
local known = redis.call('SISMEMBER', KEYS[1], node)
local indexed = redis.call('ZSCORE', KEYS[2], filter)
local version, nonce = feed_head(feed)
local lease = redis.call('HGET', KEYS[4], node)
local is_bound, life = string.match(ARGV[7], '^(=?)(.*)$')
local beats = life ~= '' and lease and string.sub(lease, 1, #life + 1) == life .. ' '
if is_bound == '=' and lease and not beats then return {2, version, nonce} end

local write_trie
if #KEYS > 4 then
  redis.call('ZSCORE', KEYS[5], ARGV[8])
  write_trie = trie_join(KEYS[6], KEYS[7], ARGV[8], ARGV[9])
  if not write_trie then return redis.error_reply('WRONGTYPE trie is damaged') end
end

local changes = known == 0 or not indexed
if changes then
  local failure
  local count = redis.call('SCARD', KEYS[1]) + 1 - known
  version, nonce, failure = feed_append(feed, version, nonce, ARGV[5], ARGV[4], ARGV[6], '+r', filter, node, '', count)
  if failure then return failure end
end
if write_trie then
  write_trie()
  redis.call('ZADD', KEYS[5], 'NX', now, ARGV[8])
end
if not indexed then redis.call('ZADD', KEYS[2], now, filter) end
if beats then redis.call('HINCRBY', KEYS[4], node .. '|beat', 1) end
return {redis.call('SADD', KEYS[1], node), version, nonce}
