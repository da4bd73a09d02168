-- luacheck: globals ngx print

--- Answers a request for /<row> with its figures.

local jobs = require "bench.peers.jobs"
local now = require("bench.measure").now
local MODULE = "bench.peers.nginx.named"

local COUNT = jobs.COUNT
local run = ngx.run_worker_thread

--- Runs `count` jobs from so many light threads; gives the time.
local function all(name, count, threads)
  local given, started, running = 0, now(), {}
  for place = 1, threads do
    running[place] = ngx.thread.spawn(function()
      while given < count do
        given = given + 1
        local ok, value = run("bench", MODULE, name, given)
        assert(ok and value, value)
      end
    end)
  end
  for _, thread in ipairs(running) do
    assert(ngx.thread.wait(thread))
  end
  return now() - started
end

local function speed_up(row)
  local inline = jobs.inline(row, now)
  all(row, 20, 8)
  return inline / all(row, COUNT[row], 4 * jobs.WORKERS)
end

local rows = {
  short = function()
    return jobs.print_overhead(function(i)
      local _, value = run("bench", MODULE, "short", i)
      return value
    end, now)
  end,
  tiny = function()
    all("echo", 20000, 100)
    return COUNT.tiny / all("echo", COUNT.tiny, 100)
  end,
  trip = function()
    local list = {}
    for i = 1, 2000 do
      run("bench", MODULE, "echo", i)
    end
    for i = 1, COUNT.trip do
      local started = now()
      local _, value = run("bench", MODULE, "echo", i)
      list[i] = now() - started
      assert(value == i)
    end
    return jobs.print_trips(list)
  end,
}

-- The figures go into the answer.
print = ngx.say
jobs.measure(rows, ngx.var.uri:sub(2), speed_up)
