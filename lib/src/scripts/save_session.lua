-- Writes a session.
-- KEYS: session, epoch, sync:sessions, expiry:sessions
-- ARGV: 1 client id, 2 data, 3 now (s), 4 expires_at (s), 5 now (ms, with a fraction), 6 expires_at (ms, or +inf),
--       7 node, 8 epoch or '', 9 the epoch's time to live (ms) or ''
-- Answers 0, or what fence.lua answers. Cost: O(log N), 5 commands; one more for a new session, and for one that is claimed.
local call = redis.call
local no = refusal(call('GET', KEYS[2]), ARGV[8])
if no then return no end
local new = call('HSET', KEYS[1], 'data', ARGV[2], 'updated_at', ARGV[3], 'expires_at', ARGV[4], 'node', ARGV[7])
if new > 0 then
  call('HSETNX', KEYS[1], 'created_at', ARGV[3])
end
if ARGV[6] == '+inf' then
  call('PERSIST', KEYS[1])
else
  call('PEXPIREAT', KEYS[1], ARGV[6])
end
call('ZADD', KEYS[3], ARGV[5], ARGV[1])
call('ZADD', KEYS[4], ARGV[6], ARGV[1])
if ARGV[8] ~= '' then
  if ARGV[9] == '' then
    call('SET', KEYS[2], ARGV[8])
  else
    call('SET', KEYS[2], ARGV[8], 'PX', ARGV[9])
  end
end
return 0
