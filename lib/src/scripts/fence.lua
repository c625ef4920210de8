-- Prelude: fencing. An epoch is an integer that Lua holds exactly.
local function is_epoch(text)
  return string.match(text, '^%d+$') and tonumber(text) < 2 ^ 53
end

-- A session that was claimed has an epoch; whoever writes to it must name that
-- epoch or a later one. Answers nil when the write may go on, else what the script must answer:
-- -1 (no epoch was named), the stored epoch (a lower one was named), or an error (that is no epoch).
local function refusal(stored, given)
  if not stored then return nil end
  if not is_epoch(stored) then return redis.error_reply('WRONGTYPE not an epoch') end
  if given == '' then return -1 end
  if tonumber(given) < tonumber(stored) then return stored end
  return nil
end
