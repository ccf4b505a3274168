-- Notes which log a source reads, and gives up the one it has read before.
-- ARGV: generation, writes known, name of the source, identity of the log.
local why = missing(ARGV[1], ARGV[2])
if why then return {'lost', why} end
local number = redis.call('HGET', meta, 'source:' .. ARGV[4])
if not number then
  local count = tonumber(redis.call('HGET', meta, 'sources') or '0')
  if count > 65535 then return {'full'} end
  number = string.format('%d', count)
  redis.call('HSET', meta, 'sources', count + 1, 'source:' .. ARGV[4], number)
end
local field = 'log:' .. ARGV[3]
local before = redis.call('HGET', meta, field)
if before ~= number then
  redis.call('HSET', meta, field, number)
  redis.call('HDEL', meta, 'given:' .. number)
  local read = not before
  local all = redis.call('HGETALL', meta)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 4) == 'log:' and all[i + 1] == before then read = true end
  end
  if not read then
    -- What is known from it is to be removed: the sweeper goes round from the beginning.
    redis.call('HSET', meta, 'given:' .. before, 1, 'oldest:claims', '-1e30', 'oldest:rows', '-1e30')
    redis.call('HDEL', meta, 'time:' .. before, 'cursor:claims', 'cursor:rows', 'cycle:claims', 'cycle:rows')
  end
  redis.call('HINCRBY', meta, 'logs', 1)
end
return {'ok', redis.call('HGETALL', meta)}
