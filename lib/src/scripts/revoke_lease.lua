-- Takes the lease of a node that lags: whoever waits for all nodes to apply a change waits no more for it.
--
-- KEYS[1] leases
-- ARGV[1] node   ARGV[2] its life   ARGV[3] the version that it has not applied
--
-- Reply: 1 if the lease was taken, 0 if the node has applied the version or holds no lease. Cost: O(1).

local lease = redis.call('HGET', KEYS[1], ARGV[1])
local life, applied = string.match(lease or '', '^(%S+) (%d+)$')
if life ~= ARGV[2] or tonumber(applied) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], life .. ' -')
return 1
