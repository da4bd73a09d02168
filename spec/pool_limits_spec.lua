--- What `concurrency`, `sessions` and `backlog` limit, `pool:resize`, and that waiting costs no CPU.

local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"

local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local until_stat, send, all_true = gate.until_stat, gate.send, gate.all_true

local describe, it, _, after_each, assert = helper.busted()

local function idle() end

after_each(helper.clean)

describe("concurrency and sessions:", function()
  it("workers start when there is work, and no more than there are jobs", function()
    helper.with_pool({ concurrency = 8 }, function(pool)
      assert.equal(0, pool:stat().num_threads)
      msys.runInPool(pool, function() end)
      assert.equal(1, pool:stat().num_threads)
    end)
  end)

  it("there are never more workers than concurrency", function()
    gate.holding({ concurrency = 3 }, function(pool, hold, open)
      local outcomes = send(pool, 40, hold)
      until_stat(pool, { job_num_running = 3, queue_sz = 37 })
      assert.equal(3, pool:stat().num_threads)
      open()
      msys.run()
      all_true(40, outcomes)
      assert.equal(3, pool:stat().num_threads)
    end)
  end)

  it(
    "with sessions = 1, concurrency is a strict bound on the jobs in flight, sleeping ones included",
    function()
      local path = helper.file()
      helper.with_pool({ concurrency = 2, sessions = 1 }, function(pool)
        local outcomes = send(pool, 30, function()
          local file = _G.assert(io.open(path, "a"))
          file:setvbuf "no"
          file:write "+"
          msys.sleep(0.001)
          file:write "-"
          file:close()
        end)
        msys.run()
        all_true(30, outcomes)
      end)
      local depth, most = 0, 0
      for sign in io.open(path):read("*a"):gmatch "." do
        depth = depth + (sign == "+" and 1 or -1)
        most = math.max(most, depth)
      end
      assert.equal(2, most)
    end
  )

  for sessions, running in pairs { [1] = 1, [3] = 3, [256] = 256 } do
    it(("with sessions = %d, one worker has %d sleeping jobs at once"):format(sessions, running), function()
      gate.resting({ concurrency = 1, sessions = sessions }, function(pool, rest, open)
        local outcomes = send(pool, running + 10, rest)
        until_stat(pool, { job_num_running = running, queue_sz = 10, num_threads = 1 })
        open()
        msys.run()
        all_true(running + 10, outcomes)
      end)
    end)
  end

  it("by default a worker may have 256 jobs in progress", function()
    gate.resting({ concurrency = 1 }, function(pool, rest, open)
      send(pool, 260, rest)
      until_stat(pool, { job_num_running = 256, queue_sz = 4 })
      open()
      msys.run()
    end)
  end)

  it("a job that sleeps again and again does not keep its worker from new ones", function()
    local path = helper.file()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local outcomes = send(pool, 1, function()
        local deadline = os.time() + 3
        local file
        repeat
          msys.sleep(0)
          file = io.open(path)
        until not (file and file:close()) or os.time() >= deadline
        return not file
      end)
      until_stat(pool, { job_num_running = 1 })
      msys.runInPool(pool, function()
        os.remove(path)
      end, true)
      msys.run()
      assert.same({ { true, true } }, outcomes)
    end)
  end)

  it("jobs that a waiting job waits for are exempt from sessions", function()
    helper.with_pool({ concurrency = 1, sessions = 1 }, function(pool)
      local function nest(depth)
        if depth == 0 then return 0 end
        return 1 + select(2, _G.assert(msys.runInPool(pool, nest, { args = { depth - 1 } })))
      end
      assert.same({ true, 20 }, { msys.runInPool(pool, nest, { args = { 20 } }) })
    end)
  end)
end)

