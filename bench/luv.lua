--- msys beside lua-luv's `new_work`, alternately in one process: tiny jobs a second, and the round trip of one.
---
--- `make bench`. Ratios count; absolute figures depend on the machine and its other guests.

local ffi = require "ffi"
local msys = require "msys"
local has_luv, uv = pcall(require, "luv")

ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } bench_timespec;
  int clock_gettime(int clock, bench_timespec *time);
]]

local MONOTONIC = 1
local spec = ffi.new "bench_timespec"
local function now()
  ffi.C.clock_gettime(MONOTONIC, spec)
  return tonumber(spec.seconds) + tonumber(spec.nanoseconds) * 1e-9
end

local JOBS, TRIPS, ROUNDS = 100000, 20000, 7
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED

local function msys_jobs()
  local done, started = 0, now()
  for i = 1, JOBS do
    msys.runInPool("CPU", function()
      return i
    end, function()
      done = done + 1
    end, SCHED)
  end
  msys.run()
  assert(done == JOBS)
  return JOBS / (now() - started)
end

local function msys_sessions()
  local started = now()
  msys.run(function()
    for _ = 1, 100 do
      msys.spawn(function()
        for i = 1, JOBS / 100 do
          msys.runInPool("CPU", function()
            return i
          end)
        end
      end)
    end
  end)
  return JOBS / (now() - started)
end

local function msys_from_worker()
  local started = now()
  local counted = msys.threadpool.stat("CPU").invocations
  assert(msys.runInPool("CPU", function()
    for i = 1, JOBS do
      msys.runInPool("CPU", function()
        return i
      end, true)
    end
  end, { args = { JOBS } }))
  while msys.threadpool.stat("CPU").invocations - counted < JOBS do
    msys.sleep(0.0005)
  end
  return JOBS / (now() - started)
end

local function msys_trips(times)
  for i = 1, TRIPS do
    local started = now()
    msys.runInPool("CPU", function()
      return i
    end)
    times[i] = now() - started
  end
end

local function luv_jobs()
  local done, started = 0, now()
  local work = uv.new_work(function(i)
    return i
  end, function()
    done = done + 1
  end)
  for i = 1, JOBS do
    work:queue(i)
  end
  uv.run()
  assert(done == JOBS)
  return JOBS / (now() - started)
end

local function luv_trips(times)
  local done
  local work = uv.new_work(function(i)
    return i
  end, function()
    done = true
  end)
  for i = 1, TRIPS do
    local started = now()
    done = false
    work:queue(i)
    while not done do
      uv.run "once"
    end
    times[i] = now() - started
  end
end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)], list[1], list[#list]
end

--- Runs the measurements in turn, so that all see the same machine.
local function rounds(measures)
  local figures = {}
  for _ = 1, ROUNDS do
    for name, measure in pairs(measures) do
      collectgarbage()
      figures[name] = figures[name] or {}
      table.insert(figures[name], measure())
    end
  end
  return figures
end

local function trip(measure, share)
  return function()
    local times = {}
    measure(times)
    table.sort(times)
    return times[math.ceil(#times * share)] * 1e6
  end
end

local measures = {
  ["jobs/s, msys, asynchronous with completion"] = msys_jobs,
  ["jobs/s, msys, synchronous from 100 sessions"] = msys_sessions,
  ["jobs/s, msys, submitted by a worker"] = msys_from_worker,
  ["us, msys, round trip, median"] = trip(msys_trips, 0.5),
  ["us, msys, round trip, p99"] = trip(msys_trips, 0.99),
}
if has_luv then
  measures["jobs/s, luv new_work, with completion"] = luv_jobs
  measures["us, luv new_work, round trip, median"] = trip(luv_trips, 0.5)
  measures["us, luv new_work, round trip, p99"] = trip(luv_trips, 0.99)
else
  io.stderr:write "bench/luv.lua: lua-luv is not installed, so msys is measured alone (apt-get install lua-luv)\n"
end

local lines = {}
for name, figures in pairs(rounds(measures)) do
  local middle, least, most = median(figures)
  lines[#lines + 1] = ("| %s | %.5g | %.5g to %.5g |"):format(name, middle, least, most)
end
table.sort(lines)
print "| what | median of 7 rounds | from, to |"
print "|---|---|---|"
print(table.concat(lines, "\n"))
