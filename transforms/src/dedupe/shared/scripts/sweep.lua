-- Removes what no look-up can count any more, a few entries at a time: the same rules as for files on disk (expiry.rs).
-- ARGV: generation, how long facts count in microseconds of commit time, how many later claims a claim outlives (or ''),
-- keys to look at, rows to look at.
if redis.call('HGET', meta, 'generation') ~= ARGV[1] then return {0, 0} end
-- A full server refuses what needs memory unless the script has written before. This removes nothing; what follows does.
redis.call('HDEL', meta, '')

local age, outlived = tonumber(ARGV[2]), tonumber(ARGV[3])
local sequence = tonumber(redis.call('HGET', meta, 'sequence'))
local now, given, latest = {}, {}, nil
local all = redis.call('HGETALL', meta)
for i = 1, #all, 2 do
  local name, number = string.match(all[i], '^(%l+):(%d+)$')
  if name == 'time' then
    now[tonumber(number)] = tonumber(all[i + 1])
    latest = math.max(latest or tonumber(all[i + 1]), tonumber(all[i + 1]))
  elseif name == 'given' then
    given[tonumber(number)] = true
  end
end

-- Whether an entry is spent; if not, the time it ages from. `size` is that of a fact, of which the latest counts.
local function spent(value, size, is_claim)
  local at = #value - size + 1
  local log
  while at > 0 do
    log = struct.unpack('>I2', value, at)
    if not given[log] then break end
    at = at - size
  end
  if at <= 0 then return true end
  local since
  if is_claim then
    if outlived and sequence - struct.unpack('>I8', value, at + 26) > outlived then return true end
    since = struct.unpack('>i8', value, at + 34)
  else
    -- A row is remembered for as long as it is held.
    if string.byte(value, at + 26) == 1 then return false end
    since = struct.unpack('>i8', value, at + 18)
  end
  if now[log] and now[log] - since > age then return true end
  return false, since
end

local function sweep(hash, what, size, is_claim, count)
  if count == 0 then return 0 end
  local oldest = tonumber(redis.call('HGET', meta, 'oldest:' .. what) or '')
  if not outlived and (not oldest or not latest or latest - oldest <= age) then return 0 end
  local least = tonumber(redis.call('HGET', meta, 'cycle:' .. what) or '')
  local cursor = redis.call('HGET', meta, 'cursor:' .. what)
  if not cursor then
    cursor, least = '0', nil
  end
  local found = redis.call('HSCAN', hash, cursor, 'COUNT', count)
  local dead = {}
  for i = 1, #found[2], 2 do
    local over, since = spent(found[2][i + 1], size, is_claim)
    if over then
      dead[#dead + 1] = found[2][i]
    elseif since and (not least or since < least) then
      least = since
    end
  end
  for first = 1, #dead, 1000 do
    redis.call('HDEL', hash, unpack(dead, first, math.min(first + 999, #dead)))
  end
  if found[1] == '0' then
    redis.call('HDEL', meta, 'cursor:' .. what, 'cycle:' .. what, 'oldest:' .. what)
    if least then redis.call('HSET', meta, 'oldest:' .. what, string.format('%.0f', least)) end
  else
    redis.call('HSET', meta, 'cursor:' .. what, found[1])
    if least then redis.call('HSET', meta, 'cycle:' .. what, string.format('%.0f', least)) end
  end
  redis.call('HSET', meta, what, redis.call('HLEN', hash))
  return #dead
end

return {sweep(claims, 'claims', 58, true, tonumber(ARGV[4])), sweep(rows, 'rows', 43, false, tonumber(ARGV[5]))}
