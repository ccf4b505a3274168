-- Notes how far a source has come. KEYS: where. ARGV: the progress.
return redis.pcall('SET', KEYS[1], ARGV[1])
