-- Jobs that do not end by themselves are stopped, wherever they are, and their pool is as good as before.

local helper = require "spec.helper"
local msys = require "msys"
local native = require "msys.native"
local runaways = require "spec.runaways"

local describe, it, _, after_each, assert = helper.busted()

local TIMEOUT = 0.1
--- With `MSYS_SPEC_SHORT`, where the specs run once more, only some of them take each further way.
local STEP = os.getenv "MSYS_SPEC_SHORT" and 5 or 1
--- How much later a caller may have its outcome: `make bench-cancel` measures it, this is for slow machines.
local LATE = 1

--- Whether compiled code is made and gives the right sum; a job.
local function computes()
  local util = require "jit.util"
  local function traces()
    local count = 0
    for trace = 1, 1000 do
      if util.traceinfo(trace) then count = count + 1 end
    end
    return count
  end
  -- A new prototype each time, so that its loop has to be compiled.
  local sum = loadstring "local sum = 0 for i = 1, 1e5 do sum = sum + i end return sum"
  local before = traces()
  local result = sum()
  return result, not jit.status() or traces() > before
end

--- Runs the runaway once; fails where the outcome is not that of a timeout.
local function outlive(what, run)
  local started = native.clock()
  local ok, err, info = run()
  local late = native.clock() - started - TIMEOUT
  assert.same({ what, false, "timeout" }, { what, ok, info and info.kind or err })
  assert.matches("^msys: job %d+ of pool '.*' timed out after 0.1 s %(it waited %d", err)
  assert.is_true(late >= -0.005 and late < LATE, ("%s: %.3f s late"):format(what, late))
end

--- Whether the pool has all its workers and they work: as many jobs as it may have at once meet.
local function check_pool(pool, what)
  local stat = msys.threadpool.stat(pool)
  local together, ended = require("thread").counter(), 0
  for _ = 1, stat.concurrency do
    msys.spawn(function()
      local ok, sum, compiled = msys.runInPool(pool, function()
        together:add()
        while together:get() < stat.concurrency do
          msys.sleep(0)
        end
        return computes()
      end)
      assert.same({ what, true, 5000050000, true }, { what, ok, sum, compiled })
      ended = ended + 1
    end)
  end
  msys.run()
  assert.equal(stat.concurrency, ended)
end

local function body(runaway)
  return assert(loadstring(runaway.source, "=" .. runaway.name))
end

describe("in a pool,", function()
  after_each(helper.clean)

  for _, runaway in ipairs(runaways) do
    it(runaway.name .. " is stopped by a timeout", function()
      helper.with_pool({ concurrency = 2, sessions = 1 }, function(pool)
        outlive(runaway.name, function()
          return msys.runInPool(pool, body(runaway), { timeout = TIMEOUT })
        end)
        check_pool(pool, runaway.name)
        local stat = pool:stat()
        if not runaway.in_c then assert.same({ 0, 0 }, { stat.abandoned, stat.killed }) end
      end)
    end)
  end
end)

describe("without interruptible,", function()
  after_each(helper.clean)

  for place = 1, #runaways, STEP do
    local runaway = runaways[place] --[[@as spec.Runaway]]
    it(runaway.name .. " is stopped by a timeout", function()
      helper.with_pool({ concurrency = 2, sessions = 1, interruptible = false }, function(pool)
        outlive(runaway.name, function()
          return msys.runInPool(pool, body(runaway), { timeout = TIMEOUT })
        end)
        check_pool(pool, runaway.name)
      end)
    end)
  end
end)

describe("in a job of a job's,", function()
  after_each(helper.clean)

  for place = 1, #runaways, STEP do
    local runaway = runaways[place] --[[@as spec.Runaway]]
    it(runaway.name .. " is stopped by a timeout", function()
      helper.with_pool({ concurrency = 2 }, function(pool)
        outlive(runaway.name, function()
          local run = body(runaway)
          local ok, nested, err, info = msys.runInPool("IO", function()
            return msys.runInPool(pool, run, { timeout = 0.1 })
          end)
          if not ok then return ok, nested, err end
          return nested, err, info
        end)
        check_pool(pool, runaway.name)
      end)
    end)
  end
end)

describe("in an isolated pool,", function()
  after_each(helper.clean)

  local workers = msys.workers
  for place = 1, #runaways, STEP do
    local runaway = runaways[place] --[[@as spec.Runaway]]
    if not runaway.needs_msys then
      it(runaway.name .. " is stopped by a timeout", function()
        local pool = assert(workers.newPool(2))
        outlive(runaway.name, function()
          return pool:submit(assert(workers.compile(runaway.source)), nil, { timeout = TIMEOUT })
        end)
        local sum = assert(workers.compile "local sum = 0 for i = 1, 1e5 do sum = sum + i end return sum")
        for _ = 1, 4 do
          local ok, result = pool:submit(sum)
          assert.same({ true, 5000050000 }, { ok, result })
        end
        local stat = pool:stat()
        assert.equal(2, stat.num_threads - stat.num_abandoned)
        pool:shutdown()
      end)
    end
  end
end)

describe("a host that uses LuaJIT's profiler", function()
  after_each(helper.clean)

  it("keeps it, and stops runaways all the same", function()
    local out, err, status = helper.script([[
        local profiler = require "jit.profile"
        local samples = 0
        profiler.start("li1", function(_, count) samples = samples + count end)
        local msys = require "msys"
        local native = require "msys.native"
        local runaways = require "spec.runaways"
        for _, runaway in ipairs(runaways) do
          if not runaway.in_c then
            local ok, _, info = msys.runInPool("IO", assert(loadstring(runaway.source)), { timeout = 0.05 })
            if ok or info.kind ~= "timeout" then print(runaway.name, ok, _) end
            local ok, value = msys.runInPool("IO", function() return 1 end)
            if not ok then print(runaway.name, value) end
          end
        end
        local before, x = samples, 0
        local started = native.clock()
        while native.clock() - started < 0.3 do x = x + 1 end
        profiler.stop()
        if samples <= before then print "no samples" end
        -- From now on windows are to be had.
        local ok, _, info = msys.runInPool("CPU", function() while true do end end, { timeout = 0.05 })
        print(ok, info.kind, msys.runInPool("CPU", function() return 1 end))
      ]])
    assert.same({ "false\ttimeout\ttrue\t1\n", "", 0 }, { out, err, status })
  end)
end)
