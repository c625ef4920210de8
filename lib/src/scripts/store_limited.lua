-- Stores messages in a queue that holds a limited number.
-- KEYS: msgq, sync:messages, expiry:messages; in a cluster the messages, too
-- ARGV: 1 the prefix of all keys, 2 what stands before the client's message ids in a member,
--       3 the most messages, 4 drop_oldest or reject, 5 time to live (ms) or '',
--       6 when they expire (ms, or +inf), 7 whether sync:messages is kept (1),
--       then for each message: id, value, score, its milliseconds, whether these are its own (1)
-- Answers {how many the queue still holds too many, dropped id, ...}, or -1: the queue is full and
-- nothing was stored. A message that is there already keeps its place, unless its own timestamp is another
-- one. At most 500 are dropped in one call, oldest first; a queue that is longer than
-- that (its limit was lowered) is brought down by calls without messages.
-- Cost: O(log N) a message stored or dropped; a full queue is searched for expired messages only
-- where any message is known to have expired.
local call = redis.call
local prefix, member_prefix, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local message_prefix = prefix .. 'msg:' .. member_prefix
local answer = {0}

-- Takes a message out; true if it was alive.
local function remove(id)
  local member = member_prefix .. id
  local alive = call('DEL', message_prefix .. id) == 1
  call('ZREM', KEYS[1], id)
  call('ZREM', KEYS[2], member)
  call('ZREM', KEYS[3], member)
  return alive
end

local new, seen = 0, {}
for i = 8, #ARGV, 5 do
  local id = ARGV[i]
  if not seen[id] then
    seen[id] = true
    if not call('ZSCORE', KEYS[1], id) then new = new + 1 end
  end
end
local length = call('ZCARD', KEYS[1])

-- What is dead does not count: look for it only where it would make a difference.
if length + new > most and #call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms(), 'LIMIT', 0, 1) > 0 then
  for _, id in ipairs(call('ZRANGE', KEYS[1], 0, -1)) do
    if is_missing(message_prefix .. id, KEYS[3]) then
      remove(id)
      length = length - 1
      if seen[id] then new = new + 1 end
    end
  end
end

local rejects = ARGV[4] == 'reject'
if rejects and new > 0 and length + new > most then return -1 end

-- In a cluster, either all that may be dropped is here, or nothing is done; see cluster.lua.
if not rejects and is_clustered(KEYS[3]) and length + new > most then
  for _, id in ipairs(call('ZRANGE', KEYS[1], 0, math.min(length + new - most, 600) - 1)) do
    is_missing(message_prefix .. id, KEYS[3])
  end
end

-- Drops the oldest until `room` more fit.
local function make_room(room)
  local excess = length + room - most
  while excess > 0 and #answer <= 500 do
    local oldest = call('ZRANGE', KEYS[1], 0, math.min(excess, 100) - 1)
    if #oldest == 0 then break end
    for _, id in ipairs(oldest) do
      if remove(id) then answer[#answer + 1] = id end
      length = length - 1
      excess = excess - 1
    end
  end
end

for i = 8, #ARGV, 5 do
  local id, member = ARGV[i], member_prefix .. ARGV[i]
  local score = call('ZSCORE', KEYS[1], id)
  local stays
  if not score then
    if not rejects then make_room(1) end
    length = length + 1
  elseif ARGV[i + 4] == '1' then
    stays = keeps_place(score, ARGV[i + 3], ARGV[i + 2])
  else
    stays = call('EXISTS', message_prefix .. id) == 1
  end
  if not stays then call('ZADD', KEYS[1], ARGV[i + 2], id) end
  if ARGV[5] == '' then
    call('SET', message_prefix .. id, ARGV[i + 1])
  else
    call('SET', message_prefix .. id, ARGV[i + 1], 'PX', ARGV[5])
  end
  if ARGV[7] == '1' and not stays then call('ZADD', KEYS[2], ARGV[i + 3], member) end
  call('ZADD', KEYS[3], ARGV[6], member)
end
if not rejects then
  make_room(0)
  answer[1] = math.max(0, length - most)
end

-- A message of this batch may have been dropped and stored again, or dropped twice.
local told = {answer[1]}
for i = 2, #answer do
  local id = answer[i]
  if not seen[id] then
    told[#told + 1] = id
  elseif seen[id] ~= 'told' and not call('ZSCORE', KEYS[1], id) then
    seen[id] = 'told'
    told[#told + 1] = id
  end
end
return told
