-- Removes a client's messages, 200 at most.
-- KEYS: epoch, msgq, sync:messages, expiry:messages
-- ARGV: 1 epoch or '', 2 what stands before the client's message ids in a member,
--       3 what stands before a member in a message's key, 4 in the key of the note on its packet id
-- Answers how many are left, or what fence.lua answers (-1, or the epoch as a string).
-- Cost: O(200 log N), under a millisecond.
local call = redis.call
local no = refusal(call('GET', KEYS[1]), ARGV[1])
if no then return no end
local ids = call('ZRANGE', KEYS[2], 0, 199)
if #ids == 0 then return 0 end
local keys, notes, members = {}, {}, {}
for i, id in ipairs(ids) do
  members[i] = ARGV[2] .. id
  keys[i] = ARGV[3] .. members[i]
  notes[i] = ARGV[4] .. members[i]
end
-- In a cluster, either all are here, or nothing is done; see cluster.lua.
if is_clustered(KEYS[3]) then call('EXISTS', KEYS[2], unpack(keys)) end
call('DEL', unpack(notes))
call('DEL', unpack(keys))
call('ZREM', KEYS[2], unpack(ids))
call('ZREM', KEYS[3], unpack(members))
call('ZREM', KEYS[4], unpack(members))
return call('ZCARD', KEYS[2])
