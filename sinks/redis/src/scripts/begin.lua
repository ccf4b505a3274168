-- Takes the chain of steps over: what is on its way of another one follows nothing any more.
-- KEYS: where the last step is noted. ARGV: the name of the step before the first.
return redis.pcall('SET', KEYS[1], ARGV[1])
