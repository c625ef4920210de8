-- Prelude: messages that have expired.
-- A member of the two message indexes is `{client}:{id}`, with `%` and `:` of the client id encoded.
local function remove_message(member, client, id, prefix, index, expiry)
  local call = redis.call
  call('ZREM', prefix .. 'msgq:' .. client, id)
  call('ZREM', index, member)
  call('ZREM', expiry, member)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Takes expired messages out of queues and indexes, 50 at most, and answers how many it saw.
-- A message that lives on all the same is noted with its true expiry.
local function expire_messages(index, expiry, prefix)
  local call = redis.call
  local now = now_ms()
  local seen = call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 50)
  for _, member in ipairs(seen) do
    local left = call('PTTL', prefix .. 'msg:' .. member)
    if left == -2 then
      local at = string.find(member, ':', 1, true)
      local client = string.gsub(string.sub(member, 1, at - 1), '%%3A', ':')
      client = string.gsub(client, '%%25', '%%')
      remove_message(member, client, string.sub(member, at + 1), prefix, index, expiry)
    elseif left == -1 then
      call('ZADD', expiry, '+inf', member)
    else
      call('ZADD', expiry, now + left + 1, member)
    end
  end
  return #seen
end
