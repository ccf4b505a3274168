-- Writes and deletes rows in one step: all, or none when one of them cannot be written.
-- KEYS: data, version for each. ARGV: ttl of rows in ms or 0, how long to keep versions of deletes in ms; then for each: 'put',
-- 'hash' or 'drop', version, and what the script of that name takes.
-- Returns how many were older, and how many merges found no hash to merge into; or -1 and the places of what cannot be
-- written: merges into what is no hash.
local function failed(reply) return type(reply) == 'table' and reply.err end
local ttl, keep = ARGV[1], ARGV[2]
local names, held = {}, {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
for first = 1, #names, 1000 do
  local last = math.min(first + 999, #names)
  local some = redis.pcall('MGET', unpack(names, first, last))
  if some.err then return some end
  for i = first, last do held[names[i]] = some[i - first + 1] end
end

-- Where each begins in ARGV; nothing is written before all are known to be possible.
local begins, refused, at = {}, {-1}, 3
for i = 1, #names do
  begins[i] = at
  local kind = ARGV[at]
  if kind == 'put' then
    at = at + 3
  elseif kind == 'drop' then
    at = at + 2
  else
    local old = held[names[i]]
    local merges = ARGV[at + 2] == 'merge' and not (old and string.sub(old, 1, 28) > ARGV[at + 1])
    local set = at + 4
    local stays = set + tonumber(ARGV[at + 3]) + 1
    at = stays + tonumber(ARGV[stays - 1])
    if merges then
      local there = redis.pcall('TYPE', KEYS[2 * i - 1])
      if failed(there) then return there end
      if there.ok ~= 'hash' and there.ok ~= 'none' then refused[#refused + 1] = i end
    end
  end
end
if #refused > 1 then return refused end

local stale, gaps = 0, 0
local function hash(data, at)
  local set = at + 4
  local from = set + tonumber(ARGV[at + 3]) + 1
  local to = from + tonumber(ARGV[from - 1]) - 1
  local done
  if ARGV[at + 2] == 'replace' then
    done = redis.pcall('DEL', data)
  else
    done = redis.pcall('HKEYS', data)
    if failed(done) then return done end
    local lacking, stays, gone = {}, {}, {}
    for field = from, to do lacking[ARGV[field]] = true end
    for field = set, from - 2, 2 do stays[ARGV[field]] = true end
    for _, field in ipairs(done) do
      if lacking[field] then lacking[field] = nil
      elseif not stays[field] then gone[#gone + 1] = field end
    end
    if next(lacking) then gaps = gaps + 1 end
    if #gone > 0 then done = redis.pcall('HDEL', data, unpack(gone)) end
  end
  if failed(done) then return done end
  return redis.pcall('HSET', data, unpack(ARGV, set, from - 2))
end
-- Values without a ttl are set many at a time, before anything else is done.
local sets, count = {}, 0
local function set()
  if count == 0 then return end
  local done = redis.pcall('MSET', unpack(sets, 1, count))
  count = 0
  return done
end
for i = 1, #names do
  local data, name, at = KEYS[2 * i - 1], names[i], begins[i]
  local kind, version, old, done = ARGV[at], ARGV[at + 1], held[names[i]], nil
  if old and string.sub(old, 1, 28) > version then
    stale = stale + 1
  else
    held[name] = version
    if kind == 'put' and ttl == '0' then
      sets[count + 1], sets[count + 2], sets[count + 3], sets[count + 4] = data, ARGV[at + 2], name, version
      count = count + 4
      if count >= 4000 then done = set() end
    elseif kind == 'drop' then
      done = set()
      if failed(done) then return done end
      done = redis.pcall('SET', name, version, 'PX', keep)
      if failed(done) then return done end
      done = redis.pcall('DEL', data)
    elseif ttl == '0' then
      done = set()
      if failed(done) then return done end
      done = hash(data, at)
      if failed(done) then return redis.error_reply(done.err .. ' (key ' .. data .. ')') end
      done = redis.pcall('SET', name, version)
    else
      if kind == 'put' then
        done = redis.pcall('SET', data, ARGV[at + 2], 'PX', ttl)
      else
        done = hash(data, at)
        if not failed(done) then done = redis.pcall('PEXPIRE', data, ttl) end
      end
      if failed(done) then return redis.error_reply(done.err .. ' (key ' .. data .. ')') end
      done = redis.pcall('SET', name, version, 'PX', ttl)
    end
    if failed(done) then return done end
  end
end
local done = set()
if failed(done) then return done end
return {stale, gaps}
