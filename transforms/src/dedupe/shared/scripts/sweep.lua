-- Removes what no look-up can count any more, a few entries at a time: the same rules as for files on disk (expiry.rs).
-- ARGV: generation, how long facts count in microseconds of commit time, how many later claims a claim outlives (or ''),
-- keys to look at, rows to look at.
if redis.call('HGET', meta, 'generation') ~= ARGV[1] then return {0, 0} end
-- A full server refuses what needs memory unless the script has written before. This removes nothing; what follows does.
redis.call('HDEL', meta, '')

local age, outlived = tonumber(ARGV[2]), tonumber(ARGV[3])
local sequence = tonumber(redis.call('HGET', meta, 'sequence'))
-- By the two bytes that name a log in a fact: the time, as bytes in a fact, before which its facts are spent.
local spent_before, given, some_given, latest = {}, {}, false, nil
local all = redis.call('HGETALL', meta)
for i = 1, #all, 2 do
  local name, number = string.match(all[i], '^(%l+):(%d+)$')
  if name == 'time' then
    local now = tonumber(all[i + 1])
    latest = math.max(latest or now, now)
    if now > age then spent_before[struct.pack('>I2', tonumber(number))] = struct.pack('>i8', now - age) end
  elseif name == 'given' then
    given[struct.pack('>I2', tonumber(number))] = true
    some_given = true
  end
end

-- Whether an entry is spent; if not, the time it ages from, as bytes: big-endian numbers sort as their bytes do, and
-- unpacking each would cost more than all the rest. `size` is that of a fact, of which the latest counts.
local sub = string.sub
local function spent(value, size, is_claim)
  local at = #value - size + 1
  local log = sub(value, at, at + 1)
  if some_given then
    while given[log] do
      at = at - size
      if at <= 0 then return true end
      log = sub(value, at, at + 1)
    end
  end
  local since
  if is_claim then
    if outlived and sequence - struct.unpack('>I8', value, at + 26) > outlived then return true end
    since = sub(value, at + 34, at + 41)
  else
    -- A row is remembered for as long as it is held.
    if string.byte(value, at + 26) == 1 then return false end
    since = sub(value, at + 18, at + 25)
  end
  local before = spent_before[log]
  if before and since < before then return true end
  return false, since
end

local function as_bytes(time)
  return time and struct.pack('>i8', math.max(time, 0))
end

local function as_text(bytes)
  return string.format('%.0f', struct.unpack('>i8', bytes))
end

local function sweep(hash, what, size, is_claim, count)
  if count == 0 then return 0 end
  local oldest = tonumber(redis.call('HGET', meta, 'oldest:' .. what) or '')
  if not outlived and (not oldest or not latest or latest - oldest <= age) then return 0 end
  local least = as_bytes(tonumber(redis.call('HGET', meta, 'cycle:' .. what) or ''))
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
    if least then redis.call('HSET', meta, 'oldest:' .. what, as_text(least)) end
  else
    redis.call('HSET', meta, 'cursor:' .. what, found[1])
    if least then redis.call('HSET', meta, 'cycle:' .. what, as_text(least)) end
  end
  redis.call('HSET', meta, what, redis.call('HLEN', hash))
  return #dead
end

return {sweep(claims, 'claims', 58, true, tonumber(ARGV[4])), sweep(rows, 'rows', 43, false, tonumber(ARGV[5]))}
