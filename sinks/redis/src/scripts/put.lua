-- Sets values whose version is not older than what is held.
-- KEYS: data, version for each. ARGV: ttl in ms or 0; then version, value for each.
-- Returns how many were older, as {older, 0}.
local ttl = ARGV[1]
local names = {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
local held = redis.pcall('MGET', unpack(names))
if held.err then return held end
local stale, count, sets = 0, 0, {}
for i = 1, #names do
  local version, old = ARGV[2 * i], held[i]
  if old and string.sub(old, 1, 28) > version then
    stale = stale + 1
  elseif ttl == '0' then
    sets[count + 1], sets[count + 2] = KEYS[2 * i - 1], ARGV[2 * i + 1]
    sets[count + 3], sets[count + 4] = names[i], version
    count = count + 4
  else
    local done = redis.pcall('SET', KEYS[2 * i - 1], ARGV[2 * i + 1], 'PX', ttl)
    if done.err then return done end
    done = redis.pcall('SET', names[i], version, 'PX', ttl)
    if done.err then return done end
  end
end
if count > 0 then
  local done = redis.pcall('MSET', unpack(sets))
  if done.err then return done end
end
return {stale, 0}
