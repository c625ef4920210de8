-- Begins a feed where there is none, and answers where it stands: what is read of the table from then on, together
-- with the changes after that version, is the table.
--
-- KEYS[1] feed
-- ARGV[1] now, us          ARGV[2] a number used once
--
-- Reply: the feed's last version and its nonce. Cost: O(1).

local version, nonce = feed_head(KEYS[1])
if version == 0 then
  local failure
  version, nonce, failure = feed_append(KEYS[1], 0, '', ARGV[2], ARGV[1], 1, '0', '', '', '', 0)
  if failure then return failure end
end
return {version, nonce}
