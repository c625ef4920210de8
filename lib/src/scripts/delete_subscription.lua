-- Deletes a persistent client's subscription. The last client of a filter takes the filter out of the index, the
-- last filter with a real filter takes its branch out of the trie.
--
-- KEYS[1] psub:{filter}    KEYS[2] sync:psubs   KEYS[3] feed
-- and only for a wildcard or shared filter:
-- KEYS[4] ptrie            KEYS[5] ptrie:{real filter}
-- ARGV[1] filter  ARGV[2] client id  ARGV[3] now, ms  ARGV[4] now, us  ARGV[5] a number used once
-- ARGV[6] length of the feed
-- ARGV[7] the options that it must have, or '' where they do not matter
-- and only for a wildcard or shared filter:
-- ARGV[8] real filter
--
-- Reply: 1 if it was there, 0 if not, -1 if it is there with other options and stays; the feed's last version and
-- its nonce.
-- Cost: O(levels of the filter).
--
-- As in delete_route.lua: everything is read before anything is written, and what takes no memory is written first.

local filter, client, now = ARGV[1], ARGV[2], ARGV[3]
local feed = KEYS[3]
local options = redis.call('HGET', KEYS[1], client)
local known = options and 1 or 0
local left = redis.call('HLEN', KEYS[1]) - known
local indexed = redis.call('ZSCORE', KEYS[2], filter)
local version, nonce = feed_head(feed)
if options and ARGV[7] ~= '' and options ~= ARGV[7] then return {-1, version, nonce} end

local leave_trie
if #KEYS > 3 and left == 0 then
  leave_trie = trie_leave(KEYS[4], KEYS[5], filter, ARGV[8])
  if not leave_trie then return redis.error_reply('WRONGTYPE trie is damaged') end
end

redis.call('HDEL', KEYS[1], client)
if leave_trie then leave_trie() end
if left == 0 then
  redis.call('ZREM', KEYS[2], filter)
elseif not indexed then
  redis.call('ZADD', KEYS[2], now, filter)
end
if known == 1 then
  local failure
  version, nonce, failure =
    feed_append(feed, version, nonce, ARGV[5], ARGV[4], ARGV[6], '-s', filter, client, '', left)
  if failure then return failure end
end
return {known, version, nonce}
