--- Stopping jobs: how long it takes, what it costs those that are never stopped, and isolated executions beside new
--- VMs.
---
--- `make bench-cancel`. All figures of one run; costs are medians of rounds taken in turn.

local ffi = require "ffi"
local measure = require "bench.measure"
local msys = require "msys"

local now = measure.now
local workers = msys.workers

local STOPS, ROUNDS = 300, 15

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

print(
  ("\nTime of a loop with interruptible = true, as a share of that with false: by the least of %d rounds"):format(
    ROUNDS
  )
)
print "| loop | share | by the medians |"
print "|---|---|---|"
local with = msys.threadpool.create { name = "with", concurrency = 1 }
local without = msys.threadpool.create { name = "without", concurrency = 1, interruptible = false }
local shares = {}
for _, loop in ipairs(LOOPS) do
  local fn = loop[2]
  -- By the worker's clock: how long it takes to wake up is not the loop's.
  local function job()
    local clock = require "msys.native".clock
    local started = clock()
    fn()
    return clock() - started
  end
  local function timed(where)
    local ok, seconds = msys.runInPool(where, job)
    assert(ok, seconds)
    return seconds
  end
  timed(with)
  timed(without)
  local all_with, all_without = {}, {}
  for round = 1, ROUNDS do
    all_with[round], all_without[round] = timed(with), timed(without)
  end
  local with_middle, with_least = measure.median(all_with)
  local without_middle, without_least = measure.median(all_without)
  local share = with_least / without_least
  shares[#shares + 1] = share
  print(("| %s | %.3f | %.3f |"):format(loop[1], share, with_middle / without_middle))
end
print(("median of the loops: %.3f, worst: %.3f"):format((measure.median(shares)), percentile(shares, 1)))
with:shutdown()
without:shutdown()

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
