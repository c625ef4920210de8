-- Prelude: what scripts that derive keys from the members of an index need in a cluster.
--
-- There an index is that of one hash slot, and its key ends with the slot's tag in braces. Keys that a script
-- derives are not declared. Where one is not in the slot, the server refuses the command. While the slot is
-- on its way to another server, so it does with any key that is not here any more; and the other server says that
-- there is none, though it has yet to come. A command of two keys that are not both there is refused by either:
-- so what is missing is asked for once more in such a command, which fails the script, and it is called again.
local function is_clustered(index)
  return string.byte(index, -1) == 125
end

-- The slot of a key with a hash tag: CRC16, polynomial 0x1021. Slow, and seldom needed.
local function hash_slot(key)
  local tag = string.match(key, '{([^}]+)}') or key
  local crc = 0
  for i = 1, #tag do
    crc = bit.bxor(crc, bit.lshift(string.byte(tag, i), 8))
    for _ = 1, 8 do
      crc = bit.lshift(crc, 1)
      if crc >= 65536 then crc = bit.bxor(crc, 0x11021) end
    end
  end
  return crc % 16384
end

-- Whether a key that a member of `index` names is missing. A key of another slot, which only a stranger's member
-- can name, counts as missing.
local function is_missing(key, index)
  local found = redis.pcall('EXISTS', key)
  if found == 1 then return false end
  if found == 0 and not is_clustered(index) then return true end
  local again = redis.pcall('EXISTS', key, index)
  if type(again) == 'table' and hash_slot(key) == hash_slot(index) then
    -- Fails the script.
    redis.call('EXISTS', key, index)
  end
  return true
end

-- The PTTL of such a key.
local function time_left(key, index)
  if is_clustered(index) and is_missing(key, index) then return -2 end
  return redis.call('PTTL', key)
end
