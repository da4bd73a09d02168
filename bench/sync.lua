--- Locks, channels and shared data: what they cost alone, and between workers beside a round trip of lua-luv and of
--- cqueues.
---
--- `make bench-sync`. Ratios count; absolute figures depend on the machine and its other guests.

local ffi = require "ffi"
local measure = require "bench.measure"
local msys = require "msys"
local thread = require "thread"
local has_luv, uv = pcall(require, "luv")
local has_cqueues, cqueues = pcall(require, "cqueues")

io.stdout:setvbuf "line"

local ROUNDS = 5

local function checked(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

--- Nanoseconds for each of `count`.
local function each(count, fn)
  return function()
    return measure.each(count, fn) * 1e9
  end
end

local mutex, counter, channel = thread.mutex(), thread.counter(), thread.channel()
local shared = thread.shared { number = 1, text = "some text" }
local ITEMS = 1024
local buffer, array = thread.buffer("double", ITEMS), ffi.new("double[?]", ITEMS)
for i = 0, ITEMS - 1 do
  buffer[i], array[i] = i, i
end

local function sum_of(numbers)
  return function(count)
    local sum = 0
    for _ = 1, count / ITEMS do
      for i = 0, ITEMS - 1 do
        sum = sum + numbers[i]
      end
    end
    assert(sum > 0)
  end
end

print "Alone, in compiled code, in nanoseconds:\n"
local alone = measure.table(ROUNDS, {
  {
    "`lock` and `unlock` of a mutex",
    each(1e6, function(count)
      for _ = 1, count do
        mutex:lock()
        mutex:unlock()
      end
    end),
  },
  {
    "`counter:add`",
    each(1e6, function(count)
      for i = 1, count do
        counter:add(i)
      end
    end),
  },
  {
    "a number of a shared table",
    each(1e6, function(count)
      local sum = 0
      for _ = 1, count do
        sum = sum + shared.number
      end
      assert(sum == count)
    end),
  },
  {
    "a string of a shared table",
    each(1e6, function(count)
      local text
      for _ = 1, count do
        text = shared.text
      end
      assert(text)
    end),
  },
  {
    "a number into a shared table",
    each(1e6, function(count)
      for i = 1, count do
        shared.last = i
      end
    end),
  },
  {
    "`send` and `receive` of a number",
    each(1e6, function(count)
      for i = 1, count do
        channel:send(i)
        channel:receive()
      end
    end),
  },
  { "an item of a buffer", each(5e7, sum_of(buffer)) },
  { "an item of an FFI array", each(5e7, sum_of(array)) },
})
measure.ratio(
  alone,
  "an item of a buffer beside one of an FFI array",
  "an item of a buffer",
  "an item of an FFI array",
  true
)

--- Two jobs that run at once, in a pool of two workers; gives the time until both have ended.
local function two_workers(one, other)
  local pool = msys.threadpool.create { name = "two", concurrency = 2, sessions = 1 }
  local started
  msys.run(function()
    -- Both workers are there before the time counts.
    local ready, go = thread.channel(), thread.channel()
    local both = {}
    for place, fn in ipairs { one, other } do
      both[place] = msys.submit(pool, function(work)
        ready:send(true)
        go:receive()
        return work()
      end, fn)
    end
    for _ = 1, 2 do
      ready:receive()
    end
    started = measure.now()
    for _ = 1, 2 do
      go:send(true)
    end
    msys.all(both)
  end)
  local seconds = measure.now() - started
  pool:shutdown()
  return seconds
end

local TURNS = 20000

--- Two workers that take turns: each hand-over passes the mutex on.
local function turns_of_a_condition()
  local lock, turn = thread.mutex(), thread.counter(0)
  local changed = thread.condition(lock)
  local function player(own)
    return function()
      for _ = 1, TURNS do
        lock:lock()
        while turn:get() ~= own do
          changed:wait()
        end
        turn:set(1 - own)
        changed:signal()
        lock:unlock()
      end
    end
  end
  return two_workers(player(0), player(1)) / TURNS * 1e6
end

--- The same with two channels.
local function turns_of_channels()
  local there, back = thread.channel(), thread.channel()
  local function one()
    for i = 1, TURNS do
      there:send(i)
      back:receive()
    end
  end
  local function other()
    for _ = 1, TURNS do
      local _, i = there:receive()
      back:send(i)
    end
  end
  return two_workers(one, other) / TURNS * 1e6
end

local function turns_of_luv()
  local left, ctx = TURNS, nil
  ctx = uv.new_work(function(i)
    return i
  end, function()
    left = left - 1
    if left > 0 then ctx:queue(left) end
  end)
  local started = measure.now()
  ctx:queue(left)
  uv.run()
  return (measure.now() - started) / TURNS * 1e6
end

local function turns_of_cqueues()
  local threads = require "cqueues.thread"
  local loop = cqueues.new()
  local seconds
  loop:wrap(function()
    local _, connection = threads.start(function(connection)
      for line in connection:lines "*L" do
        connection:write(line)
        connection:flush()
      end
    end)
    connection:write "ready\n"
    connection:flush()
    connection:read "*L"
    local started = measure.now()
    for _ = 1, TURNS do
      connection:write "x\n"
      connection:flush()
      connection:read "*L"
    end
    seconds = measure.now() - started
    connection:shutdown "w"
  end)
  checked(loop:loop())
  return seconds / TURNS * 1e6
end

local rows = {
  { "msys: mutex and condition", turns_of_a_condition },
  { "msys: two channels", turns_of_channels },
}
if has_luv then rows[#rows + 1] = { "luv: a thread of its pool", turns_of_luv } end
if has_cqueues then rows[#rows + 1] = { "cqueues: a thread's socket", turns_of_cqueues } end

print "\nThere and back between two threads, in microseconds:\n"
local turns = measure.table(ROUNDS, rows)
for _, peer in ipairs { "luv: a thread of its pool", "cqueues: a thread's socket" } do
  measure.ratio(turns, "mutex and condition beside " .. peer, "msys: mutex and condition", peer, true)
  measure.ratio(turns, "two channels beside " .. peer, "msys: two channels", peer, true)
end

local LOCKS = 200000

--- Two workers that want one mutex all the time, in millions of times a second.
local function contended()
  local lock = thread.mutex()
  local data = thread.buffer("double", 1)
  local function work()
    for _ = 1, LOCKS do
      lock:lock()
      data[0] = data[0] + 1
      lock:unlock()
    end
  end
  local seconds = two_workers(work, work)
  assert(data[0] == 2 * LOCKS)
  return 2 * LOCKS / seconds / 1e6
end

local NUMBERS = 2e6

local function through(capacity)
  return function()
    local numbers = thread.channel(capacity)
    local sum = thread.counter()
    local seconds = two_workers(function()
      for i = 1, NUMBERS do
        numbers:send(i)
      end
      numbers:close()
    end, function()
      local total = 0
      while true do
        local received, number = numbers:receive()
        if not received then break end
        total = total + number
      end
      sum:set(total)
    end)
    assert(sum:get() == NUMBERS * (NUMBERS + 1) / 2)
    return NUMBERS / seconds / 1e6
  end
end

print "\nBetween two workers, in millions a second:\n"
measure.table(ROUNDS, {
  { "one mutex that both want all the time", contended },
  { "numbers through a channel without bound", through(nil) },
  { "numbers through a channel of 1024", through(1024) },
})

local MAPPED = 100000

--- So many turns of a loop take about a microsecond.
local function spin(count)
  local x = 0
  for i = 1, count do
    x = x + i % 7
  end
  return x
end

local function turns_for(microseconds)
  local many = 1e7
  return math.max(
    1,
    math.floor(microseconds * 1e-6 / (measure.each(1, function()
      spin(many)
    end) / many))
  )
end

local list = {}
for i = 1, MAPPED do
  list[i] = i
end

for _, microseconds in ipairs { 20, 0.1 } do
  local turns_each = turns_for(microseconds)
  local function item(value)
    return value + spin(turns_each)
  end
  print(("\n`msys.map` over %d items of %g µs, in items a microsecond:\n"):format(MAPPED, microseconds))
  local medians = measure.table(ROUNDS, {
    {
      "a plain loop",
      function()
        return 1e-6
          / measure.each(MAPPED, function(count)
            local results = {}
            for i = 1, count do
              results[i] = item(list[i])
            end
            assert(#results == count)
          end)
      end,
    },
    {
      "`msys.map`",
      function()
        return 1e-6
          / measure.each(MAPPED, function(count)
            msys.run(function()
              local results = msys.map("CPU", list, item)
              assert(#results == count and results[count] == item(list[count]))
            end)
          end)
      end,
    },
  })
  measure.ratio(medians, "map beside the loop", "`msys.map`", "a plain loop")
end
