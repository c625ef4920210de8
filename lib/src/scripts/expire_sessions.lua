-- Prelude: sessions that have expired.

-- The key of a client's session. In a cluster the client id stands in braces, `%` and `}` of it encoded, and an
-- empty one is `%`.
local function session_key(prefix, client, clustered)
  if not clustered then return prefix .. client end
  client = string.gsub(string.gsub(client, '%%', '%%25'), '}', '%%7D')
  return prefix .. '{' .. (client == '' and '%' or client) .. '}'
end

-- Takes expired sessions out of the indexes, 50 at most, and answers how many it saw.
-- A session that lives on all the same is noted with its true expiry.
local function expire_sessions(index, expiry, session_prefix)
  local call = redis.call
  local time = call('TIME')
  local now, clustered = time[1] * 1000 + math.floor(time[2] / 1000), is_clustered(expiry)
  local seen = call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 50)
  for _, client in ipairs(seen) do
    local left = time_left(session_key(session_prefix, client, clustered), expiry)
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
