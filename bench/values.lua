--- Values on their way: msys beside LuaJIT's `string.buffer` by hand over the same pool, and beside lua-luv where that
--- can.
---
--- `make bench-values`. Ratios count; absolute figures depend on the machine and its other guests.

local buffer = require "string.buffer"
local measure = require "bench.measure"
local msys = require "msys"
local native = require "msys.native"
local has_luv, uv = pcall(require, "luv")

-- So many echoes in a row that each pays for the garbage that it leaves.
local RECORDS, ECHOES, STRINGS, SIZE, ROUNDS = 10000, 200, 64, 2 ^ 20, 7

local records = {}
for i = 1, RECORDS do
  records[i] = { id = i, name = "name " .. i, score = i / 2 }
end

local function checked(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

local function echo(...)
  return ...
end

--- Records a second, for `fn(records)` that gives them back.
local function rate(fn)
  return function()
    local last
    local seconds = measure.each(ECHOES, function(count)
      for _ = 1, count do
        last = fn(records)
      end
    end)
    assert(#last == RECORDS and last[RECORDS].name == records[RECORDS].name)
    return RECORDS / seconds / 1e6
  end
end

--- Workers of its own: `string.buffer` leaves hundreds of megabytes of garbage, which whoever comes next would pay for.
local by_hand_pool = msys.threadpool.create { name = "by hand", concurrency = 2 }

local function by_hand(data)
  local serial = require "string.buffer"
  return serial.encode(serial.decode(data))
end

local ticks = 0

--- Strings that no VM has seen.
local function strings()
  local list = {}
  for i = 1, STRINGS do
    ticks = ticks + 1
    list[i] = ("%08x"):format(ticks * 2654435761 % 2 ^ 32):rep(SIZE / 8)
  end
  return list
end

--- MiB a second, for `fn(string)` that gives it back.
local function throughput(fn)
  return function()
    local list = strings()
    local seconds = measure.each(STRINGS, function(count)
      for i = 1, count do
        assert(#fn(list[i]) == SIZE)
      end
    end)
    return SIZE / 2 ^ 20 / seconds
  end
end

local function luv_echo()
  local back, done
  local work = uv.new_work(echo, function(...)
    back, done = ..., true
  end)
  return function(value)
    done = false
    work:queue(value)
    while not done do
      uv.run "once"
    end
    return back
  end
end

local function closure_of(a, b)
  return function()
    return a + b
  end
end

-- Strings first: what the records leave behind, in luv's threads too, would count for them.
local strings_rows = {
  {
    "strings of 1 MiB, MiB/s, msys",
    throughput(function(text)
      return checked(msys.runInPool("CPU", echo, { args = { text } }))
    end),
  },
}

local rows = {
  {
    "records, M/s, msys",
    rate(function(list)
      return checked(msys.runInPool("CPU", echo, { args = { list } }))
    end),
  },
  {
    "records, M/s, msys, as copies (`in_place = false`)",
    rate(function(list)
      return checked(msys.runInPool("CPU", echo, { args = { list }, in_place = false }))
    end),
  },
  {
    "records, M/s, string.buffer by hand over msys",
    rate(function(list)
      local args = { buffer.encode(list) }
      return buffer.decode(checked(msys.runInPool(by_hand_pool, by_hand, { args = args, in_place = false })))
    end),
  },
  {
    "closure of two upvalues, encoded and decoded, µs",
    function()
      return 1e6
        * measure.each(100000, function(count)
          for i = 1, count do
            native.copy(closure_of(i, 1))
          end
        end)
    end,
  },
}

if has_luv then
  local luv = luv_echo()
  local luv_by_hand = (function()
    local back, done
    local work = uv.new_work(by_hand, function(...)
      back, done = ..., true
    end)
    return function(list)
      done = false
      work:queue(buffer.encode(list))
      while not done do
        uv.run "once"
      end
      return buffer.decode(back)
    end
  end)()
  table.insert(rows, 4, { "records, M/s, string.buffer by hand over luv", rate(luv_by_hand) })
  table.insert(strings_rows, { "strings of 1 MiB, MiB/s, luv", throughput(luv) })
else
  io.stderr:write "bench/values.lua: lua-luv is not installed (apt-get install lua-luv)\n"
end

local throughputs = measure.table(ROUNDS, strings_rows)
measure.ratio(
  throughputs,
  "strings of 1 MiB, msys against luv",
  "strings of 1 MiB, MiB/s, msys",
  "strings of 1 MiB, MiB/s, luv"
)
print()

local size = #string.dump(closure_of(1, 2), true)
local medians = measure.table(ROUNDS, rows)
print(
  ("\nThe closure's code has %d bytes, %d with its debug information."):format(
    size,
    #string.dump(closure_of(1, 2))
  )
)
local hand = "records, M/s, string.buffer by hand over msys"
measure.ratio(medians, "records, msys against string.buffer by hand over msys", "records, M/s, msys", hand)
measure.ratio(
  medians,
  "records as copies, msys against string.buffer by hand over msys",
  "records, M/s, msys, as copies (`in_place = false`)",
  hand
)
