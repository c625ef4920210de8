-- Notes which packet ids messages were sent with. Of a message that is gone nothing is noted.
-- KEYS: epoch, then each message and the key of its note
-- ARGV: 1 epoch or '', 2 how long a note lives (ms), then the notes, in the keys' order
-- Answers 0, or what fence.lua answers. Cost: O(1) a message, 2 commands.
local call = redis.call
local no = refusal(call('GET', KEYS[1]), ARGV[1])
if no then return no end
for i = 1, (#KEYS - 1) / 2 do
  if call('EXISTS', KEYS[2 * i]) == 1 then
    call('SET', KEYS[2 * i + 1], ARGV[2 + i], 'PX', ARGV[2])
  end
end
return 0
