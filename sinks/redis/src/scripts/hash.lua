-- Writes hashes whose version is not older than what is held.
-- KEYS: data, version for each. ARGV: ttl in ms or 0; then for each: version, 'replace' or 'merge', number of words to set,
-- field, value, …, number of fields to keep, field, … A merge removes all fields but these: also those of columns that
-- the table has no more.
-- Returns how many were older, and how many merges found no hash to merge into.
local function failed(reply) return type(reply) == 'table' and reply.err end
local ttl = ARGV[1]
local names = {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
local held = redis.pcall('MGET', unpack(names))
if held.err then return held end
local stale, gaps, at = 0, 0, 2
for i = 1, #names do
  local data, version, mode = KEYS[2 * i - 1], ARGV[at], ARGV[at + 1]
  local set = at + 3
  local keep = set + tonumber(ARGV[at + 2]) + 1
  at = keep + tonumber(ARGV[keep - 1])
  local old, done = held[i], nil
  if old and string.sub(old, 1, 28) > version then
    stale = stale + 1
  else
    if mode == 'replace' then
      done = redis.pcall('DEL', data)
    else
      done = redis.pcall('HKEYS', data)
      if not failed(done) then
        local lacking, stays, gone = {}, {}, {}
        for field = keep, at - 1 do lacking[ARGV[field]] = true end
        for field = set, keep - 2, 2 do stays[ARGV[field]] = true end
        for _, field in ipairs(done) do
          if lacking[field] then lacking[field] = nil
          elseif not stays[field] then gone[#gone + 1] = field end
        end
        if next(lacking) then gaps = gaps + 1 end
        if #gone > 0 then done = redis.pcall('HDEL', data, unpack(gone)) end
      end
    end
    if failed(done) then return redis.error_reply(done.err .. ' (key ' .. data .. ')') end
    done = redis.pcall('HSET', data, unpack(ARGV, set, keep - 2))
    if failed(done) then return redis.error_reply(done.err .. ' (key ' .. data .. ')') end
    if ttl == '0' then
      done = redis.pcall('SET', names[i], version)
    else
      done = redis.pcall('PEXPIRE', data, ttl)
      if failed(done) then return done end
      done = redis.pcall('SET', names[i], version, 'PX', ttl)
    end
    if failed(done) then return done end
  end
end
return {stale, gaps}
