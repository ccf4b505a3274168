-- Notes how far sources have come. KEYS: where, for each. ARGV: how many; the progress of each.
local words = {}
for i = 1, tonumber(ARGV[1]) do words[2 * i - 1], words[2 * i] = KEYS[i], ARGV[i + 1] end
return redis.pcall('MSET', unpack(words))
