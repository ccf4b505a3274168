-- Replaces histories, if all are as they were when they were read.
-- ARGV: generation, writes known, version of the logs, log that the facts are from, how far it has come, keys claimed so
-- far, time of the oldest fact, number of keys; then for each key, and each row: its digest, what it was, what it is.
local why = missing(ARGV[1], ARGV[2])
if why then return {'lost', why} end
if redis.call('HGET', meta, 'logs') ~= ARGV[3] then return {'logs'} end

local function changed(hash, from, to)
  for first = from, to, 1500 do
    local digests = {}
    for i = first, math.min(first + 1499, to), 3 do digests[#digests + 1] = ARGV[i] end
    local values = redis.call('HMGET', hash, unpack(digests))
    for i = 1, #values do
      if (values[i] or '') ~= ARGV[first + 3 * i - 2] then return true end
    end
  end
  return false
end

local function put(hash, what, from, to)
  if from > to then return end
  for first = from, to, 1500 do
    local words = {}
    for i = first, math.min(first + 1499, to), 3 do
      words[#words + 1] = ARGV[i]
      words[#words + 1] = ARGV[i + 2]
    end
    redis.call('HSET', hash, unpack(words))
  end
  -- No fact is older than these; what the sweeper has not met yet counts for its round as well.
  for _, field in ipairs({'oldest:' .. what, 'cycle:' .. what}) do
    local held = redis.call('HGET', meta, field)
    if not held or tonumber(ARGV[7]) < tonumber(held) then redis.call('HSET', meta, field, ARGV[7]) end
  end
end

local split = 8 + 3 * tonumber(ARGV[8])
if changed(claims, 9, split) or changed(rows, split + 1, #ARGV) then return {'conflict'} end
put(claims, 'claims', 9, split)
put(rows, 'rows', split + 1, #ARGV)
if tonumber(ARGV[6]) > tonumber(redis.call('HGET', meta, 'sequence')) then
  redis.call('HSET', meta, 'sequence', ARGV[6])
end
local counts = {redis.call('HLEN', claims), redis.call('HLEN', rows)}
redis.call('HSET', meta, 'claims', counts[1], 'rows', counts[2], 'time:' .. ARGV[4], ARGV[5])
return {'ok', redis.call('HINCRBY', meta, 'writes', 1), counts[1], counts[2]}
