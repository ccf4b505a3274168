-- One step of a sink: writes and deletes rows, and notes how far their sources have come with it. All of it, or nothing: when
-- another step than the one it follows was the last, or when one of the rows cannot be written.
-- KEYS: data, version for each row; where the progress is kept, for each source; where the last step is noted.
-- ARGV: ttl of rows in ms or 0, how long to keep versions of deletes in ms, the step that it follows, its own name, how many
-- rows, how many sources, the channel that is told which rows were written or nothing, the progress of each; then for each run of rows of a kind: 'put', 'hash' or 'drop', how many, and for
-- each row its version and what the script of that name takes.
-- Returns how many rows were older, and how many merges found no hash to merge into; or -1 and the places of what cannot be
-- written: merges into what is no hash; or -2 when another step was the last, and whether there is one.
-- As locals they are found faster, and there are some of them for each row.
local KEYS, ARGV, sub = KEYS, ARGV, string.sub
local function failed(reply) return type(reply) == 'table' and reply.err end
local ttl, keep, rows, sources = ARGV[1], ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
local last = KEYS[2 * rows + sources + 1]
local before = redis.pcall('GET', last)
if failed(before) then return before end
if before ~= ARGV[3] then return {-2, before and 1 or 0} end

-- By name: a row may come twice, and then the second must be compared with the first.
local names, held = {}, {}
for i = 1, rows do names[i] = KEYS[2 * i] end
for first = 1, rows, 4000 do
  local upto = math.min(first + 3999, rows)
  local some = redis.pcall('MGET', unpack(names, first, upto))
  if some.err then return some end
  for i = first, upto do held[names[i]] = some[i - first + 1] end
end

-- Nothing is written before all is known to be possible. Merges are the only ones that may not be.
local begin = 8 + sources
local refused, at, row = {-1}, begin, 1
while row <= rows do
  local kind, many = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  if kind == 'put' then
    at = at + 2 * many
  elseif kind == 'drop' then
    at = at + many
  else
    for i = row, row + many - 1 do
      local old = held[names[i]]
      if ARGV[at + 1] == 'merge' and not (old and sub(old, 1, 28) > ARGV[at]) then
        local there = redis.pcall('TYPE', KEYS[2 * i - 1])
        if failed(there) then return there end
        if there.ok ~= 'hash' and there.ok ~= 'none' then refused[#refused + 1] = i end
      end
      local stays = at + 4 + tonumber(ARGV[at + 2])
      at = stays + tonumber(ARGV[stays - 1])
    end
  end
  row = row + many
end
if #refused > 1 then return refused end

-- What needs no more than a SET is set many at a time, before anything else is done. A full server refuses the first write, and then
-- nothing has happened.
local sets, count = {}, 0
local function set()
  if count == 0 then return end
  local done = redis.pcall('MSET', unpack(sets, 1, count))
  count = 0
  return done
end
local stale, gaps, told = 0, 0, {}
local function put(data, name, version, value)
  local done = redis.pcall('SET', data, value, 'PX', ttl)
  if failed(done) then return done end
  return redis.pcall('SET', name, version, 'PX', ttl)
end
local function drop(data, name, version)
  local done = set()
  if failed(done) then return done end
  done = redis.pcall('SET', name, version, 'PX', keep)
  if failed(done) then return done end
  return redis.pcall('DEL', data)
end
-- Fields to set are from `from` to `upto` in ARGV, those to keep from `upto + 2` to `stays`.
local function hash(data, name, version, mode, from, upto, stays)
  local done = set()
  if failed(done) then return done end
  if mode == 'replace' then
    done = redis.pcall('DEL', data)
  else
    done = redis.pcall('HKEYS', data)
    if failed(done) then return done end
    local lacking, sets, gone = {}, {}, {}
    for field = upto + 2, stays do lacking[ARGV[field]] = true end
    for field = from, upto, 2 do sets[ARGV[field]] = true end
    for _, field in ipairs(done) do
      if lacking[field] then lacking[field] = nil
      elseif not sets[field] then gone[#gone + 1] = field end
    end
    if next(lacking) then gaps = gaps + 1 end
    if #gone > 0 then done = redis.pcall('HDEL', data, unpack(gone)) end
  end
  if failed(done) then return done end
  done = redis.pcall('HSET', data, unpack(ARGV, from, upto))
  if failed(done) then return done end
  if ttl == '0' then return redis.pcall('SET', name, version) end
  done = redis.pcall('PEXPIRE', data, ttl)
  if failed(done) then return done end
  return redis.pcall('SET', name, version, 'PX', ttl)
end

at, row = begin, 1
while row <= rows do
  local kind, many = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for i = row, row + many - 1 do
    local name, version, done = names[i], ARGV[at], nil
    local old = held[name]
    local is_late = old and sub(old, 1, 28) > version
    if is_late then stale = stale + 1 else held[name], told[#told + 1] = version, KEYS[2 * i - 1] end
    if kind == 'put' then
      if is_late then
      elseif ttl == '0' then
        sets[count + 1], sets[count + 2], sets[count + 3], sets[count + 4] = KEYS[2 * i - 1], ARGV[at + 1], name, version
        count = count + 4
        if count >= 4000 then done = set() end
      else
        done = put(KEYS[2 * i - 1], name, version, ARGV[at + 1])
      end
      at = at + 2
    elseif kind == 'drop' then
      if not is_late then done = drop(KEYS[2 * i - 1], name, version) end
      at = at + 1
    else
      local upto = at + 2 + tonumber(ARGV[at + 2])
      local stays = upto + 1 + tonumber(ARGV[upto + 1])
      if not is_late then done = hash(KEYS[2 * i - 1], name, version, ARGV[at + 1], at + 3, upto, stays) end
      at = stays + 1
    end
    if failed(done) then return redis.error_reply(done.err .. ' (key ' .. KEYS[2 * i - 1] .. ')') end
  end
  row = row + many
end
-- Last: what is noted is there.
for i = 1, sources do
  sets[count + 1], sets[count + 2] = KEYS[2 * rows + i], ARGV[7 + i]
  count = count + 2
end
sets[count + 1], sets[count + 2] = last, ARGV[4]
count = count + 2
local done = set()
if failed(done) then return done end
if ARGV[7] ~= '' then
  for i = 1, #told do
    done = redis.pcall('PUBLISH', ARGV[7], told[i])
    if failed(done) then return done end
  end
end
return {stale, gaps}
