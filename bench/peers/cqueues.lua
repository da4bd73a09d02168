--- lua-cqueues' threads, as bench/peers/jobs.lua says: a loop in each thread, numbers over its socket, a line each.

local jobs = require "bench.peers.jobs"
local now = require("bench.measure").now
local cqueues = require "cqueues"
local thread = require "cqueues.thread"

local COUNT = jobs.COUNT

--- What a thread does: functions cross by their names.
local function loop(socket, path, row)
  package.path = path
  local fn = row == "echo" and function(i)
    return i
  end or require("bench.peers.jobs")[row]
  socket:setmode("bf", "bf")
  for line in socket:lines() do
    if line == "flush" then
      socket:flush()
    else
      socket:write(fn(tonumber(line)), "\n")
    end
  end
end

local function start(row)
  local running, socket = assert(thread.start(loop, package.path, row))
  socket:setmode("bf", "bf")
  return { thread = running, socket = socket }
end

local function stop(worker)
  worker.socket:close()
  worker.thread:join()
end

--- Runs `count` jobs, `batch` of them sent at a time to each thread; gives the time.
local function all(workers, count, batch)
  local loops = cqueues.new()
  local given, done = 0, 0
  local started = now()
  for _, worker in ipairs(workers) do
    loops:wrap(function()
      while given < count do
        local sent = math.min(batch, count - given)
        for i = 1, sent do
          worker.socket:write(given + i, "\n")
        end
        given = given + sent
        worker.socket:write "flush\n"
        worker.socket:flush()
        for _ = 1, sent do
          assert(worker.socket:read "*l")
        end
        done = done + sent
      end
    end)
  end
  assert(loops:loop())
  assert(done == count)
  return now() - started
end

local function with_two(row, fn)
  local workers = {}
  for place = 1, jobs.WORKERS do
    workers[place] = start(row)
  end
  local value = fn(workers)
  for _, worker in ipairs(workers) do
    stop(worker)
  end
  return value
end

local function speed_up(row)
  local inline = jobs.inline(row, now)
  return with_two(row, function(workers)
    all(workers, 20, 1)
    return inline / all(workers, COUNT[row], 1)
  end)
end

--- Has a thread call its function, and waits.
local function call(worker, i)
  worker.socket:write(i, "\nflush\n")
  worker.socket:flush()
  return assert(tonumber((worker.socket:read "*l")))
end

--- Milliseconds to make four threads, use so many of them, and stop all.
local function pools(used)
  local list = {}
  for i = 1, COUNT.pool do
    local started, four = now(), {}
    for place = 1, 4 do
      four[place] = start "echo"
      if place <= used then
        four[place].socket:write "1\nflush\n"
        four[place].socket:flush()
      end
    end
    for place = 1, 4 do
      if place <= used then assert(four[place].socket:read "*l" == "1") end
      stop(four[place])
    end
    list[i] = (now() - started) * 1e3
  end
  return (require("bench.measure").median(list))
end

local rows = {
  channels = function()
    return with_two("echo", function(workers)
      all(workers, 20000, 128)
      return COUNT.tiny / all(workers, COUNT.tiny, 128)
    end)
  end,
  short = function()
    local worker = start "short"
    jobs.print_overhead(function(i)
      return call(worker, i)
    end, now)
    stop(worker)
  end,
  trip = function()
    local worker, list = start "echo", {}
    for i = 1, COUNT.trip + 2000 do
      local started = now()
      call(worker, i)
      list[i] = now() - started
    end
    stop(worker)
    local warm = {}
    for i = 2001, #list do
      warm[i - 2000] = list[i]
    end
    return jobs.print_trips(warm)
  end,
  one = function()
    return pools(1)
  end,
  pool = function()
    return pools(4)
  end,
  memory = function()
    start "echo"
    local before = jobs.resident()
    local kept = {}
    for i = 1, COUNT.threads do
      kept[i] = start "echo"
      kept[i].socket:write "1\nflush\n"
      kept[i].socket:flush()
      assert(kept[i].socket:read "*l")
    end
    return (jobs.resident() - before) / COUNT.threads
  end,
}

jobs.measure(rows, arg[1], speed_up)
os.exit(0, false)
