--- Stopping jobs: how long it takes, what it costs those that are never stopped, and isolated executions beside new
--- VMs.
---
--- `make bench-cancel`. All figures of one run; costs are medians of rounds taken in turn.

local ffi = require "ffi"
local measure = require "bench.measure"
local msys = require "msys"

local now = measure.now
local workers = msys.workers

local STOPS = 300

local function percentile(list, share)
  table.sort(list)
  return list[math.max(1, math.ceil(#list * share))]
end

-- Stops -------------------------------------------------------------------------------------------------------------

local RUNAWAYS = {
  ["compiled loop"] = function()
    while true do
    end
  end,
  ["pcall in a loop"] = function()
    while true do
      pcall(error)
    end
  end,
  ["strings"] = function()
    while true do
      local _ = ("x"):rep(1000) .. tostring(1)
    end
  end,
  ["a sleep"] = function()
    msys.sleep(1000)
  end,
}

local function noop() end

print "\nFrom cancel() to the outcome, and until the worker has run another job; ms"
print "| what | median | p99 | worker free, median | p99 |"
print "|---|---|---|---|---|"
local pool = msys.threadpool.create { name = "stops", concurrency = 1 }
for what, fn in pairs(RUNAWAYS) do
  local back, free = {}, {}
  for _ = 1, STOPS do
    local future = msys.submit(pool, fn)
    while future:status() == "queued" do
      msys.sleep(0)
    end
    -- Until it is compiled.
    msys.sleep(0.002)
    local started = now()
    future:cancel()
    local ok, _, info = future:wait()
    back[#back + 1] = (now() - started) * 1e3
    assert(not ok and info.kind == "cancelled")
    msys.runInPool(pool, noop)
    free[#free + 1] = (now() - started) * 1e3
  end
  print(
    ("| %s | %.2f | %.2f | %.2f | %.2f |"):format(
      what,
      percentile(back, 0.5),
      percentile(back, 0.99),
      percentile(free, 0.5),
      percentile(free, 0.99)
    )
  )
end
pool:shutdown()

-- Costs -------------------------------------------------------------------------------------------------------------

local LOOPS = {
  {
    "sum",
    function()
      local sum = 0
      for i = 1, 2e7 do
        sum = sum + i
      end
      return sum
    end,
  },
  {
    "array",
    function()
      local list, sum = {}, 0
      for i = 1, 1000 do
        list[i] = i
      end
      for _ = 1, 2e4 do
        for i = 1, 1000 do
          sum = sum + list[i]
        end
      end
      return sum
    end,
  },
  {
    "call",
    function()
      local function add(a, b)
        return a + b
      end
      local sum = 0
      for i = 1, 2e7 do
        sum = add(sum, i)
      end
      return sum
    end,
  },
  {
    "string",
    function()
      local length = 0
      for i = 1, 2e5 do
        length = length + #("item " .. i % 1000 .. ":" .. i)
      end
      return length
    end,
  },
  {
    "allocation",
    function()
      local last
      for i = 1, 1e6 do
        last = { i, last and last[1] }
      end
      return last[1]
    end,
  },
}

-- A loop of six instructions depends on where its code lies, so each pair of pools has it elsewhere; and where other
-- machines share the core, code that fills it takes up to half as long again, guards or not: the least of all counts.
local LOADS, ROUNDS = 9, 8
print(
  ("\nTime of a loop with interruptible = true, a share of that with false: %d rounds in each of %d pairs"):format(
    ROUNDS,
    LOADS
  )
)
print "| loop | by the least of all | by the least of each pair: median | from, to |"
print "|---|---|---|---|"
--- How long a loop takes by the worker's clock: how long it takes to wake up is not the loop's.
local function timed(where, fn)
  local ok, seconds = msys.runInPool(where, function()
    local clock = require "msys.native".clock
    local started = clock()
    fn()
    return clock() - started
  end)
  assert(ok, seconds)
  return seconds
end
local shares, with_least, without_least = {}, {}, {}
for place in ipairs(LOOPS) do
  shares[place], with_least[place], without_least[place] = {}, math.huge, math.huge
end
for _ = 1, LOADS do
  local with = msys.threadpool.create { name = "with", concurrency = 1 }
  local without = msys.threadpool.create { name = "without", concurrency = 1, interruptible = false }
  for place, loop in ipairs(LOOPS) do
    local fn = loop[2]
    timed(with, fn)
    timed(without, fn)
    local one, other = math.huge, math.huge
    for _ = 1, ROUNDS do
      one, other = math.min(one, timed(with, fn)), math.min(other, timed(without, fn))
    end
    table.insert(shares[place], one / other)
    with_least[place], without_least[place] =
      math.min(with_least[place], one), math.min(without_least[place], other)
  end
  with:shutdown()
  without:shutdown()
end
local least = {}
for place, loop in ipairs(LOOPS) do
  least[place] = with_least[place] / without_least[place]
  print(("| %s | %.3f | %.3f | %.3f to %.3f |"):format(loop[1], least[place], measure.median(shares[place])))
end
local middle, _, worst = measure.median(least)
print(("median of the loops: %.3f, worst: %.3f"):format(middle, worst))

-- Isolated executions -----------------------------------------------------------------------------------------------

ffi.cdef [[
  void *luaL_newstate(void);
  void luaL_openlibs(void *state);
  void lua_close(void *state);
]]

print "\nA second"
local isolated = assert(workers.newPool(2))
local script =
  assert(workers.compile "local sum = 0 for i = 1, 10 do sum = sum + i end total = sum return total")
local fresh = assert(workers.newPool(2, { fresh = true }))
local function executions(where, count)
  return function()
    local left = count
    local started = now()
    for _ = 1, 64 do
      msys.spawn(function()
        while left > 0 do
          left = left - 1
          local ok, sum = where:submit(script)
          assert(ok and sum == 55)
        end
      end)
    end
    msys.run()
    return count / (now() - started)
  end
end
local NEW, ISOLATED, FRESH =
  "new state, libraries, close (one thread)", "isolated executions", "isolated executions, fresh = true"
local medians = measure.table(7, {
  { ISOLATED, executions(isolated, 10000) },
  { FRESH, executions(fresh, 1000) },
  {
    NEW,
    function()
      local count = 1000
      return 1
        / measure.each(count, function()
          for _ = 1, count do
            local state = ffi.C.luaL_newstate()
            ffi.C.luaL_openlibs(state)
            ffi.C.lua_close(state)
          end
        end)
    end,
  },
})
measure.ratio(medians, "isolated executions against new states", ISOLATED, NEW)
isolated:shutdown()
fresh:shutdown()
