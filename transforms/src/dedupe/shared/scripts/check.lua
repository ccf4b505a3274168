-- KEYS: what the store knows of itself, the histories of keys, the histories of rows.
local meta, claims, rows = KEYS[1], KEYS[2], KEYS[3]

-- What is gone of the store of this generation, of which the caller knows so many writes; nil when it is whole. Nobody but
-- these scripts touches the hashes, so their lengths tell whether the server has dropped any of it.
local function missing(generation, writes)
  local held = redis.call('HMGET', meta, 'generation', 'writes', 'claims', 'rows')
  if not held[1] then return 'it is empty' end
  if held[1] ~= generation then return 'it is not the one that was used before' end
  if tonumber(held[2]) < tonumber(writes) then return 'it has gone back to an earlier state' end
  if redis.call('HLEN', claims) ~= tonumber(held[3]) or redis.call('HLEN', rows) ~= tonumber(held[4]) then
    return 'a part of it is missing'
  end
end
