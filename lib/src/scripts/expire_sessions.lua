-- Prelude: takes expired sessions out of the indexes, 50 at most, and answers how many it saw.
-- A session that lives on all the same is noted with its true expiry.
local function expire_sessions(index, expiry, session_prefix)
  local call = redis.call
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local seen = call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 50)
  for _, client in ipairs(seen) do
    local left = call('PTTL', session_prefix .. client)
    if left == -2 then
      call('ZREM', index, client)
      call('ZREM', expiry, client)
    elseif left == -1 then
      call('ZADD', expiry, '+inf', client)
    else
      call('ZADD', expiry, now + left + 1, client)
    end
  end
  return #seen
end