describe("backlog:", function()
  it("a full queue suspends the submitting session until there is room, and each job runs once", function()
    gate.holding({ concurrency = 1, sessions = 1, backlog = 2 }, function(pool, hold, open)
      local sent, outcomes = 0, {}
      gate.run(open, function()
        msys.spawn(function()
          for number = 1, 10 do
            msys.runInPool(pool, function()
              hold()
              return number
            end, function(_, result)
              outcomes[#outcomes + 1] = result
            end, SCHED)
            sent = number
          end
        end)
        until_stat(pool, { job_num_running = 1, queue_sz = 2 })
        -- Enough turns for the other session to go on, if it could.
        for _ = 1, 50 do
          msys.yield()
        end
        assert.equal(3, sent)
        open(1)
        helper.eventually(function()
          return sent == 4
        end)
      end)
      table.sort(outcomes)
      assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, outcomes)
    end)
  end)

  it("plain code waits for room too, while the host's sessions go on", function()
    gate.holding({ concurrency = 1, sessions = 1, backlog = 1 }, function(pool, hold, open)
      msys.spawn(function()
        until_stat(pool, { job_num_running = 1, queue_sz = 1 })
        open()
      end)
      local outcomes = send(pool, 30, hold)
      msys.run()
      all_true(30, outcomes)
    end)
  end)

  it("many sessions that wait for room all get it", function()
    helper.with_pool({ concurrency = 2, sessions = 1, backlog = 1 }, function(pool)
      local sum = 0
      msys.run(function()
        for number = 1, 200 do
          msys.spawn(function()
            local _, result = msys.runInPool(pool, function()
              return number
            end)
            sum = sum + result
          end)
        end
      end)
      assert.equal(20100, sum)
    end)
  end)

  it("a pool that is shut down does not keep those that wait for room", function()
    gate.holding({ concurrency = 1, sessions = 1, backlog = 1 }, function(pool, hold, open)
      local outcome
      gate.run(open, function()
        send(pool, 2, hold)
        msys.spawn(function()
          outcome = { msys.runInPool(pool, hold) }
        end)
        msys.yield()
        msys.spawn(function()
          pool:shutdown()
        end)
        helper.eventually(function()
          return outcome
        end)
      end)
      assert.is_false(outcome[1])
      assert.equal("shutdown", outcome[3].kind)
    end)
  end)

  it("with when_full = 'fail', a full queue raises at the caller's line", function()
    gate.holding(
      { name = "Full", concurrency = 1, sessions = 1, backlog = 2, when_full = "fail" },
      function(pool, hold)
        local outcomes = send(pool, 1, hold)
        until_stat(pool, { job_num_running = 1, queue_sz = 0 })
        for _ = 1, 2 do
          msys.runInPool(pool, hold, true)
        end
        for _, third in ipairs { false, true, idle } do
          local line = debug.getinfo(1, "l").currentline + 2
          local ok, err = pcall(function()
            msys.runInPool(pool, hold, third)
          end)
          assert.is_false(ok)
          local text = "msys.runInPool: pool 'Full' is full: 2 jobs wait (backlog = 2)"
          assert.equal(("spec/pool_limits_spec.lua:%d: %s"):format(line, text), err)
        end
        assert.same({}, outcomes)
      end
    )
  end)

  for _, when_full in ipairs { "wait", "fail" } do
    it(("the pool's own workers may exceed it (when_full = '%s')"):format(when_full), function()
      helper.with_pool({ concurrency = 1, backlog = 1, when_full = when_full }, function(pool)
        local ok, sum = msys.runInPool(pool, function()
          local sum = 0
          for number = 1, 20 do
            msys.runInPool(pool, function() end, true)
            sum = sum
              + select(
                2,
                _G.assert(msys.runInPool(pool, function()
                  return number
                end))
              )
          end
          return sum
        end)
        assert.same({ true, 210 }, { ok, sum })
        until_stat(pool, { invocations = 41, errors = 0 })
      end)
    end)
  end
end)

describe("pool:resize", function()
  it("to more lets more workers run", function()
    gate.holding({ concurrency = 1, sessions = 1 }, function(pool, hold, open)
      local outcomes = send(pool, 4, hold)
      until_stat(pool, { job_num_running = 1, queue_sz = 3 })
      pool:resize(4)
      until_stat(pool, { job_num_running = 4, queue_sz = 0, num_threads = 4, concurrency = 4 })
      open()
      msys.run()
      all_true(4, outcomes)
    end)
  end)

  it("to less ends idle workers, and the pool works on", function()
    gate.holding({ concurrency = 4, sessions = 1 }, function(pool, hold, open)
      local threads = helper.threads()
      send(pool, 4, hold)
      until_stat(pool, { job_num_running = 4 })
      open()
      msys.run()
      pool:resize(1)
      until_stat(pool, { num_threads = 1, concurrency = 1 })
      helper.eventually(function()
        return helper.threads() <= threads + 1
      end, "the end of three threads")
      for number = 1, 20 do
        assert.same(
          { true, number },
          { msys.runInPool(pool, function()
            return number
          end) }
        )
      end
      assert.equal(1, pool:stat().num_threads)
    end)
  end)

  it("to less lets jobs in progress finish, and starts no other on the workers to end", function()
    gate.holding({ concurrency = 3, sessions = 1 }, function(pool, hold, open)
      local outcomes = send(pool, 3, hold)
      until_stat(pool, { job_num_running = 3 })
      pool:resize(1)
      send(pool, 5, hold)
      open(2)
      until_stat(pool, { num_threads = 1, job_num_running = 1, queue_sz = 5 })
      open()
      msys.run()
      all_true(3, outcomes)
      assert.equal(8, pool:stat().invocations)
    end)
  end)

  it("works from a job of the pool", function()
    helper.with_pool({ concurrency = 3 }, function(pool)
      assert.is_true((msys.runInPool(pool, function()
        pool:resize(2)
      end)))
      assert.equal(2, pool:stat().concurrency)
    end)
  end)

  it("up and down again and again loses no job", function()
    helper.with_pool({ concurrency = 1, sessions = 2 }, function(pool)
      local sent = {}
      msys.run(function()
        for round = 1, 40 do
          sent[round] = send(pool, 3, function()
            msys.sleep(0)
          end)
          pool:resize(1 + round % 5)
          msys.yield()
        end
      end)
      for _, outcomes in ipairs(sent) do
        all_true(3, outcomes)
      end
    end)
  end)
end)

