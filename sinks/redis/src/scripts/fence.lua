-- Refuses whoever has an older token than the greatest seen, and remembers a newer one. Stands before another script.
-- The last of KEYS: the fence, in the slot of the others. The last of ARGV: the token, in 16 hexadecimal digits.
do
  local seen = redis.pcall('GET', KEYS[#KEYS])
  if type(seen) == 'table' and seen.err then return seen end
  if seen and seen > ARGV[#ARGV] then return redis.error_reply('FENCED a newer lease has written here: ' .. seen) end
  if seen ~= ARGV[#ARGV] then
    local done = redis.pcall('SET', KEYS[#KEYS], ARGV[#ARGV])
    if type(done) == 'table' and done.err then return done end
  end
end
