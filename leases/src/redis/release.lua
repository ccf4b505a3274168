-- Lets go of a lease that the holder has, and leaves a word for one who waits. KEYS: the lease, the list of words. ARGV: the
-- holder, milliseconds for which the word is of use. Answers 1, or 0 when it was the holder's no more.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('LPUSH', KEYS[2], '1')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
