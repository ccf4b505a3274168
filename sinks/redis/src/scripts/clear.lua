-- Removes the rows of a truncated table, with their versions, unless they are newer than the TRUNCATE.
-- KEYS: data, version for each. ARGV: version of the TRUNCATE, the channel that is told which rows went or nothing.
-- Returns how many were newer, as {newer, 0}.
local function failed(reply) return type(reply) == 'table' and reply.err end
local names = {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
local held = redis.pcall('MGET', unpack(names))
if held.err then return held end
local kept = 0
for i = 1, #names do
  local old = held[i]
  if old and string.sub(old, 1, 28) > ARGV[1] then
    kept = kept + 1
  else
    local done = redis.pcall('DEL', KEYS[2 * i - 1], names[i])
    if failed(done) then return done end
    if ARGV[2] ~= '' then done = redis.pcall('PUBLISH', ARGV[2], KEYS[2 * i - 1]) end
    if failed(done) then return done end
  end
end
return {kept, 0}
