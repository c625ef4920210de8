-- Prelude: the change feed of a route shard, a stream.
--
-- Each entry is one change; its id is `{version}-0`, and versions count up by one. Its fields, always all of them
-- in this order:
-- n  its nonce: a digest of the nonce before it and of a number that the writer uses once. So two feeds that agree
--    in a version and its nonce agree in all before
-- p  the nonce of the entry before it, empty in the first
-- t  when it was written, in microseconds on Redis's clock as the writer knows it
-- k  what it changes: `+r`, `-r` a route; `+s`, `-s` a subscription; `0` nothing: it begins a feed
-- f  the filter
-- d  the node of a route, the client id of a subscription
-- o  the options of a subscription
-- c  how many nodes or clients the filter has afterwards

-- The version and nonce of the last entry; 0 where there is none that could be followed.
local function feed_head(feed)
  local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  local version = last and string.match(last[1], '^(%d+)-0$')
  if not version or last[2][1] ~= 'n' then return 0, '' end
  return tonumber(version), last[2][2]
end

-- Appends the entry that follows `version` and `previous`; answers its version and nonce. A stream that is empty, or
-- does not take the entry, is begun anew: whoever follows it notices, and reads everything again.
local function feed_append(feed, version, previous, once, micros, length, kind, filter, destination, options, count)
  local nonce, added
  for attempt = 1, 2 do
    if version == 0 then
      redis.call('DEL', feed)
      previous = ''
    end
    nonce = string.sub(redis.sha1hex(previous .. once), 1, 16)
    added = redis.pcall('XADD', feed, 'MAXLEN', '~', length, string.format('%.0f-0', version + 1),
      'n', nonce, 'p', previous, 't', micros,
      'k', kind, 'f', filter, 'd', destination, 'o', options, 'c', count)
    if type(added) ~= 'table' or not string.find(added.err, 'equal or smaller', 1, true) then break end
    version = 0
  end
  return version + 1, nonce, type(added) == 'table' and added
end
