-- Keeps the lease of a node on a route shard, and tells all leases.
--
-- KEYS[1] leases   KEYS[2] feed   KEYS[3] sync:routes   KEYS[4] sync:psubs
-- ARGV[1] node     ARGV[2] its life: a word that each start has anew
-- ARGV[3] the feed's version that it has applied, or empty where it is not up to date
-- ARGV[4] 1 to take the lease of another life: of a start before this one
-- ARGV[5] a number to begin the beat with
--
-- `{node}` is `{life} {version}`, or `{life} -` where the node is not up to date; `{node}|beat` only ever goes up: by
-- that it is told from a dead one.
--
-- Reply: `held`, `granted` if the lease was not held before, `late` if the node is not up to date, `superseded` by
-- another life; the feed's last version and its nonce; the number of filters with routes, and with subscriptions;
-- then HGETALL of the leases.
-- Cost: O(nodes).

local leases, node, life, applied = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local lease = redis.call('HGET', leases, node)
local version, nonce = feed_head(KEYS[2])
local status
local own = lease and string.sub(lease, 1, #life + 1) == life .. ' '
if lease and not own and ARGV[4] ~= '1' then
  status = 'superseded'
else
  if redis.call('HEXISTS', leases, node .. '|beat') == 0 then
    redis.call('HSET', leases, node .. '|beat', ARGV[5])
  end
  redis.call('HINCRBY', leases, node .. '|beat', 1)
  if applied == '' then
    status = 'late'
    if not own then redis.call('HSET', leases, node, life .. ' -') end
  else
    status = own and lease ~= life .. ' -' and 'held' or 'granted'
    redis.call('HSET', leases, node, life .. ' ' .. applied)
  end
end
return {status, version, nonce, redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('HGETALL', leases)}
