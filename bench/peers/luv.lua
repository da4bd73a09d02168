--- lua-luv's `new_work`, as bench/peers/jobs.lua says: functions without upvalues, loaded once in each thread.

local jobs = require "bench.peers.jobs"
local now = require("bench.measure").now
local uv = require "luv"

local COUNT = jobs.COUNT

--- Runs `count` jobs, of which `ahead` are given at a time; gives the time.
local function all(fn, count, ahead)
  local given, done, work = 0, 0, nil
  work = uv.new_work(fn, function(value)
    assert(value)
    done = done + 1
    if given < count then
      given = given + 1
      work:queue(given)
    end
  end)
  local started = now()
  for _ = 1, math.min(ahead, count) do
    given = given + 1
    work:queue(given)
  end
  uv.run()
  assert(done == count)
  return now() - started
end

--- As a caller writes it who has a function and a completion for each job; gives how many a second.
local function new_each(count)
  local done, started = 0, now()
  for i = 1, count do
    local work = uv.new_work(function(n)
      return n
    end, function(value)
      done = done + (value == i and 1 or 0)
    end)
    work:queue(i)
  end
  uv.run()
  assert(done == count)
  return count / (now() - started)
end

local function echo(i)
  return i
end

--- A function that has a thread call `fn`, and waits.
local function caller(fn)
  local value
  local work = uv.new_work(fn, function(given)
    value = given
  end)
  return function(i)
    value = nil
    work:queue(i)
    while not value do
      uv.run "once"
    end
    return value
  end
end

local function trips(count)
  local list, call = {}, caller(echo)
  for i = 1, count do
    local started = now()
    call(i)
    list[i] = now() - started
  end
  return list
end

local function speed_up(row)
  local inline = jobs.inline(row, now)
  all(jobs[row], 20, 8)
  return inline / all(jobs[row], COUNT[row], 4 * jobs.WORKERS)
end

local rows = {
  closures = function()
    new_each(20000)
    return new_each(COUNT.tiny)
  end,
  tiny = function()
    all(echo, 20000, 20000)
    return COUNT.tiny / all(echo, COUNT.tiny, COUNT.tiny)
  end,
  trip = function()
    trips(2000)
    return jobs.print_trips(trips(COUNT.trip))
  end,
  short = function()
    return jobs.print_overhead(caller(jobs.short), now)
  end,
  memory = function()
    -- In a process with as many threads as UV_THREADPOOL_SIZE says: all of them have run one.
    local count = tonumber(os.getenv "UV_THREADPOOL_SIZE")
    local before = jobs.resident()
    all(function(i)
      require("luv").sleep(50)
      return i
    end, count, count)
    return (jobs.resident() - before) / count
  end,
  idle = function()
    all(echo, 20000, 20000)
    local before = os.clock()
    uv.sleep(1000)
    return (os.clock() - before) * 100
  end,
}

jobs.measure(rows, arg[1], speed_up)
