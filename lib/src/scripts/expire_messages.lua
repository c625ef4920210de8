-- Prelude: messages that have expired.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Takes expired messages out of queues and indexes, 50 at most, and answers how many it saw.
-- A message that lives on all the same is noted with its true expiry.
--
-- They are any client's: so what a stranger left among them must not fail the script. A member is
-- `{client}:{id}`, with `%` and `:` of the client id encoded; one without a colon is none of ours and goes.
-- A foreign value at a queue's key is met when its own client's messages are next asked for.
local function expire_messages(index, expiry, prefix)
  local call = redis.call
  local now = now_ms()
  local seen = call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 50)
  for _, member in ipairs(seen) do
    local left = call('PTTL', prefix .. 'msg:' .. member)
    local colon = string.find(member, ':', 1, true)
    if left == -2 or not colon then
      if colon then
        local client = string.gsub(string.sub(member, 1, colon - 1), '%%3A', ':')
        client = string.gsub(client, '%%25', '%%')
        redis.pcall('ZREM', prefix .. 'msgq:' .. client, string.sub(member, colon + 1))
      end
      call('ZREM', index, member)
      call('ZREM', expiry, member)
    elseif left == -1 then
      call('ZADD', expiry, '+inf', member)
    else
      call('ZADD', expiry, now + left + 1, member)
    end
  end
  return #seen
end
