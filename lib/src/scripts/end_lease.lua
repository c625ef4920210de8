-- Forgets the lease of a dead node whose routes are purged.
--
-- KEYS[1] leases   ARGV[1] node   ARGV[2] the beat that it must still have
--
-- Reply: 1 if it was forgotten, 0 if the node is alive. Cost: O(1).

if redis.call('HGET', KEYS[1], ARGV[1] .. '|beat') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1], ARGV[1] .. '|beat')
return 1
