--- msys, as bench/peers/jobs.lua says. Every job of the tiny ones is a new closure with an upvalue.

local jobs = require "bench.peers.jobs"
local measure = require "bench.measure"
local msys = require "msys"
local thread = require "thread"

local now, must, COUNT = measure.now, measure.must, jobs.COUNT
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
-- `unguarded` behind the row: compiled code has no guards, by which it can be stopped.
local pool = msys.threadpool.create {
  name = "bench",
  concurrency = jobs.WORKERS,
  backlog = 2 ^ 20,
  interruptible = arg[2] ~= "unguarded",
}

local function tiny(count)
  local done, started = 0, now()
  for i = 1, count do
    msys.runInPool(pool, function()
      return i
    end, function(_, value)
      done = done + (value == i and 1 or 0)
    end, SCHED)
  end
  msys.run()
  assert(done == count)
  return count / (now() - started)
end

local function sessions(count)
  local started = now()
  for _ = 1, 100 do
    msys.spawn(function()
      for i = 1, count / 100 do
        local _, value = msys.runInPool(pool, function()
          return i
        end)
        assert(value == i)
      end
    end)
  end
  msys.run()
  return count / (now() - started)
end

local function from_worker(count)
  local before = msys.threadpool.stat(pool).invocations
  local started = now()
  must(msys.runInPool(pool, function()
    for i = 1, count do
      msys.runInPool("bench", function()
        return i
      end, true)
    end
  end))
  while msys.threadpool.stat(pool).invocations - before <= count do
    msys.sleep(0.0005)
  end
  return count / (now() - started)
end

--- Times of `count` round trips, one after the other.
local function trips(count)
  local list = {}
  for i = 1, count do
    local started = now()
    local _, value = msys.runInPool(pool, function()
      return i
    end)
    list[i] = now() - started
    assert(value == i)
  end
  return list
end

local function speed_up(row)
  local fn = jobs[row]
  assert(must(msys.runInPool(pool, fn, { args = { 0 } })) == jobs.expected(row))
  local inline = jobs.inline(row, now)
  local function all(count)
    local given = 0
    for _ = 1, 4 * jobs.WORKERS do
      msys.spawn(function()
        while given < count do
          given = given + 1
          local i = given
          must(msys.runInPool(pool, function()
            return fn(i)
          end))
        end
      end)
    end
    msys.run()
  end
  all(20)
  local started = now()
  all(COUNT[row])
  return inline / (now() - started)
end

local function fib(n)
  if n < 2 then return n end
  local one = msys.submit("bench", fib, n - 1)
  local other = fib(n - 2)
  local _, value = one:wait()
  return value + other
end

--- Resident KiB a worker: of so many more threads which have each run a job.
local function worker_memory()
  local function with(count)
    local many = msys.threadpool.create { name = "many " .. count, concurrency = count, sessions = 1 }
    local begun = 0
    for _ = 1, count do
      msys.spawn(function()
        must(msys.runInPool(many, function()
          -- Long enough that no other worker takes the next one, and without memory of its own.
          return ("a"):rep(40):find(("a-"):rep(6) .. "b")
        end))
        begun = begun + 1
      end)
    end
    msys.run()
    local threads = many:stat().num_threads
    assert(threads == count, ("%d of %d threads have run a job"):format(threads, count))
    return jobs.resident()
  end
  local before = with(2)
  return (with(COUNT.threads) - before) / COUNT.threads
end

--- Numbers to a loop in each worker and back, all of them given at once; gives how many a second.
local function channels(count)
  local input, output = thread.channel(), thread.channel()
  for _ = 1, jobs.WORKERS do
    msys.runInPool(pool, function()
      while true do
        local ok, i = input:receive()
        if not ok then return end
        output:send(i)
      end
    end, true)
  end
  local started = now()
  for i = 1, count do
    input:send(i)
  end
  for _ = 1, count do
    assert(output:receive())
  end
  local rate = count / (now() - started)
  input:close()
  return rate
end

local function closures()
  tiny(20000)
  return tiny(COUNT.tiny)
end

--- Milliseconds to make a pool of four, have it do so many jobs, and stop it.
local function pools(count)
  local list = {}
  for i = 1, COUNT.pool do
    local started = now()
    local four = msys.threadpool.create { name = "four " .. i, concurrency = 4, sessions = 1 }
    for _ = 1, count do
      msys.spawn(function()
        assert(must(msys.runInPool(four, function()
          return 1
        end)) == 1)
      end)
    end
    msys.run()
    four:shutdown()
    list[i] = (now() - started) * 1e3
  end
  return (measure.median(list))
end

local rows = {
  closures = closures,
  tiny = closures,
  channels = function()
    channels(20000)
    return channels(COUNT.tiny)
  end,
  sessions = function()
    sessions(20000)
    return sessions(COUNT.tiny)
  end,
  worker = function()
    from_worker(20000)
    return from_worker(COUNT.tiny)
  end,
  trip = function()
    trips(2000)
    return jobs.print_trips(trips(COUNT.trip))
  end,
  fib = function()
    -- Nested calls a second, of fib(20): 10,945 jobs.
    must(msys.runInPool(pool, fib, { args = { 16 } }))
    local started = now()
    assert(must(msys.runInPool(pool, fib, { args = { 20 } })) == 6765)
    return 10945 / (now() - started)
  end,
  map = function()
    -- Items a second.
    local items = {}
    for i = 1, 200000 do
      items[i] = i
    end
    local function twice(x)
      return 2 * x
    end
    msys.map(pool, items, twice)
    local started = now()
    local result = msys.map(pool, items, twice)
    assert(result[200000] == 400000)
    return #items / (now() - started)
  end,
  short = function()
    local fn = jobs.short
    return jobs.print_overhead(function(i)
      return must(msys.runInPool(pool, function()
        return fn(i)
      end))
    end, now)
  end,
  one = function()
    return pools(1)
  end,
  pool = function()
    return pools(4)
  end,
  memory = worker_memory,
  queued = function()
    -- Bytes a queued job, of 100,000.
    local go = thread.channel()
    for _ = 1, 2 do
      msys.runInPool(pool, function()
        go:receive()
      end, true)
    end
    local waiting =
      msys.threadpool.create { name = "waiting", concurrency = 1, sessions = 1, backlog = 2 ^ 20 }
    msys.runInPool(waiting, function()
      go:receive()
    end, true)
    local before = jobs.resident()
    for i = 1, 100000 do
      msys.runInPool(waiting, function()
        return i
      end, true)
    end
    local bytes = (jobs.resident() - before) * 1024 / 100000
    go:close()
    msys.run()
    return bytes
  end,
  idle = function()
    tiny(20000)
    msys.sleep(0.1)
    local before = os.clock()
    msys.sleep(1)
    return (os.clock() - before) * 100
  end,
}

jobs.measure(rows, arg[1], speed_up)
