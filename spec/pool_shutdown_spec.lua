--- `pool:shutdown`: what becomes of jobs, workers, later submits, and of the pool's name.

local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"
local thread = require "thread"

local tp = msys.threadpool
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local until_stat, send, all_true = gate.until_stat, gate.send, gate.all_true

local describe, it, _, after_each, assert = helper.busted()

local function idle() end

after_each(helper.clean)

describe("pool:shutdown", function()
  it("finishes the queued jobs before it returns", function()
    gate.holding({ concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local outcomes = send(pool, 6, hold)
      until_stat(pool, { job_num_running = 1, queue_sz = 5 })
      msys.spawn(open)
      assert.is_true(pool:shutdown())
      assert.same({ 0, 0, 6 }, { pool:stat().queue_sz, pool:stat().job_num_running, pool:stat().invocations })
      msys.run()
      all_true(6, outcomes)
    end)
  end)

  it("finishes sleeping jobs, and jobs that those send to other pools", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local outcomes = send(pool, 20, function()
        msys.sleep(0.001)
        return _G.assert(msys.runInPool("CPU", function()
          return true
        end))
      end)
      until_stat(pool, { queue_sz = 0 })
      pool:shutdown()
      msys.run()
      all_true(20, outcomes)
    end)
  end)

  it("ends the workers: no thread is left", function()
    local function threads()
      local pipe = _G.assert(io.popen(("cat /proc/%d/task/*/comm 2>/dev/null"):format(helper.pid())))
      local _, count = pipe:read("*a"):gsub("msys Ending", "")
      pipe:close()
      return count
    end
    gate.holding({ name = "Ending", concurrency = 5, sessions = 1 }, function(pool, hold, open)
      send(pool, 5, hold)
      until_stat(pool, { num_threads = 5, job_num_running = 5 })
      assert.equal(5, threads())
      open()
      pool:shutdown()
      assert.equal(0, pool:stat().num_threads)
      helper.eventually(function()
        return threads() == 0
      end, "the end of five threads")
      msys.run()
    end)
  end)

  it("suspends the session, while others go on", function()
    gate.holding({ concurrency = 1 }, function(pool, hold, open)
      local steps = {}
      gate.run(open, function()
        send(pool, 1, hold)
        msys.spawn(function()
          pool:shutdown()
          steps[#steps + 1] = "shut down"
        end)
        msys.yield()
        msys.yield()
        steps[#steps + 1] = "other"
      end)
      assert.same({ "other", "shut down" }, steps)
    end)
  end)

  it("of a pool that never had a worker returns at once", function()
    helper.with_pool(nil, function(pool)
      assert.is_true(pool:shutdown())
      assert.equal(0, pool:stat().threads_started)
    end)
  end)

  it("may be called twice, also while the first goes on", function()
    gate.holding(nil, function(pool, hold, open)
      local returned = 0
      gate.run(open, function()
        send(pool, 1, hold)
        for _ = 1, 3 do
          msys.spawn(function()
            pool:shutdown()
            returned = returned + 1
          end)
        end
        msys.yield()
      end)
      assert.equal(3, returned)
      assert.is_true(pool:shutdown())
    end)
  end)

  it("from a job of the pool returns, and the job ends as usual", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      assert.same(
        { true, true, "done" },
        { msys.runInPool(pool, function()
          return pool:shutdown(), "done"
        end) }
      )
      assert.equal("shutdown", select(3, msys.runInPool(pool, idle)).kind)
    end)
  end)

  it("from an asynchronous job of the pool returns", function()
    helper.with_pool(nil, function(pool)
      local outcomes = send(pool, 1, function()
        return pool:shutdown()
      end)
      msys.run()
      assert.same({ { true, true } }, outcomes)
    end)
  end)

  it("from a job that a job of the pool waits for, in another pool, returns", function()
    helper.with_pool(nil, function(pool)
      assert.same({ true, true, true }, {
        msys.runInPool(pool, function()
          return msys.runInPool("CPU", function()
            return pool:shutdown()
          end)
        end),
      })
    end)
  end)

  it("from two jobs of the pool at once returns in both", function()
    helper.with_pool({ concurrency = 2, sessions = 1 }, function(pool)
      local outcomes = send(pool, 2, function()
        return pool:shutdown()
      end)
      msys.run()
      -- The second may come too late to be a job.
      assert.equal(2, #outcomes)
    end)
  end)

  it("from a worker of another pool waits for the end", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      msys.runInPool(pool, idle, { args = { n = 0 }, async = true })
      local ok, threads = msys.runInPool("CPU", function()
        pool:shutdown()
        return pool:stat().num_threads
      end)
      assert.same({ true, 0 }, { ok, threads })
    end)
  end)

  it("ends a pool that works for a pool that is shut down at the same time", function()
    helper.with_pool(nil, function(one)
      helper.with_pool(nil, function(other)
        local outcomes = send(one, 10, function()
          return select(
            2,
            msys.runInPool(other, function()
              return 1
            end)
          )
        end)
        msys.run(function()
          msys.spawn(one.shutdown, one)
          msys.spawn(other.shutdown, other)
        end)
        assert.equal(10, #outcomes)
      end)
    end)
  end)
end)

describe("a script that ends right after it has shut a pool down", function()
  it("exits", function()
    -- Several times, since it takes a race to hang.
    for _ = 1, 20 do
      local out, err, status = helper.script [[
        local msys = require "msys"
        local pool = msys.threadpool.create { name = "own", concurrency = 4 }
        for _ = 1, 20 do
          msys.runInPool(pool, function() msys.sleep(0.001) end, true)
        end
        pool:shutdown()
        print "ends"
      ]]
      assert.same({ "ends\n", "", 0 }, { out, err, status })
    end
  end)
end)

describe("with drop = true", function()
  it("queued jobs end with outcomes of kind shutdown, and running ones are stopped", function()
    gate.holding({ name = "Dropped", concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local running, text = send(pool, 1, hold), "pool 'Dropped' is shut down"
      local outcomes
      gate.run(open, function()
        until_stat(pool, { job_num_running = 1 })
        outcomes = send(pool, 3, hold)
        for _ = 1, 2 do
          msys.spawn(function()
            local outcome = { msys.runInPool(pool, hold) }
            outcomes[#outcomes + 1] = outcome
          end)
        end
        until_stat(pool, { queue_sz = 5 })
        msys.spawn(pool.shutdown, pool, { drop = true })
        helper.eventually(function()
          return #outcomes == 5
        end, "five outcomes while the sixth job is in a C call")
      end)
      assert.same(
        { false, "msys: " .. text, "shutdown" },
        { running[1][1], running[1][2], running[1][3].kind }
      )
      for _, outcome in ipairs(outcomes) do
        assert.same({ false, text, "shutdown", "Dropped" }, {
          outcome[1],
          outcome[2],
          outcome[3].kind,
          outcome[3].pool,
        })
      end
    end)
  end)

  it("info has a traceback, as that of every failure has", function()
    gate.holding({ concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local outcomes
      gate.run(open, function()
        send(pool, 1, hold)
        until_stat(pool, { job_num_running = 1 })
        outcomes = send(pool, 1, hold)
        msys.spawn(pool.shutdown, pool, { drop = true })
        helper.eventually(function()
          return #outcomes == 1
        end, "the dropped job's outcome")
      end)
      assert.equal("string", type(outcomes[1][3].traceback))
    end)
  end)

  it("asynchronous jobs without a completion are reported", function()
    gate.holding({ concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local errors = helper.catching(function(errors)
        send(pool, 1, hold)
        until_stat(pool, { job_num_running = 1 })
        for _ = 1, 3 do
          msys.runInPool(pool, hold, true)
        end
        msys.spawn(pool.shutdown, pool, { drop = true })
        helper.eventually(function()
          return #errors == 3
        end, "three reports")
        open()
        msys.run()
      end)
      for _, report in ipairs(errors) do
        assert.equal("shutdown", report.info.kind)
      end
    end)
  end)

  it("a completion in the pool gets the outcome, or it is reported", function()
    gate.holding({ concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local told = thread.counter()
      local errors = helper.catching(function(errors)
        send(pool, 1, hold)
        until_stat(pool, { job_num_running = 1 })
        -- No worker is left to run the completion, if it has come as far as to be stuck: the failure may not be lost.
        msys.runInPool(pool, hold, function(ok, _, info)
          if not ok and info.kind == "shutdown" then told:add() end
        end)
        msys.spawn(pool.shutdown, pool, { drop = true })
        helper.eventually(function()
          return #errors + told:get() == 1
        end, "the report")
        open()
        msys.run()
      end)
      assert.equal(1, #errors + told:get())
      if errors[1] then assert.equal("shutdown", errors[1].info.kind) end
    end)
  end)
end)

describe("after the shutdown", function()
  local function with_ended(name, fn)
    helper.with_pool({ name = name }, function(pool)
      pool:shutdown()
      fn(pool)
    end)
  end

  it("a synchronous job gives false, err, info of kind shutdown", function()
    with_ended("Ended-1", function(pool)
      for _, given in ipairs { pool, pool.id, "Ended-1", "ended-1" } do
        local ok, err, info = msys.runInPool(given, idle)
        assert.same(
          { false, "pool 'Ended-1' is shut down", "shutdown", "Ended-1" },
          { ok, err, info.kind, info.pool }
        )
      end
    end)
  end)

  it("so it is for a job of a worker", function()
    with_ended("Ended-2", function(pool)
      local ran, ok, err, kind = msys.runInPool("CPU", function()
        local ok, err, info = msys.runInPool(pool, idle)
        return ok, err, info.kind
      end)
      assert.same({ true, false, "pool 'Ended-2' is shut down", "shutdown" }, { ran, ok, err, kind })
    end)
  end)

  for mode, what in pairs { [SCHED] = "scheduled", [msys.core.ECTP_COMPLETE_CALLBACK] = "in the pool" } do
    it("a completion gets that outcome: " .. what, function()
      with_ended("Ended-3", function(pool)
        local outcome
        msys.runInPool(pool, idle, function(ok, err, info)
          outcome = { ok, err, info.kind }
        end, mode)
        msys.run()
        assert.same({ false, "pool 'Ended-3' is shut down", "shutdown" }, outcome)
      end)
    end)
  end

  it("an asynchronous job is reported to onError", function()
    with_ended("Ended-4", function(pool)
      local errors = helper.catching(function()
        msys.runInPool(pool, idle, true)
        msys.poll()
      end)
      assert.equal(1, #errors)
      assert.same({ "pool 'Ended-4' is shut down", "shutdown" }, { errors[1].err, errors[1].info.kind })
    end)
  end)

  it("resize, stat and shutdown do not fail", function()
    with_ended("Ended-5", function(pool)
      pool:resize(3)
      assert.is_true(pool:stat().shut_down)
      assert.equal(0, pool:stat().num_threads)
      pool:shutdown { drop = true }
    end)
  end)
end)

describe("the name of a pool that was shut down", function()
  local function answer(pool)
    return select(
      2,
      msys.runInPool(pool, function()
        return _OSTLS.answer
      end)
    )
  end

  local function create(name, number)
    return tp.create {
      name = name,
      concurrency = 1,
      init = function()
        _OSTLS.answer = number
      end,
    }
  end

  it("is free again, and then means the new pool, also where it was used before", function()
    for number = 1, 5 do
      local pool = create(number % 2 == 0 and "REUSED" or "Reused", number)
      assert.equal(number, answer "reused")
      assert.equal(number, answer(pool))
      assert.equal(pool.id, tp.find "rEUSED")
      pool:shutdown()
    end
  end)

  it("means the new pool also when a worker has replaced it", function()
    local old = create("Replaced", 1)
    assert.equal(1, answer "replaced")
    local ok, new = msys.runInPool("CPU", function()
      old:shutdown()
      return tp.create { name = "Replaced", concurrency = 1 }
    end)
    assert.is_true(ok, new)
    local results = { pcall(msys.runInPool, "replaced", function()
      return "new"
    end) }
    new:shutdown()
    assert.same({ true, true, "new" }, results)
  end)

  -- In a child, since what it tests has hung.
  it("does not bring the old pool's handle back to life", function()
    local out, err = helper.script [[
      local msys = require "msys"
      local old = msys.threadpool.create { name = "Same", concurrency = 1 }
      local name, text = old.name, tostring(old)
      old:shutdown()
      local new = msys.threadpool.create { name = "Same", concurrency = 1 }
      print(old == new, old.name == name, tostring(old) == text, new.name, msys.threadpool.find "same" == new.id)
      local ok, err, info = msys.runInPool(old, function() end)
      print(ok, err, info and info.kind)
      print(old:shutdown())
      print(msys.runInPool(new, function() return "new" end))
    ]]
    assert.equal(
      "false\ttrue\ttrue\tSame\ttrue\nfalse\tpool 'Same' is shut down\tshutdown\ntrue\ntrue\tnew\n",
      out,
      err
    )
  end)
end)
