-- A fault of LuaJIT's own, without msys and with default options: `length` gives nil for a list of two.
--
-- In compiled code, LuaJIT of before July 2022 on x86-64 has the key of an array item in a place on the C stack that
-- the next `next` overwrites, and may load it only after that, when it is compared: so keys are compared with the wrong
-- ones. Upstream's "x86/x64: Limit VLOAD fusion to simple cases" (e1339aed) mends it; `-O-fuse` avoids it. Debian's
-- luajit says 100 wrong, OpenResty's 0.
local function length(list)
  local count, most = 0, 0
  for key in next, list do
    if type(key) == "number" and key >= 1 and key % 1 == 0 then
      count = count + 1
      most = key > most and key or most
    end
  end
  return most == count and count or nil
end

-- Two lists of the same keys: `next` gives 2 before 1 in the one, in the hash part; the other has an array part.
local hash
for size = 1, 6 do
  -- A hash part that has room for both, so that they do not go to an array part.
  hash = {}
  for key = 1, 2 ^ size do
    hash["key" .. key] = true
  end
  for key in pairs(hash) do
    hash[key] = nil
  end
  hash[2], hash[1] = true, true
  if next(hash) == 2 then break end
end
local array = { true, true }
assert(next(hash) == 2 and next(array) == 1)

local wrong, last = 0, nil
local lists = {}
for i = 1, 200 do
  lists[i] = false
end -- makes the loop's trace
for i = 201, 300 do
  lists[i] = hash
end -- makes a side trace, with length's loop unrolled
for i = 301, 400 do
  lists[i] = array
end -- runs in that
for i = 1, 400 do
  if lists[i] then
    local got = length(lists[i])
    if got ~= 2 then
      wrong, last = wrong + 1, i
    end
  end
end
print(jit.version, "wrong: " .. wrong, last and "last at " .. last or "")
