-- Timeouts and cancel tokens: what ends, when, with which outcome, and what is left.

local gates = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"
local native = require "msys.native"
local thread = require "thread"
local threads = require "spec.threads"

local describe, it, _, after_each, assert = helper.busted()
local eventually, must, with_pool = helper.eventually, helper.must, helper.with_pool

local function noop() end

--- Runs `fn(pool, release)` with a pool whose only worker is busy until `release()`.
local function with_busy(options, fn)
  options.concurrency, options.sessions = 1, 1
  with_pool(options, function(pool)
    local gate, began = thread.channel(), thread.counter()
    local busy = msys.submit(pool, function()
      began:add()
      gate:receive()
    end)
    eventually(function()
      return began:get() == 1
    end)
    -- In a session of its own: a job is no exception to `sessions`, unless who waits for it has a lock.
    msys.run(fn, pool, function()
      gate:close()
      assert(busy:wait())
    end)
  end)
end

--- Calls `fn` and gives how long it took, and what it gave.
local function timed(fn, ...)
  local started = native.clock()
  local result = { fn(...) }
  return native.clock() - started, result
end

describe("a timeout", function()
  after_each(helper.clean)

  it("of a queued job ends it at once, and it never runs", function()
    with_busy({}, function(pool, release)
      local ran = thread.counter()
      local took, result = timed(msys.runInPool, pool, function()
        ran:add()
      end, { timeout = 0.05, name = "late" })
      assert.is_true(took >= 0.05 and took < 1, took)
      assert.same({ false, "timeout", pool.name }, { result[1], result[3].kind, result[3].pool })
      local pattern = "^msys: job %d+ \"late\" of pool '.*' timed out after 0.05 s "
        .. "%(it waited 0.0[56]%d s for a worker and ran 0.000 s%)$"
      assert.matches(pattern, result[2])
      -- It has left the queue, too.
      assert.equal(0, pool:stat().job_num_queued)
      release()
      must(pool, noop)
      assert.equal(0, ran:get())
    end)
  end)

  it("of 0 is over before the job begins", function()
    local ran = thread.counter()
    for _ = 1, 100 do
      local ok, _, info = msys.runInPool("CPU", function()
        ran:add()
      end, { timeout = 0 })
      assert.same({ false, "timeout" }, { ok, info.kind })
    end
    assert.equal(0, ran:get())
  end)

  it("that is never over changes nothing", function()
    for _, timeout in ipairs { 1e6, 1e308, math.huge } do
      assert.same({ true, 1 }, {
        msys.runInPool("CPU", function()
          return 1
        end, { timeout = timeout }),
      })
    end
  end)

  it("covers the wait for room in the queue", function()
    with_busy({ backlog = 1 }, function(pool, release)
      local queued = msys.submit(pool, noop)
      local took, result = timed(msys.runInPool, pool, noop, { timeout = 0.05 })
      assert.is_true(took >= 0.05 and took < 1, took)
      assert.same({ false, "timeout" }, { result[1], result[3].kind })
      assert.matches("timed out after 0.05 s, before pool '.*' had room for it", result[2])
      release()
      assert(queued:wait())
    end)
  end)

  it("ends each kind of wait, and whatever the job does about it", function()
    local lock, full, rwlock = thread.mutex(), thread.channel(1), thread.rwlock()
    full:send(1)
    -- Held by somebody who waits for none of these jobs: else they would close a cycle.
    local gate, held = thread.channel(), thread.channel()
    local holder = msys.submit("IO", function()
      lock:lock()
      rwlock:wrlock()
      held:send(true)
      gate:receive()
      lock:unlock()
      rwlock:unlock()
    end)
    held:receive()
    local waits = {
      sleep = function()
        msys.sleep(1000)
      end,
      mutex = function()
        lock:lock()
      end,
      ["mutex for a time"] = function()
        lock:lock(1000)
      end,
      rwlock = function()
        rwlock:rdlock()
      end,
      send = function()
        full:send(2)
      end,
      receive = function()
        thread.channel():receive()
      end,
      condition = function()
        local mutex = thread.mutex()
        mutex:lock()
        thread.condition(mutex):wait()
      end,
      ["nested job"] = function()
        return msys.runInPool("IO", function()
          msys.sleep(1000)
        end)
      end,
      future = function()
        return msys
          .submit("IO", function()
            msys.sleep(1000)
          end)
          :wait()
      end,
      ["named lock"] = function()
        msys.lock "deadlines"
        msys.sleep(1000)
      end,
    }
    local errors = helper.catching(function()
      for what, wait in pairs(waits) do
        local ok, err, info = msys.runInPool("CPU", function()
          for _ = 1, 10 do
            pcall(wait)
          end
          return "not stopped"
        end, { timeout = 0.05 })
        assert.same({ what, false, "timeout" }, { what, ok, info and info.kind or err })
      end
      eventually(function()
        return msys.threadpool.stat("CPU").job_num_running == 0
      end)
      msys.poll()
    end)
    -- Of the named lock; none where even its beginning came too late.
    for _, report in ipairs(errors) do
      assert.matches("^msys: .+ was still locked when job %d+ of pool CPU ended", report.err)
    end
    gate:close()
    assert(holder:wait())
    -- What the jobs waited for was ended with them.
    eventually(function()
      return msys.threadpool.stat("IO").job_num_running == 0
    end)
    assert.is_true(full:tryreceive())
    assert.is_false(full:tryreceive())
  end)

  it("leaves the caller's values alone", function()
    local t, n = { 1 }, 1
    local ok, _, info = msys.runInPool("CPU", function()
      t[2], n = 2, 2
      while true do
      end
    end, { timeout = 0.05 })
    assert.same({ false, "timeout", { 1 }, 1 }, { ok, info.kind, t, n })
  end)

  it("says where the job was", function()
    local function inner()
      while true do
      end
    end
    -- On a slow machine the outcome may come before the worker has one, and then says it without.
    eventually(function()
      local _, _, info = msys.runInPool("CPU", function()
        inner()
      end, { timeout = 0.05 })
      assert.matches("timed out after 0.05 s", info.traceback)
      return info.traceback:find "deadlines_spec.lua:%d+: in function 'inner'"
    end, "a traceback")
  end)

  it("is reported for a job that nobody waits for, and goes to its completion", function()
    local errors = helper.catching(function(errors)
      msys.runInPool("CPU", function()
        while true do
        end
      end, { async = true, timeout = 0.05 })
      eventually(function()
        return errors[1]
      end)
    end)
    assert.same({ 1, "timeout" }, { #errors, errors[1].info.kind })
    for _, mode in ipairs { msys.core.ECTP_COMPLETE_CALLBACK, msys.core.ECTP_COMPLETE_CALLBACK_SCHED } do
      local got = thread.channel()
      msys.runInPool("CPU", function()
        while true do
        end
      end, {
        timeout = 0.05,
        mode = mode,
        completion = function(ok, err, info)
          -- It has its own time.
          local sum = 0
          for i = 1, 1e6 do
            sum = sum + i
          end
          msys.sleep(0.01)
          got:send { ok, err:match "timed out", info.kind, sum }
        end,
      })
      local _, value = got:receive(helper.LIMIT)
      assert.same({ false, "timed out", "timeout", 500000500000 }, value)
      msys.run()
    end
  end)

  it("lets jobs that wait on the same worker go on", function()
    with_pool({}, function(pool)
      local go, ended = thread.channel(), 0
      for i = 1, 10 do
        msys.spawn(function()
          assert.same({ true, i }, {
            msys.runInPool(pool, function()
              go:receive()
              return i
            end),
          })
          ended = ended + 1
        end)
      end
      msys.spawn(function()
        local ok, _, info = msys.runInPool(pool, function()
          while true do
          end
        end, { timeout = 0.05 })
        assert.same({ false, "timeout" }, { ok, info.kind })
        go:close()
      end)
      msys.run()
      assert.equal(10, ended)
    end)
  end)

  it("that a busy worker cannot see to is kept by somebody else", function()
    with_pool({}, function(pool)
      local go, began = thread.channel(), thread.counter()
      local outcome
      msys.spawn(function()
        outcome = {
          msys.runInPool(pool, function()
            began:add()
            go:receive()
          end, { timeout = 0.1 }),
        }
      end)
      eventually(function()
        return began:get() == 1
      end)
      -- It has no limit, and has the only worker.
      local blocking = msys.submit(pool, function()
        local clock = require("msys.native").clock
        local started = clock()
        while clock() - started < 0.5 do
        end
        return "done"
      end)
      eventually(function()
        return outcome
      end)
      assert.same({ false, "timeout", "running" }, { outcome[1], outcome[3].kind, blocking:status() })
      assert.same({ true, "done" }, { blocking:wait() })
    end)
  end)

  it("leaves long strings readable that the job may still be reading", function()
    for _ = 1, 20 do
      local text = ("x"):rep(1e5)
      local ok, _, info = msys.runInPool("CPU", function()
        local sum = 0
        while true do
          sum = sum + #text:rep(2)
        end
      end, { timeout = 0.002 })
      assert.same({ false, "timeout" }, { ok, info.kind })
    end
    collectgarbage()
  end)

  it("may be the job's own to see", function()
    with_pool({ interruptible = false }, function(pool)
      local ok, _, info = msys.runInPool(pool, function()
        jit.off(true)
        while not msys.cancelled() do
        end
        _OSTLS.saw = { msys.cancelled() }
      end, { timeout = 0.05 })
      assert.same({ false, "timeout" }, { ok, info.kind })
      assert.is_false(msys.cancelled())
      assert.is_false(must(pool, msys.cancelled))
    end)
  end)

  it("that is over leaves nothing behind", function()
    helper.collect()
    local before = native.alive()
    for _ = 1, 2000 do
      assert(msys.runInPool("CPU", noop, { timeout = 1000 }))
    end
    helper.collect()
    assert.is_true(native.alive() <= before)
  end)
end)

describe("a token", function()
  after_each(helper.clean)

  it("ends all its jobs: queued, waiting and running", function()
    with_pool({ concurrency = 4, sessions = 1 }, function(pool)
      local token, began, kinds = msys.canceller(), thread.counter(), {}
      local function run(fn)
        msys.spawn(function()
          local ok, err, info = msys.runInPool(pool, fn, { cancel = token })
          kinds[#kinds + 1] = ok or info.kind
          assert.matches("was cancelled: enough %(it waited", err)
        end)
      end
      for _ = 1, 2 do
        run(function()
          began:add()
          msys.sleep(1000)
        end)
      end
      for _ = 1, 2 do
        run(function()
          began:add()
          while true do
          end
        end)
      end
      eventually(function()
        return began:get() == 4
      end)
      for _ = 1, 20 do
        run(noop)
      end
      eventually(function()
        return pool:stat().job_num_queued == 20
      end)
      assert.same({ false, true, false }, { token:cancelled(), token:cancel "enough", token:cancel "again" })
      assert.same({ true, "enough" }, { token:cancelled() })
      msys.run()
      assert.equal(24, #kinds)
      for _, kind in ipairs(kinds) do
        assert.equal("cancelled", kind)
      end
      -- And those to come.
      local ok, _, info = msys.runInPool(pool, noop, { cancel = token })
      assert.same({ false, "cancelled" }, { ok, info.kind })
    end)
  end)

  it("crosses, and can be cancelled from a job of its own", function()
    local token = msys.canceller()
    local ok, err, info = msys.runInPool("CPU", function()
      token:cancel "by itself"
      while true do
      end
    end, { cancel = token })
    assert.same({ false, "cancelled", true }, { ok, info.kind, (token:cancelled()) })
    assert.matches("was cancelled: by itself", err)
    assert.matches("^msys%.canceller: 0x%x+ %(cancelled%)$", tostring(token))
  end)

  it("ends the wait for room in a queue", function()
    with_busy({ backlog = 1 }, function(pool, release)
      local token, outcome = msys.canceller(), nil
      local queued = msys.submit(pool, noop)
      msys.spawn(function()
        outcome = { msys.runInPool(pool, noop, { cancel = token }) }
      end)
      msys.yield()
      msys.yield()
      assert.is_nil(outcome)
      token:cancel "no more"
      eventually(function()
        return outcome
      end)
      assert.same({ false, "cancelled" }, { outcome[1], outcome[3].kind })
      assert.matches("was cancelled before pool '.*' had room for it: no more", outcome[2])
      release()
      assert(queued:wait())
    end)
  end)

  it("goes with the first of several reasons", function()
    local token = msys.canceller()
    local future = msys.submit("CPU", function()
      return msys.runInPool("IO", function()
        msys.sleep(1000)
      end, { cancel = token, timeout = 0.05 })
    end)
    local ok, nested, _, info = future:wait()
    assert.same({ true, false, "timeout" }, { ok, nested, info.kind })
    token:cancel()
  end)

  it("that is dropped ends nothing", function()
    local gate = thread.channel()
    local result
    msys.spawn(function()
      result = {
        msys.runInPool("CPU", function()
          gate:receive()
          return 1
        end, { cancel = msys.canceller() }),
      }
    end)
    msys.yield()
    collectgarbage()
    collectgarbage()
    gate:close()
    msys.run()
    assert.same({ true, 1 }, result)
  end)

  it("is asked for by its methods with a colon", function()
    local token = msys.canceller()
    for code, text in pairs {
      ["token.cancel()"] = "msys.canceller:cancel: called on nil (call it with a colon)",
      ["token.cancelled 'x'"] = "msys.canceller:cancelled: called on string (call it with a colon)",
      ["token:cancel(5)"] = "msys.canceller:cancel: reason must be a string, got number",
    } do
      local fn = setfenv(assert(loadstring(code, "=code")), { token = token })
      local ok, err = pcall(fn)
      assert.same({ false, "code:1: " .. text }, { ok, err })
    end
  end)
end)

describe("cancelling a job", function()
  after_each(helper.clean)

  it("cancels the jobs that it waits for, at any depth, and reports none of them", function()
    local errors = helper.catching(function()
      local depth = thread.counter()
      local function nest(level)
        depth:add()
        if level == 0 then
          while true do
          end
        end
        -- What is not waited for would be left alone: this session runs when the job has begun to wait, and the next
        -- level waits for that.
        local go = thread.channel(1)
        msys.spawn(go.send, go, true)
        local function next_level(below)
          go:receive()
          return nest(below)
        end
        if level % 3 == 0 then
          return msys.submit("IO", next_level, level - 1):wait()
        elseif level % 3 == 1 then
          return msys.map("IO", { level - 1 }, next_level)
        end
        return msys.runInPool("IO", function()
          return nest(level - 1)
        end)
      end
      local future = msys.submit("IO", nest, 9)
      eventually(function()
        return depth:get() == 10
      end)
      assert.is_true(future:cancel "all of it")
      local ok, err, info = future:wait()
      assert.same({ false, "cancelled" }, { ok, info.kind })
      assert.matches("all of it", err)
      eventually(function()
        local stat = msys.threadpool.stat "IO"
        return stat.job_num_running + stat.job_num_queued == 0
      end)
    end)
    assert.same({}, errors)
  end)

  it("leaves alone what it has sent and does not wait for", function()
    local gate, ended = thread.channel(), thread.channel()
    local future = msys.submit("CPU", function()
      msys.runInPool("IO", function()
        gate:receive()
        ended:send "ended"
      end, true)
      msys.sleep(1000)
    end)
    eventually(function()
      return msys.threadpool.stat("IO").job_num_running == 1
    end)
    future:cancel()
    assert.is_false((future:wait()))
    gate:close()
    assert.same({ true, "ended" }, { ended:receive(helper.LIMIT) })
  end)
end)

describe("a stop does not lose", function()
  after_each(helper.clean)

  it("the room in a queue that was meant for who has given up", function()
    with_busy({ backlog = 1 }, function(pool, release)
      local queued, second = msys.submit(pool, noop), nil
      msys.spawn(function()
        local ok, _, info = msys.runInPool(pool, noop, { timeout = 0.05 })
        assert.same({ false, "timeout" }, { ok, info.kind })
        release()
      end)
      msys.spawn(function()
        second = { msys.runInPool(pool, noop) }
      end)
      eventually(function()
        return second
      end)
      assert.same({ true }, second)
      assert(queued:wait())
    end)
  end)

  it("the completion in the pool of a job that was still queued, which is called once", function()
    local errors = helper.catching(function()
      with_busy({}, function(pool, release)
        local got, token = thread.channel(), msys.canceller()
        local ran = thread.counter()
        for _, options in ipairs { { timeout = 0.02 }, { cancel = token } } do
          options.completion = function(ok, err, info)
            got:send { ok, err, info.kind }
          end
          msys.runInPool(pool, function()
            ran:add()
          end, options)
        end
        msys.sleep(0.05)
        token:cancel "too late"
        release()
        local kinds = {}
        for _ = 1, 2 do
          local ok, outcome = got:receive(helper.LIMIT)
          assert.is_true(ok)
          kinds[outcome[3]] = (kinds[outcome[3]] or 0) + 1
        end
        must(pool, noop)
        assert.same({ { timeout = 1, cancelled = 1 }, 0, 0 }, { kinds, ran:get(), #got })
      end)
    end)
    assert.same({}, errors)
  end)

  it("jobs that are queued behind ones that were ended, when the pool is stuck", function()
    with_pool({ concurrency = 1, sessions = 1, max_abandoned = 0 }, function(pool)
      local outcomes, began = {}, thread.counter()
      local function run(options, fn)
        msys.spawn(function()
          local outcome = { msys.runInPool(pool, fn, options) }
          outcomes[#outcomes + 1] = outcome
        end)
      end
      run({ timeout = 0.3 }, function()
        began:add()
        os.execute "sleep 1"
      end)
      eventually(function()
        return began:get() == 1
      end)
      for _ = 1, 3 do
        run({ timeout = 0.05 }, noop)
      end
      run({}, noop)
      msys.run()
      local kinds = {}
      for _, outcome in ipairs(outcomes) do
        kinds[outcome[3].kind] = (kinds[outcome[3].kind] or 0) + 1
      end
      assert.same({ timeout = 4, killed = 1 }, kinds)
      eventually(function()
        return pool:stat().num_abandoned == 0
      end)
    end)
  end)

  it("the jobs of one that its worker was ended with", function()
    with_pool({ concurrency = 1 }, function(inner)
      with_pool({ concurrency = 1, interruptible = false }, function(pool)
        local began, waiting = thread.counter(), nil
        msys.spawn(function()
          waiting = {
            msys.runInPool(pool, function()
              return msys.runInPool(inner, function()
                began:add()
                while true do
                end
              end)
            end, { timeout = 1000 }),
          }
        end)
        eventually(function()
          return began:get() == 1
        end)
        local ok, _, info = msys.runInPool(pool, function()
          while true do
          end
        end, { timeout = 0.05 })
        assert.same({ false, "timeout" }, { ok, info.kind })
        eventually(function()
          return waiting
        end)
        assert.same({ false, "killed" }, { waiting[1], waiting[3].kind })
        must(inner, noop)
      end)
    end)
  end)
end)

describe("the locks of a job that is stopped are released and reported:", function()
  after_each(helper.clean)

  local function spin()
    while true do
    end
  end
  local PLACES = {
    ["in a wait"] = function()
      msys.sleep(1000)
    end,
    ["in code"] = spin,
    -- The worker comes back when they have been locked by others.
    ["in C"] = "hold",
    -- The worker never comes back.
    ["in compiled code without guards"] = spin,
  }
  for what, job in pairs(PLACES) do
    it(what, function()
      local options = { sessions = 1, interruptible = not what:find "guards" }
      gates.holding(options, function(pool, hold, open)
        local mutex, rwlock = thread.mutex(thread.MUTEX_RECURSIVE), thread.rwlock()
        local work = job == "hold" and hold or job --[[@as function]]
        local token, has = msys.canceller(), thread.channel()
        local id
        local errors = helper.catching(function()
          msys.spawn(function()
            threads.take(has)
            token:cancel()
          end)
          local ok, _, info = msys.runInPool(pool, function()
            mutex:lock()
            mutex:lock()
            rwlock:rdlock()
            has:send(true)
            work()
          end, { cancel = token, name = what })
          assert.same({ false, "cancelled" }, { ok, info.kind })
          id = info.job
          threads.lock(mutex)
          assert.is_true(rwlock:wrlock(helper.LIMIT))
          open()
          must(pool, noop)
        end, 2)
        assert.equal(2, #errors)
        for _, lock in ipairs { mutex, rwlock } do
          lock:unlock()
          local report = assert.is_table(threads.report_of(errors, lock))
          local text = (' was still locked when job %d "%s" of pool %s ended, and is released'):format(
            id,
            what,
            pool.name
          )
          assert.matches(text, report.err, 1, true)
          assert.equal("error", report.info.kind)
        end
        gates.until_stat(
          pool,
          { abandoned = job == "hold" and 1 or 0, killed = options.interruptible and 0 or 1 }
        )
      end)
    end)
  end
end)

describe("workers that are stuck in C", function()
  after_each(helper.clean)

  it("are replaced up to max_abandoned, and then the pool says so", function()
    local STUCK = 1.2
    with_pool({ concurrency = 1, sessions = 1, max_abandoned = 1 }, function(pool)
      local function stick()
        local ok, _, info = msys.runInPool(pool, function(seconds)
          os.execute("sleep " .. seconds)
        end, { args = { STUCK }, timeout = 0.05 })
        assert.same({ false, "timeout" }, { ok, info.kind })
      end
      stick()
      -- Another has taken its place.
      must(pool, noop)
      eventually(function()
        return pool:stat().num_abandoned == 1
      end)
      stick()
      eventually(function()
        return pool:stat().num_abandoned == 2
      end)
      local ok, err = pcall(msys.runInPool, pool, noop)
      assert.is_false(ok)
      assert.matches(
        "pool '.*' has 2 workers stuck in C calls, of which max_abandoned = 1 were replaced, and none is left",
        err
      )
      -- The calls return.
      eventually(function()
        return pool:stat().num_abandoned == 0
      end)
      must(pool, noop)
      -- The one that was too many ends when its call has returned.
      eventually(function()
        return pool:stat().num_threads == 1
      end)
      local stat = pool:stat()
      assert.same({ 2, 0 }, { stat.abandoned, stat.killed })
    end)
  end)

  it("do not hold up the end of their pool", function()
    local pool = msys.threadpool.create { name = "stuck", concurrency = 1 }
    local ok = msys.runInPool(pool, function()
      os.execute "sleep 1"
    end, { timeout = 0.05 })
    assert.is_false(ok)
    eventually(function()
      return pool:stat().num_abandoned == 1
    end)
    local took = timed(pool.shutdown, pool)
    assert.is_true(took < 0.8, took)
  end)
end)

describe("a pool that is dropped", function()
  after_each(helper.clean)

  it("stops what runs", function()
    local pool = msys.threadpool.create { name = "dropped", concurrency = 2 }
    local kinds = {}
    for _ = 1, 5 do
      msys.spawn(function()
        local ok, _, info = msys.runInPool(pool, function()
          while true do
          end
        end)
        kinds[#kinds + 1] = ok or info.kind
      end)
    end
    eventually(function()
      return pool:stat().job_num_running == 2
    end)
    pool:shutdown { drop = true }
    msys.run()
    assert.same({ "shutdown", "shutdown", "shutdown", "shutdown", "shutdown" }, kinds)
  end)

  it("stops sessions that its jobs have started", function()
    local errors = helper.catching(function()
      local pool, began = msys.threadpool.create { name = "dropped", concurrency = 1 }, thread.counter()
      must(pool, function()
        msys.spawn(function()
          began:add()
          while true do
          end
        end)
      end)
      msys.runInPool(pool, noop, { timeout = 0.05 })
      eventually(function()
        return began:get() == 1
      end)
      pool:shutdown { drop = true }
    end)
    assert.equal(1, #errors)
    assert.matches("pool 'dropped' is shut down", errors[1].err)
  end)

  it("stops an init that does not end", function()
    local pool = msys.threadpool.create {
      name = "dropped",
      concurrency = 1,
      init = function()
        while true do
        end
      end,
    }
    local ok, _, info = msys.runInPool(pool, noop, { timeout = 0.05 })
    assert.same({ false, "timeout" }, { ok, info.kind })
    pool:shutdown { drop = true }
    assert.equal(0, pool:stat().num_threads)
  end)
end)
