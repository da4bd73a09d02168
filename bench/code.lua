--- What a job's code costs: a hot loop sent a thousand times, beside the same function called a thousand times in one
--- VM.
---
--- `make bench-code`. A function is loaded once in a worker, so its compiled loops serve all jobs: the traces are
--- counted.

local measure = require "bench.measure"
local msys = require "msys"

local JOBS, ROUNDS = 1000, 7

--- About half a millisecond, compiled.
local function hot(seed)
  local list, sum = {}, seed
  for i = 1, 1000 do
    list[i] = (i * seed) % 1009
  end
  for _ = 1, 80 do
    for i = 1, #list do
      sum = (sum + list[i]) % 1000003
    end
  end
  return sum
end

local pool = msys.threadpool.create { name = "code", concurrency = 1 }

local function checked(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

local function traces()
  local util, count = require "jit.util", 0
  for trace = 1, 10000 do
    if util.traceinfo(trace) then count = count + 1 end
  end
  return count
end

local rows = {
  {
    "ms a call, in one VM",
    function()
      return 1e3
        * measure.each(JOBS, function(count)
          for i = 1, count do
            hot(i)
          end
        end)
    end,
  },
  {
    "ms a call, each a job",
    function()
      return 1e3
        * measure.each(JOBS, function(count)
          -- Two sessions, so that the worker has the next job when one ends: what is measured is the code, not the
          -- wake-ups.
          for session = 1, 2 do
            msys.spawn(function()
              for i = session, count, 2 do
                checked(msys.runInPool(pool, function()
                  return hot(i)
                end))
              end
            end)
          end
          msys.run()
        end)
    end,
  },
  {
    "traces in the worker",
    function()
      return checked(msys.runInPool(pool, traces))
    end,
  },
}

for i = 1, 20 do
  hot(i)
  checked(msys.runInPool(pool, function()
    return hot(i)
  end))
end
local before = checked(msys.runInPool(pool, traces))
local medians = measure.table(ROUNDS, rows)
local after = checked(msys.runInPool(pool, traces))
print()
measure.ratio(medians, "jobs as fast as calls", "ms a call, each a job", "ms a call, in one VM", true)
print(("traces after 20 jobs: %d, after %d: %d"):format(before, ROUNDS * JOBS + 20, after))
