-- Takes a lease. KEYS: the lease, its token. ARGV: the holder, its time in milliseconds.
-- Answers {1, token}, or {0, milliseconds left} when somebody else has it.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
    -- The answer to the same question was lost. The token was made for it.
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {1, redis.call('GET', KEYS[2])}
end
if holder then
    return {0, redis.call('PTTL', KEYS[1])}
end
-- Not below the clock: a counter that was forgotten with a failover goes on above what it had given out. All of it is far
-- below 2^53, up to where numbers are exact here.
local time = redis.call('TIME')
local least = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(redis.call('GET', KEYS[2]) or '0') < least then
    redis.call('SET', KEYS[2], string.format('%.0f', least))
else
    redis.call('INCR', KEYS[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return {1, redis.call('GET', KEYS[2])}
