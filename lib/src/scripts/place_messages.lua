-- Gives messages that were stored again the place that their timestamps ask for; a repeated store
-- keeps its first place within its millisecond.
-- KEYS: msgq
-- ARGV: for each message: id, score, its milliseconds
-- Answers 0. Cost: O(log N) a message.
local call = redis.call
for i = 1, #ARGV, 3 do
  local score = call('ZSCORE', KEYS[1], ARGV[i])
  if score and not keeps_place(score, ARGV[i + 2], ARGV[i + 1]) then
    call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
  end
end
return 0
