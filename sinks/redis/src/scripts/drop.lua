-- Deletes rows whose version is not newer, and keeps the version of the delete for a while.
-- KEYS: data, version for each. ARGV: how long to keep it in ms; then version for each.
-- Returns how many were newer, as {newer, 0}.
local function failed(reply) return type(reply) == 'table' and reply.err end
local names = {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
local held = redis.pcall('MGET', unpack(names))
if held.err then return held end
local stale = 0
for i = 1, #names do
  local version, old = ARGV[i + 1], held[i]
  if old and string.sub(old, 1, 28) > version then
    stale = stale + 1
  else
    -- The version first: it is what a full server refuses, and then nothing has happened.
    local done = redis.pcall('SET', names[i], version, 'PX', ARGV[1])
    if failed(done) then return done end
    done = redis.pcall('DEL', KEYS[2 * i - 1])
    if failed(done) then return done end
  end
end
return {stale, 0}
