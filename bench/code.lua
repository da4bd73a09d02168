--- What a job's code costs: a hot loop sent a thousand times, beside the same function called a thousand times in one
--- VM.
---
--- `make bench-code`. A function is loaded once in a worker, so its compiled loops serve all jobs: the traces are
--- counted.

local measure = require "bench.measure"
local msys = require "msys"

local JOBS, ROUNDS = 1000, 5

--- The lengths of a job: some 0.6 ms, of which waking the host, which waits for it, is a share, and some 5 ms.
local SHORT, LONG = 80, 640

local function hot(seed, times)
  local list, sum = {}, seed
  for i = 1, 1000 do
    list[i] = (i * seed) % 1009
  end
  for _ = 1, times do
    for i = 1, #list do
      sum = (sum + list[i]) % 1000003
    end
  end
  return sum
end

local pool = msys.threadpool.create { name = "code", concurrency = 1 }

local checked = measure.must

local function traces()
  local util, count = require "jit.util", 0
  for trace = 1, 10000 do
    if util.traceinfo(trace) then count = count + 1 end
  end
  return count
end

--- What measures calls in this VM, and what measures jobs.
local function ways(times)
  return function()
    return 1e3
      * measure.each(JOBS, function(count)
        for i = 1, count do
          hot(i, times)
        end
      end)
  end, function()
    return 1e3
      * measure.each(JOBS, function(count)
        -- Two sessions, so that the worker has the next job when one ends: what is measured is the code, not the
        -- wake-ups.
        for session = 1, 2 do
          msys.spawn(function()
            for i = session, count, 2 do
              checked(msys.runInPool(pool, function()
                return hot(i, times)
              end))
            end
          end)
        end
        msys.run()
      end)
  end
end

for i = 1, 20 do
  hot(i, SHORT)
  checked(msys.runInPool(pool, function()
    return hot(i, SHORT)
  end))
end
local before = checked(msys.runInPool(pool, traces))
for what, times in pairs { short = SHORT, long = LONG } do
  local calls, jobs = ways(times)
  local CALL, JOB = ("ms a %s call, in one VM"):format(what), ("ms a %s call, each a job"):format(what)
  local medians = measure.table(ROUNDS, { { CALL, calls }, { JOB, jobs } })
  measure.ratio(medians, "jobs as fast as calls", JOB, CALL, true)
  print()
end
local after = checked(msys.runInPool(pool, traces))
print(("traces after 20 jobs: %d, after %d: %d"):format(before, 2 * ROUNDS * JOBS + 20, after))
