-- Prelude: whether a message that is stored again keeps its place in the queue.
-- `score` is the place it has, `millis` its timestamp, `asked` the score that it would get now. A
-- millisecond with more messages than it has places for goes on in later ones: hence the two bounds.
local function keeps_place(score, millis, asked)
  score = math.floor(tonumber(score))
  return tonumber(millis) <= score and score <= math.floor(tonumber(asked))
end
