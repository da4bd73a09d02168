--- Jobs for bench/check.lua to count the instructions of: `luajit -joff bench/count.lua <kind> <count>`.
---
--- No thread waits for another while it is counted, since how long it looks before it sleeps is chance: the worker is
--- kept busy until all jobs are sent, and the host looks for outcomes when all jobs have ended.

local ffi = require "ffi"
local msys = require "msys"
local thread = require "thread"

ffi.cdef "int usleep(unsigned microseconds);"

local kind, count = arg[1], tonumber(arg[2])
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED

local pool = msys.threadpool.create { name = "count", concurrency = 1, sessions = 1, backlog = 2 ^ 20 }
local go = thread.channel()
msys.runInPool(pool, function()
  go:receive()
end, true)

local done = 0
local function completion(ok, value)
  done = done + (ok and value or 0)
end

local kinds = {
  -- Jobs whose outcomes nobody waits for.
  async = function()
    for i = 1, count do
      msys.runInPool(pool, function()
        return i
      end, true)
    end
  end,
  -- The same with a completion in the host.
  completed = function()
    for i = 1, count do
      msys.runInPool(pool, function()
        return i
      end, completion, SCHED)
    end
  end,
  -- From sessions which wait for them, a table captured.
  waited = function()
    local list = { 0 }
    for i = 1, count do
      msys.spawn(function()
        local _, value = msys.runInPool(pool, function()
          return list[1] + i
        end)
        done = done + value
      end)
    end
    msys.poll()
    while msys.threadpool.stat(pool).job_num_queued < count do
      msys.poll()
    end
  end,
}
kinds[kind]()
go:close()
while msys.threadpool.stat(pool).invocations <= count do
  ffi.C.usleep(50000)
end
-- Those that have ended are all that is left to do.
msys.run()
assert(done == (kind == "async" and 0 or count * (count + 1) / 2))
