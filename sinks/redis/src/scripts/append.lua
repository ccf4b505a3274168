-- One step of a sink: appends entries to streams, and notes how far their sources have come with it. All of it, or nothing: when
-- another step than the one it follows was the last, or when a key holds something else than a stream.
-- KEYS: each stream; where the progress is kept, for each source; where the last step is noted.
-- ARGV: the step that it follows, its own name, how many streams, how many sources, how many entries, how many of them a stream
-- keeps about or 0; the progress of each source; then for each entry: which stream, how many words, field, value, ….
-- Returns {0, 0}; or -1 and the places of keys that hold something else; or -2 when another step was the last, and whether there is one.
local function failed(reply) return type(reply) == 'table' and reply.err end
local streams, sources, most = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6]
local last = KEYS[streams + sources + 1]
local before = redis.pcall('GET', last)
if failed(before) then return before end
if before ~= ARGV[1] then return {-2, before and 1 or 0} end
local refused = {-1}
for i = 1, streams do
  local there = redis.pcall('TYPE', KEYS[i])
  if failed(there) then return there end
  if there.ok ~= 'stream' and there.ok ~= 'none' then refused[#refused + 1] = i end
end
if #refused > 1 then return refused end

local at = 7 + sources
for _ = 1, tonumber(ARGV[5]) do
  local key, many = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  local done
  if most == '0' then
    done = redis.pcall('XADD', key, '*', unpack(ARGV, at + 2, at + 1 + many))
  else
    done = redis.pcall('XADD', key, 'MAXLEN', '~', most, '*', unpack(ARGV, at + 2, at + 1 + many))
  end
  if failed(done) then return redis.error_reply(done.err .. ' (key ' .. key .. ')') end
  at = at + 2 + many
end
-- Last: what is noted is there.
local sets = {}
for i = 1, sources do
  sets[2 * i - 1], sets[2 * i] = KEYS[streams + i], ARGV[6 + i]
end
sets[2 * sources + 1], sets[2 * sources + 2] = last, ARGV[2]
local done = redis.pcall('MSET', unpack(sets))
if failed(done) then return done end
return {0, 0}
