-- Reads histories.
-- ARGV: generation, writes known, version of the logs, number of keys, keys…, rows…
local why = missing(ARGV[1], ARGV[2])
if why then return {'lost', why} end
local held = redis.call('HMGET', meta, 'writes', 'sequence', 'logs')
if held[3] ~= ARGV[3] then return {'logs'} end

local function get(hash, from, to)
  local found = {}
  for first = from, to, 1000 do
    local values = redis.call('HMGET', hash, unpack(ARGV, first, math.min(first + 999, to)))
    for i = 1, #values do found[#found + 1] = values[i] end
  end
  return found
end

local keys = tonumber(ARGV[4])
return {'ok', held[1], held[2], get(claims, 5, 4 + keys), get(rows, 5 + keys, #ARGV)}
