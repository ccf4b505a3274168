-- Notes up to where everything of sources is there. KEYS: the hash. ARGV: how many words follow; name, version for each.
return redis.pcall('HSET', KEYS[1], unpack(ARGV, 2, tonumber(ARGV[1]) + 1))
