-- Adds a persistent client's subscription to a topic filter, or changes its options.
--
-- KEYS[1] psub:{filter}    KEYS[2] sync:psubs   KEYS[3] feed
-- and only for a wildcard or shared filter:
-- KEYS[4] ptrie            KEYS[5] ptrie:{real filter}
-- ARGV[1] filter  ARGV[2] client id  ARGV[3] now, ms  ARGV[4] now, us  ARGV[5] a number used once
-- ARGV[6] length of the feed
-- ARGV[7] options
-- and only for a wildcard or shared filter:
-- ARGV[8] real filter
--
-- Reply: 1 if it is new or its options are, 0 if not; the feed's last version and its nonce.
-- Cost: O(levels of the filter).
--
-- As in add_route.lua, everything is read before anything is written, and doing it again repairs what is missing.

local filter, client, now, options = ARGV[1], ARGV[2], ARGV[3], ARGV[7]
local feed = KEYS[3]
local before = redis.call('HGET', KEYS[1], client)
local indexed = redis.call('ZSCORE', KEYS[2], filter)
local version, nonce = feed_head(feed)

local write_trie
if #KEYS > 3 then
  write_trie = trie_join(KEYS[4], KEYS[5], filter, ARGV[8])
  if not write_trie then return redis.error_reply('WRONGTYPE trie is damaged') end
end

local changes = before ~= options or not indexed
if changes then
  local failure
  local count = redis.call('HLEN', KEYS[1]) + (before and 0 or 1)
  version, nonce, failure =
    feed_append(feed, version, nonce, ARGV[5], ARGV[4], ARGV[6], '+s', filter, client, options, count)
  if failure then return failure end
end
if write_trie then write_trie() end
if not indexed then redis.call('ZADD', KEYS[2], now, filter) end
redis.call('HSET', KEYS[1], client, options)
return {changes and 1 or 0, version, nonce}
