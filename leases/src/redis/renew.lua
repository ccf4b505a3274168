-- Prolongs a lease that the holder has; one that has run out is gone. KEYS: the lease, its token. ARGV: the holder, its time in
-- milliseconds. Answers 1, or 0 when it is the holder's no more.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
-- A token that somebody removed is one that would be given out again.
if redis.call('EXISTS', KEYS[2]) == 0 then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
