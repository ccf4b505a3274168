-- Raises the version of a table's last TRUNCATE, and returns the highest there is.
-- KEYS: the hash of a source's floors. ARGV: table, version.
local held = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(held) == 'table' and held.err then return held end
if held and held >= ARGV[2] then return held end
local done = redis.pcall('HSET', KEYS[1], ARGV[1], ARGV[2])
if type(done) == 'table' and done.err then return done end
return ARGV[2]
