-- Deletes a session; its epoch stays for a while, so that a writer of before cannot bring it back.
-- KEYS: session, epoch, sync:sessions, expiry:sessions
-- ARGV: 1 client id, 2 epoch or '', 3 how long the epoch stays (ms)
-- Answers 0, or what fence.lua answers. Cost: O(log N), 4 to 5 commands.
local call = redis.call
local stored = call('GET', KEYS[2])
local no = refusal(stored, ARGV[2])
if no then return no end
call('DEL', KEYS[1])
call('ZREM', KEYS[3], ARGV[1])
call('ZREM', KEYS[4], ARGV[1])
if ARGV[2] ~= '' then
  call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
return 0
