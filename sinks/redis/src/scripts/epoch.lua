-- The epoch of a source's identity: 0 for the first that is seen, one more for each further one.
-- KEYS: the hash of identities. ARGV: identity.
local held = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(held) == 'table' and held.err then return held end
if held then return tonumber(held) end
local epoch = redis.call('HLEN', KEYS[1])
local done = redis.pcall('HSET', KEYS[1], ARGV[1], epoch)
if type(done) == 'table' and done.err then return done end
return epoch
