--- What a job costs as their number grows: queued jobs, sessions, workers, pools. `make bench-curves`.

local chart = require "bench.chart"
local measure = require "bench.measure"
local msys = require "msys"
local thread = require "thread"

local now, must = measure.now, measure.must

--- Microseconds a job, sent and run, of so many that are queued at once.
local function queued(count)
  local pool = msys.threadpool.create { name = "queued", concurrency = 1, sessions = 1, backlog = 2 ^ 21 }
  local go = thread.channel()
  msys.runInPool(pool, function()
    go:receive()
  end, true)
  local started = now()
  for i = 1, count do
    msys.runInPool(pool, function()
      return i
    end, true)
  end
  local sent = now()
  go:close()
  pool:shutdown()
  local ended = now()
  return (sent - started) / count * 1e6, (ended - sent) / count * 1e6
end

--- Seconds a call of `fn(session, i)`, `each` from so many sessions.
local function from_sessions(count, each, fn)
  for session = 1, count do
    msys.spawn(function()
      for i = 1, each do
        fn(session, i)
      end
    end)
  end
  local started = now()
  msys.run()
  return (now() - started) / (count * each)
end

--- Microseconds a job, of so many sessions that each wait for one at a time.
local function sessions(count)
  local pool = msys.threadpool.create { name = "sessions", concurrency = 2, backlog = 2 ^ 21 }
  local each = math.max(1, math.floor(100000 / count))
  local function all()
    return from_sessions(count, each, function(_, i)
      must(msys.runInPool(pool, function()
        return i
      end))
    end) * 1e6
  end
  all()
  local time = all()
  pool:shutdown()
  return time
end

--- Microseconds a job, of 100 sessions and so many workers; with the speed-up of numeric and of table-heavy jobs.
local function workers(count)
  local jobs = require "bench.peers.jobs"
  local pool = msys.threadpool.create { name = "workers", concurrency = count }
  local function all(each, fn)
    return from_sessions(100, each, function(_, i)
      must(msys.runInPool(pool, function()
        return fn(i)
      end))
    end)
  end
  local function nothing(i)
    return i
  end
  all(10, nothing)
  local time = all(500, nothing) * 1e6
  local speed_up = {}
  for _, row in ipairs { "numeric", "tables" } do
    all(1, jobs[row])
    local inline = jobs.inline(row, now) / jobs.COUNT[row]
    speed_up[#speed_up + 1] = inline / all(3, jobs[row])
  end
  pool:shutdown()
  return time, speed_up[1], speed_up[2]
end

--- Microseconds a job, given in turn to so many pools of one worker.
local function pools(count)
  local list = {}
  for place = 1, count do
    list[place] = msys.threadpool.create { name = "pool " .. place, concurrency = 1 }
  end
  local function all(each)
    return from_sessions(100, each, function(session, i)
      must(msys.runInPool(list[(session + i) % count + 1], function()
        return i
      end))
    end) * 1e6
  end
  all(20)
  local time = all(500)
  for _, pool in ipairs(list) do
    pool:shutdown()
  end
  return time
end

print "| queued jobs | µs to send one | µs to run one |"
print "|---|---|---|"
for _, count in ipairs { 1000, 10000, 100000, 1000000 } do
  print(("| %d | %.2f | %.2f |"):format(count, queued(count)))
end
print "\n| sessions that wait | µs a job |"
print "|---|---|"
for _, count in ipairs { 10, 100, 1000, 10000, 100000 } do
  print(("| %d | %.2f |"):format(count, sessions(count)))
end
print "\n| workers | µs a tiny job | speed-up of numeric jobs | of table-heavy jobs |"
print "|---|---|---|---|"
local numeric, tables = { name = "numeric", points = {} }, { name = "table-heavy", points = {} }
for _, count in ipairs { 1, 2, 4, 8, 16, 32, 64 } do
  local time, of_numeric, of_tables = workers(count)
  print(("| %d | %.2f | %.2f | %.2f |"):format(count, time, of_numeric, of_tables))
  table.insert(numeric.points, { count, of_numeric })
  table.insert(tables.points, { count, of_tables })
end
local pipe = assert(io.popen "nproc")
local cores = pipe:read "*l"
pipe:close()
chart.lines(
  "bench/speedup.svg",
  ("Speed-up of jobs of 5 ms, on %s cores"):format(cores),
  "workers",
  { numeric, tables },
  true
)
print "\n| pools of one worker | µs a job |"
print "|---|---|"
for _, count in ipairs { 1, 2, 8, 32, 64 } do
  print(("| %d | %.2f |"):format(count, pools(count)))
end
