-- luacheck: globals love

--- LÖVE's threads and channels, as bench/peers/jobs.lua says: a loop in each thread, functions by their names.

local root, row = arg[#arg - 1], arg[#arg]
package.path = root .. "/?.lua;" .. package.path
local jobs = require "bench.peers.jobs"
local now = love.timer.getTime

local COUNT = jobs.COUNT

local LOOP = [[
  require "love.thread"
  local root, row, input, output = ...
  package.path = root .. "/?.lua;" .. package.path
  local fn = row == "echo" and function(i) return i end or require("bench.peers.jobs")[row]
  while true do
    local i = input:demand()
    if i == false then return end
    output:push(fn(i))
  end
]]

local input, output = love.thread.newChannel(), love.thread.newChannel()

local function start(what, count)
  local threads = {}
  for place = 1, count do
    threads[place] = love.thread.newThread(LOOP)
    threads[place]:start(root, what, input, output)
  end
  return threads
end

local function stop(threads)
  for _ = 1, #threads do
    input:push(false)
  end
  for _, running in ipairs(threads) do
    running:wait()
  end
end

--- Runs `count` jobs, of which `ahead` are given at a time; gives the time.
local function all(count, ahead)
  local started, given = now(), 0
  for _ = 1, math.min(ahead, count) do
    given = given + 1
    input:push(given)
  end
  for _ = 1, count do
    assert(output:demand())
    if given < count then
      given = given + 1
      input:push(given)
    end
  end
  return now() - started
end

local function speed_up(what)
  local inline = jobs.inline(what, now)
  local threads = start(what, jobs.WORKERS)
  all(20, 8)
  local value = inline / all(COUNT[what], 4 * jobs.WORKERS)
  stop(threads)
  return value
end

--- Milliseconds to make four threads, have them do so many jobs, and stop them.
local function pools(count)
  local list = {}
  for i = 1, COUNT.pool do
    local started = now()
    local threads = start("echo", 4)
    all(count, count)
    stop(threads)
    list[i] = (now() - started) * 1e3
  end
  return (require("bench.measure").median(list))
end

local rows = {
  channels = function()
    local threads = start("echo", jobs.WORKERS)
    all(20000, 20000)
    local value = COUNT.tiny / all(COUNT.tiny, COUNT.tiny)
    stop(threads)
    return value
  end,
  trip = function()
    local threads, list = start("echo", jobs.WORKERS), {}
    all(2000, 1)
    for i = 1, COUNT.trip do
      local started = now()
      input:push(i)
      assert(output:demand() == i)
      list[i] = now() - started
    end
    stop(threads)
    return jobs.print_trips(list)
  end,
  short = function()
    local threads = start("short", jobs.WORKERS)
    jobs.print_overhead(function(i)
      input:push(i)
      return output:demand()
    end, now)
    stop(threads)
  end,
  one = function()
    return pools(1)
  end,
  pool = function()
    return pools(4)
  end,
  memory = function()
    local first = start("echo", 2)
    all(2, 2)
    local before = jobs.resident()
    local threads = start("echo", COUNT.threads)
    all(1000, COUNT.threads)
    local value = (jobs.resident() - before) / COUNT.threads
    -- They have one channel.
    for _, running in ipairs(first) do
      threads[#threads + 1] = running
    end
    stop(threads)
    return value
  end,
}

function love.run()
  jobs.measure(rows, row, speed_up)
  return function()
    return 0
  end
end