describe("no CPU is used", function()
  local cases = {
    ["by idle workers"] = [[
      msys.threadpool.create { name = "own", concurrency = 8 }
      msys.run(function()
        for number = 1, 300 do
          local pool = ({ "CPU", "IO", "own" })[number % 3 + 1]
          msys.spawn(function() assert(msys.runInPool(pool, function() msys.sleep(0.001) end)) end)
        end
      end)
    ]],
    ["by a worker whose jobs sleep"] = [[
      local pool = msys.threadpool.create { name = "own", concurrency = 1 }
      for _ = 1, 10 do msys.runInPool(pool, function() msys.sleep(60) end, true) end
      repeat msys.sleep(0.001) until pool:stat().job_num_running == 10
    ]],
    ["by a worker that has as many sessions as it may, while jobs wait"] = [[
      local pool = msys.threadpool.create { name = "own", concurrency = 1, sessions = 1 }
      for _ = 1, 2 do msys.runInPool(pool, function() msys.sleep(60) end, true) end
      repeat msys.sleep(0.001) until pool:stat().job_num_running == 1
    ]],
    ["by a worker whose init sleeps, while jobs wait"] = [[
      local path = os.tmpname()
      local pool = msys.threadpool.create { name = "own", concurrency = 1, init = function()
        os.remove(path)
        msys.sleep(60)
      end }
      msys.runInPool(pool, function() end, true)
      repeat msys.sleep(0.001) until not io.open(path)
    ]],
    ["by a session that waits for room in a queue"] = [[
      local pool = msys.threadpool.create { name = "own", concurrency = 1, sessions = 1, backlog = 1 }
      msys.spawn(function()
        for _ = 1, 3 do msys.runInPool(pool, function() msys.sleep(60) end, true) end
      end)
      repeat msys.sleep(0.001) until pool:stat().queue_sz == 1
    ]],
  }
  for what, work in pairs(cases) do
    it(what, function()
      local out, err = helper.script([[
        local ffi, msys = require "ffi", require "msys"
        ffi.cdef "struct spec_time { long s, ns; }; int clock_gettime(int clock, struct spec_time *time);"
        local time = ffi.new "struct spec_time"
        local function now(clock)
          assert(ffi.C.clock_gettime(clock, time) == 0)
          return tonumber(time.s) + tonumber(time.ns) / 1e9
        end
      ]] .. work .. [[
        -- A sleep that nothing else disturbs.
        local cpu, wall = now(2), now(1)
        msys.sleep(0.5)
        cpu, wall = now(2) - cpu, now(1) - wall
        print(cpu < 0.05 * wall and "idle" or ("%.3f s of CPU in %.3f s"):format(cpu, wall))
        io.stdout:flush()
        os.exit(0)
      ]])
      assert.equal("idle\n", out .. err)
    end)
  end
end)

describe("a worker whose session goes on after a job of the worker's has ended", function()
  after_each(helper.clean)

  it("leaves the next job to another that sleeps", function()
    gate.holding({ concurrency = 2 }, function(pool, hold, open)
      gate.holding({}, function(_, hold_other, open_other)
        helper.must(pool, function()
          msys.spawn(function()
            hold()
            msys.yield()
            hold()
          end)
        end)
        msys.runInPool(pool, hold_other, true)
        gate.until_stat(pool, { job_num_running = 1, job_num_queued = 0 })
        -- Runs between the two parts of the session, as the other worker is held.
        local between = msys.submit(pool, function()
          return 1
        end)
        open(1)
        assert.same({ true, 1 }, { between:wait(helper.LIMIT) })
        open_other()
        gate.until_stat(pool, { job_num_running = 0, num_inactive_threads = 1 })
        assert.same({ true, 2 }, {
          msys
            .submit(pool, function()
              return 2
            end)
            :wait(helper.LIMIT),
        })
        open()
      end)
    end)
  end)
end)
