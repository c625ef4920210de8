-- Raises a session's epoch and reads the session.
-- KEYS: session, epoch
-- ARGV: 1 how long the epoch outlives the session (ms)
-- Answers {epoch, data or nil}. Cost: O(1), 5 commands.
local call = redis.call
local stored = call('GET', KEYS[2])
if stored and not is_epoch(stored) then return redis.error_reply('WRONGTYPE not an epoch') end
local data = call('HGET', KEYS[1], 'data')
local left = call('PTTL', KEYS[1])
local epoch = call('INCR', KEYS[2])
if left == -1 then
  call('PERSIST', KEYS[2])
else
  call('PEXPIRE', KEYS[2], math.max(left, 0) + tonumber(ARGV[1]))
end
return {epoch, data}
