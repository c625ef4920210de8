-- Prelude: messages that have expired.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The key of a member's queue, and the message's id; nil where the member is none of ours. A member is
-- `{client}:{id}`, with `%` and `:` of the client id encoded; in a cluster, the queue's key holds the client id as
-- the member does, in braces.
local function queue_of(member, prefix, clustered)
  if clustered then
    local tag = string.match(member, '^{[^}]+}:')
    if not tag then return nil end
    return prefix .. 'msgq:' .. string.sub(tag, 1, -2), string.sub(member, #tag + 1)
  end
  local colon = string.find(member, ':', 1, true)
  if not colon then return nil end
  local client = string.gsub(string.sub(member, 1, colon - 1), '%%3A', ':')
  client = string.gsub(client, '%%25', '%%')
  return prefix .. 'msgq:' .. client, string.sub(member, colon + 1)
end

-- Takes expired messages out of queues and indexes, 50 at most, and answers how many it saw.
-- A message that lives on all the same is noted with its true expiry.
--
-- They are any client's: so what a stranger left among them must not fail the script. A member that is none
-- of ours goes. A foreign value at a queue's key is met when its own client's messages are next asked for.
local function expire_messages(index, expiry, prefix)
  local call = redis.call
  local now, clustered = now_ms(), is_clustered(expiry)
  local seen = call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 50)
  for _, member in ipairs(seen) do
    local queue, id = queue_of(member, prefix, clustered)
    local left = queue and time_left(prefix .. 'msg:' .. member, expiry)
    if not queue or left == -2 then
      if queue then redis.pcall('ZREM', queue, id) end
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
