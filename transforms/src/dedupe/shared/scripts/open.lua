-- Finds the store, or makes an empty one.
-- ARGV: generation that was used before ('' for none), writes known of it, a new generation, format, '1' to go on with
-- what is left when something is missing.
local format = redis.call('HGET', meta, 'format')
if format and format ~= ARGV[4] then return {'format', format} end
local generation = redis.call('HGET', meta, 'generation')
local why
if ARGV[1] ~= '' then
  why = missing(ARGV[1], ARGV[2])
elseif generation then
  why = missing(generation, '0')
elseif redis.call('EXISTS', claims, rows) > 0 then
  why = 'a part of it is missing'
end
if why and ARGV[5] ~= '1' then return {'lost', why} end
if not generation then
  -- Numbers of logs are gone with it, and facts without them mean nothing.
  redis.call('DEL', claims, rows)
  redis.call('HSET', meta, 'format', ARGV[4], 'generation', ARGV[3], 'writes', 0, 'sequence', 0, 'logs', 0,
    'claims', 0, 'rows', 0)
elseif why then
  redis.call('HSET', meta, 'claims', redis.call('HLEN', claims), 'rows', redis.call('HLEN', rows))
end
return {'ok', why or '', redis.call('HGETALL', meta)}
