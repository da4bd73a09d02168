-- `thread.mutex` and `msys.lock`: what they give, whose a lock is, who waits, what becomes of one that is left locked.
-- Conditions, reader-writer locks and waits that would never end have files of their own.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local LIMIT = helper.LIMIT
local must, eventually, in_sessions = helper.must, helper.eventually, helper.in_sessions
local error_of = threads.error_of

local TYPES = {
  MUTEX_NORMAL = thread.MUTEX_NORMAL,
  MUTEX_RECURSIVE = thread.MUTEX_RECURSIVE,
  MUTEX_ERRORCHECK = thread.MUTEX_ERRORCHECK,
}

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- Runs `fn` as a session of the host, and gives what it gave.
local in_session = msys.run

local function lock(m, timeout)
  return m:lock(timeout)
end

local function trylock(m)
  return m:trylock()
end

local function take_and_give(m)
  return m:trylock() and m:unlock()
end

--- Whether another session can have it now.
local function is_free(m)
  return in_session(take_and_give, m)
end

--- Has the host's session `fn` run to its first wait, while this code has `mutex`.
local function while_locked(mutex, fn)
  mutex:lock()
  msys.spawn(fn)
  msys.yield()
end

for name, kind in pairs(TYPES) do
  describe("a mutex of type " .. name, function()
    after_each(helper.clean)

    it("gives true for lock, trylock and unlock, and nothing else", function()
      local m = thread.mutex(kind)
      assert.same(pack(true), pack(m:lock()))
      assert.same(pack(true), pack(m:unlock()))
      assert.same(pack(true), pack(m:trylock()))
      assert.same(pack(true), pack(m:unlock()))
    end)

    it("gives false for trylock when another session has it", function()
      local m = thread.mutex(kind)
      m:lock()
      assert.same(pack(false), pack(in_session(trylock, m)))
      assert.same(pack(false), pack(must("CPU", trylock, m)))
      m:unlock()
    end)

    for _, timeout in ipairs { 0, 0.001, 5, 1e9, 1e300, math.huge } do
      it(("gives true at once for lock(%g) when it is free"):format(timeout), function()
        local m = thread.mutex(kind)
        assert.same(pack(true), pack(m:lock(timeout)))
        assert.is_true(m:unlock())
        assert.is_true(must("CPU", take_and_give, m))
      end)
    end

    for _, timeout in ipairs { 0, 1e-9, 0.001, 0.03 } do
      it(("gives false and why for lock(%g) when it stays locked"):format(timeout), function()
        local m = thread.mutex(kind)
        m:lock()
        assert.same(pack(false, "timeout"), pack(in_session(lock, m, timeout)))
        assert.same(pack(false, "timeout"), pack(must("CPU", lock, m, timeout)))
        m:unlock()
        assert.is_true(is_free(m))
      end)
    end

    for _, timeout in ipairs { 30, math.huge } do
      it(("gives true for lock(%g) when it is unlocked in time"):format(timeout), function()
        local m, got = thread.mutex(kind), nil
        while_locked(m, function()
          got = pack(m:lock(timeout))
          m:unlock()
        end)
        assert.is_nil(got)
        m:unlock()
        msys.run()
        assert.same(pack(true), got)
      end)
    end

    it("is not had by one whose time is over", function()
      local m = thread.mutex(kind)
      m:lock()
      in_session(lock, m, 0.001)
      m:unlock()
      assert.is_true(is_free(m))
      assert.is_true(must("CPU", take_and_give, m))
    end)

    it("excludes sessions of the host", function()
      local m, inside, count = thread.mutex(kind), 0, 0
      in_sessions(20, function()
        for _ = 1, 50 do
          m:lock()
          inside = inside + 1
          assert.equal(1, inside)
          msys.yield()
          inside, count = inside - 1, count + 1
          m:unlock()
        end
      end)
      assert.equal(1000, count)
    end)

    for concurrency, where in ipairs { "one worker", "two workers" } do
      it("excludes jobs of " .. where .. " and sessions of the host", function()
        helper.with_pool({ concurrency = concurrency }, function(pool)
          local m, count, inside = thread.mutex(kind), thread.counter(), thread.counter()
          local function work(times)
            for i = 1, times do
              m:lock()
              if inside:add() ~= 1 then error "not alone" end
              local before = count:get()
              if i % 16 == 0 then msys.yield() end
              count:set(before + 1)
              inside:add(-1)
              m:unlock()
            end
          end
          in_sessions(20, function(i)
            if i % 4 == 0 then
              work(200)
            else
              must(pool, work, 200)
            end
          end)
          assert.equal(4000, count:get())
        end)
      end)
    end
  end)
end

describe("the owner of a mutex", function()
  after_each(helper.clean)

  it("is the session, also in a coroutine of its own", function()
    local function within()
      local m = thread.mutex()
      local function in_coroutine(method)
        local co = coroutine.create(function()
          return pcall(m[method], m)
        end)
        return select(2, coroutine.resume(co))
      end
      m:lock()
      -- Relocking fails as it does for the session, and unlocking does not.
      return in_coroutine "lock", in_coroutine "unlock", in_coroutine "lock", m:unlock()
    end
    local expected = { false, true, true, true }
    assert.same(expected, { within() })
    assert.same(expected, { in_session(within) })
    assert.same(expected, { must("CPU", within) })
  end)

  it("is one session of a VM and not the others", function()
    local function within()
      local m, results = thread.mutex(), thread.channel()
      m:lock()
      msys.spawn(function()
        results:send(m:trylock())
        results:send((pcall(m.unlock, m)))
      end)
      return threads.take(results), threads.take(results), m:unlock()
    end
    local expected = { false, false, true }
    assert.same(expected, { within() })
    assert.same(expected, { in_session(within) })
    assert.same(expected, { must("CPU", within) })
  end)

  it("is a job and not its submitter, nor a job that it sends", function()
    helper.with_pool({}, function(pool)
      local function nested(m, depth)
        local got = m:trylock()
        if depth > 0 then return got, must(pool, nested, m, depth - 1) end
        return got
      end
      local m = thread.mutex()
      assert.same({ true, false, false }, {
        must(pool, function()
          local results = { nested(m, 2) }
          m:unlock()
          return unpack(results)
        end),
      })
      m:lock()
      assert.same({ false, false }, { must(pool, nested, m, 1) })
      m:unlock()
    end)
  end)

  it("is a job also in its completion in the pool", function()
    helper.with_pool({}, function(pool)
      local m, results = thread.mutex(), thread.channel()
      msys.runInPool(pool, function()
        m:lock()
      end, function()
        results:send((pcall(m.unlock, m)))
      end)
      assert.is_true(threads.take(results))
      assert.is_true(is_free(m))
    end)
  end)

  it("is the code outside of sessions as one", function()
    local m = thread.mutex()
    m:lock()
    assert.is_false((pcall(m.lock, m)))
    assert.is_true(coroutine.wrap(m.unlock)(m))
  end)
end)

describe("a session that waits for a mutex", function()
  after_each(helper.clean)

  it("leaves its worker to other jobs", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local m, begun = thread.mutex(), thread.channel()
      m:lock()
      local outcome
      msys.runInPool(pool, function()
        begun:send(true)
        m:lock()
        m:unlock()
        return "done"
      end, function(...)
        outcome = pack(...)
      end, SCHED)
      threads.take(begun)
      for i = 1, 10 do
        assert.equal(
          i,
          must(pool, function()
            return i
          end)
        )
      end
      assert.is_nil(outcome)
      m:unlock()
      msys.run()
      assert.same(pack(true, "done"), outcome)
    end)
  end)

  it("leaves its VM to other sessions of the host", function()
    local m, order = thread.mutex(), {}
    while_locked(m, function()
      order[#order + 1] = "waits"
      m:lock()
      order[#order + 1] = "has it"
      m:unlock()
    end)
    msys.spawn(function()
      order[#order + 1] = "another"
    end)
    msys.yield()
    m:unlock()
    msys.run()
    assert.same({ "waits", "another", "has it" }, order)
  end)

  it("waits as long as its limit says, and others go on meanwhile", function()
    local m, order = thread.mutex(), {}
    while_locked(m, function()
      m:lock(0.02)
      order[#order + 1] = "timeout"
    end)
    msys.run(function()
      msys.sleep(0.005)
      order[#order + 1] = "sleeper"
    end)
    m:unlock()
    assert.same({ "sleeper", "timeout" }, order)
  end)

  it("has its turn in the order in which they came", function()
    local m, order = thread.mutex(), {}
    m:lock()
    for i = 1, 10 do
      msys.spawn(function()
        m:lock()
        order[#order + 1] = i
        msys.yield()
        m:unlock()
      end)
    end
    msys.yield()
    m:unlock()
    msys.run()
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, order)
  end)

  it("is not starved by a session of its VM that locks in a loop", function()
    local m, done = thread.mutex(), false
    while_locked(m, function()
      threads.lock(m)
      done = true
      m:unlock()
    end)
    threads.await(function()
      m:unlock()
      m:lock()
      return done
    end)
    m:unlock()
  end)

  it("is not starved by a job of another VM that locks in a loop", function()
    helper.with_pool({}, function(pool)
      local m, done, begun = thread.mutex(), thread.counter(), thread.channel()
      msys.runInPool(pool, function()
        m:lock()
        begun:send(true)
        while done:get() == 0 do
          m:unlock()
          m:lock()
        end
        m:unlock()
      end, true)
      threads.take(begun)
      for _ = 1, 20 do
        local got = m:lock(LIMIT)
        if not got then done:set(1) end
        assert.is_true(got)
        m:unlock()
      end
      done:set(1)
    end)
  end)

  it("that gives up does not take the turn of the next", function()
    for _ = 1, 50 do
      local m, got = thread.mutex(), nil
      m:lock()
      msys.spawn(function()
        if m:lock(0.0005) then m:unlock() end
      end)
      msys.spawn(function()
        got = m:lock(LIMIT)
        m:unlock()
      end)
      msys.sleep(0.0005)
      m:unlock()
      msys.run()
      assert.is_true(got)
    end
  end)

  it("gives up in time also when other waits that cannot suspend end later", function()
    local m, got = thread.mutex(), nil
    msys.spawn(function()
      m:lock()
      msys.sleep(0.02)
      -- Wakes the waiter, whose time is over by now, and is faster.
      m:unlock()
      m:lock()
      threads.await(function()
        return got
      end)
      m:unlock()
    end)
    msys.yield()
    msys.spawn(threads.within_sort, msys.sleep, 0.04)
    got = pack(m:lock(0.01))
    if got[1] then m:unlock() end
    msys.run()
    assert.same(pack(false, "timeout"), got)
  end)

  for way, call in pairs(threads.ways) do
    it("does so " .. way, function()
      local function wait(m, turn)
        turn:send(true)
        local got = m:lock(LIMIT)
        m:unlock()
        return got, m:lock() and m:unlock()
      end
      --- Locks, until the other has begun to wait.
      local function hold(m, turn)
        m:lock()
        msys.spawn(function()
          m:lock(LIMIT)
          threads.take(turn)
          msys.yield()
          m:unlock()
        end)
        msys.yield()
        m:unlock()
      end
      for where, run in pairs {
        ["a session"] = function(...)
          return in_session(call, ...)
        end,
        ["a job"] = function(...)
          return must("CPU", function(...)
            return call(...)
          end, ...)
        end,
      } do
        local m, turn = thread.mutex(), thread.channel()
        hold(m, turn)
        assert.same({ true, true }, { run(wait, m, turn) }, where)
      end
    end)

    it("does so outside of sessions, " .. way, function()
      local m = thread.mutex()
      msys.spawn(function()
        m:lock()
        msys.sleep(0.001)
        m:unlock()
      end)
      msys.yield()
      assert.is_true(call(m.lock, m))
      assert.is_true(m:unlock())
      msys.run()
    end)
  end
end)

describe("a recursive mutex", function()
  after_each(helper.clean)

  for _, depth in ipairs { 1, 2, 3, 1000 } do
    it(("that is locked %d times is free when it is unlocked as often"):format(depth), function()
      local function within(report)
        local m = thread.mutex(thread.MUTEX_RECURSIVE)
        for i = 1, depth do
          report(i % 2 == 0 and m:lock() or m:trylock())
        end
        for _ = 1, depth do
          report(not must("CPU", trylock, m))
          report(m:unlock())
        end
        report(must("CPU", function()
          return m:trylock() and m:unlock()
        end))
        report(not pcall(m.unlock, m))
      end
      if depth == 1000 then
        -- Once is enough to ask others.
        local m = thread.mutex(thread.MUTEX_RECURSIVE)
        for _ = 1, depth do
          m:lock()
        end
        for _ = 1, depth do
          assert.is_false(is_free(m))
          m:unlock()
        end
        assert.is_true(is_free(m))
      else
        within(assert.is_true)
        must("CPU", function()
          within(function(ok)
            if ok ~= true then error "not as expected" end
          end)
        end)
      end
    end)
  end

  it("is one session's, whose coroutines lock it again", function()
    local m = thread.mutex(thread.MUTEX_RECURSIVE)
    m:lock()
    assert.is_true(coroutine.wrap(m.lock)(m))
    m:unlock()
    assert.is_false(is_free(m))
    m:unlock()
    assert.is_true(is_free(m))
  end)

  it("is locked once by one that has waited, however deep it was", function()
    local m = thread.mutex(thread.MUTEX_RECURSIVE)
    local got
    m:lock()
    while_locked(m, function()
      m:lock()
      m:unlock()
      got = pack(pcall(m.unlock, m))
    end)
    m:unlock()
    msys.yield()
    assert.is_nil(got)
    m:unlock()
    msys.run()
    assert.is_false(got[1])
  end)
end)

describe("raises at the caller's line:", function()
  after_each(helper.clean)

  --- `%s` is the mutex as its address; where there is `held`, this code has it already; where `other`, another session.
  local CASES = {
    ["relocking it"] = {
      "m:lock()",
      "thread.mutex:lock: this session has it already: %s (locked by the main code of the host)",
      held = true,
    },
    ["relocking it with a limit"] = {
      "m:lock(1)",
      "thread.mutex:lock: this session has it already: %s (locked by the main code of the host)",
      held = true,
    },
    ["relocking it with no time"] = {
      "m:lock(0)",
      "thread.mutex:lock: this session has it already: %s (locked by the main code of the host)",
      held = true,
    },
    ["trying to relock it"] = {
      "m:trylock()",
      "thread.mutex:trylock: this session has it already: %s (locked by the main code of the host)",
      held = true,
    },
    ["unlocking a free one"] = {
      "m:unlock()",
      "thread.mutex:unlock: this session does not have it: %s (free)",
    },
    ["unlocking another session's"] = {
      "m:unlock()",
      "thread.mutex:unlock: this session does not have it: %s (locked by a session of the host)",
      other = true,
    },
    ["a limit that is no number"] = {
      "m:lock 'soon'",
      "thread.mutex:lock: timeout must be a number, got string",
    },
    ["a negative limit"] = { "m:lock(-1)", "thread.mutex:lock: timeout must not be negative, got -1" },
    ["a limit that is NaN"] = { "m:lock(0/0)", "thread.mutex:lock: timeout must not be negative, got nan" },
    ["lock without a colon"] = { "m.lock()", "thread.mutex:lock: called on nil (call it with a colon)" },
    ["lock of a number"] = { "m.lock(0.5)", "thread.mutex:lock: called on number (call it with a colon)" },
    ["trylock of a table"] = {
      "m.trylock {}",
      "thread.mutex:trylock: called on table (call it with a colon)",
    },
    ["unlock of another handle"] = {
      "m.unlock(thread.rwlock())",
      "thread.mutex:unlock: called on userdata (call it with a colon)",
    },
    ["an unknown type"] = {
      "thread.mutex(3)",
      "thread.mutex: type must be thread.MUTEX_NORMAL, MUTEX_RECURSIVE or MUTEX_ERRORCHECK, got 3",
    },
    ["a type that is none"] = {
      "thread.mutex 'recursive'",
      "thread.mutex: type must be thread.MUTEX_NORMAL, MUTEX_RECURSIVE or MUTEX_ERRORCHECK, got string",
    },
    ["locking a name that is none"] = { "msys.lock()", "msys.lock: name must be a string, got nil" },
    ["unlocking a name that is none"] = { "msys.unlock(1)", "msys.unlock: name must be a string, got number" },
    ["locking a name with a limit that is none"] = {
      "msys.lock('spec', {})",
      "msys.lock: timeout must be a number, got table",
    },
    ["unlocking a name that nobody has locked"] = {
      "msys.unlock 'spec'",
      "msys.unlock: this session does not have it: the lock named 'spec' (free)",
    },
    ["relocking a name"] = {
      "msys.lock 'spec held'",
      "msys.lock: this session has it already: the lock named 'spec held' (locked by the main code of the host)",
      before = function()
        msys.lock "spec held"
        return function()
          msys.unlock "spec held"
        end
      end,
    },
  }

  for what, case in pairs(CASES) do
    it(what, function()
      for _, kind in pairs { thread.MUTEX_NORMAL, thread.MUTEX_ERRORCHECK } do
        local m = thread.mutex(kind)
        local name = tostring(m):match "^thread.mutex: 0x%x+"
        local after = case.before and case.before()
        local go = thread.channel()
        if case.held then m:lock() end
        if case.other then
          msys.spawn(function()
            m:lock()
            threads.take(go)
            m:unlock()
          end)
          msys.yield()
        end
        local err = error_of(case[1], { m = m })
        if case.held then m:unlock() end
        go:send(true)
        msys.run()
        if after then after() end
        assert.equal("case:3: " .. case[2]:gsub("%%s", name), err)
        assert.is_true(is_free(m))
      end
    end)
  end

  it("unlocking a recursive one that another session has", function()
    local m = thread.mutex(thread.MUTEX_RECURSIVE)
    m:lock()
    local err = must("CPU", error_of, "m:unlock()", { m = m })
    assert.matches(
      "^case:3: thread.mutex:unlock: this session does not have it: "
        .. "thread.mutex: 0x%x+ %(locked by the main code of the host%)$",
      err
    )
    m:unlock()
  end)
end)

--- Where sessions end; each is given the mutex and a function to call there. Most are jobs of a pool with one worker.
local ENDS = {
  ["a session of the host"] = function(_, fn)
    msys.run(function()
      fn()
    end)
  end,
  ["a session of the host that fails"] = function(_, fn)
    msys.spawn(function()
      fn()
      error "failed"
    end)
    msys.run()
  end,
  ["a job"] = function(pool, fn)
    must(pool, fn)
  end,
  ["a job that fails"] = function(pool, fn)
    assert.is_false((msys.runInPool(pool, function()
      fn()
      error "failed"
    end)))
  end,
  ["an asynchronous job"] = function(pool, fn)
    msys.runInPool(pool, fn, true)
  end,
  ["an asynchronous job that fails"] = function(pool, fn)
    msys.runInPool(pool, function()
      fn()
      error "failed"
    end, true)
  end,
  ["a job with a completion in the pool"] = function(pool, fn)
    msys.runInPool(pool, fn, function() end)
  end,
  ["a completion in the pool"] = function(pool, fn)
    msys.runInPool(pool, function() end, function()
      fn()
    end)
  end,
  ["a completion in the pool that fails"] = function(pool, fn)
    msys.runInPool(pool, function() end, function()
      fn()
      error "failed"
    end)
  end,
  ["a job with a completion on the scheduler"] = function(pool, fn)
    msys.runInPool(pool, fn, function() end, SCHED)
    msys.run()
  end,
  ["a completion on the scheduler"] = function(pool, fn)
    msys.runInPool(pool, function() end, function()
      fn()
    end, SCHED)
    msys.run()
  end,
  ["a session that a job has spawned"] = function(pool, fn)
    must(pool, function()
      msys.spawn(fn)
    end)
  end,
}

--- How many reports come of that end: of the lock, and of a failure that nobody asks for.
local function reports(what)
  return what:find "that fails$" and what ~= "a job that fails" and 2 or 1
end

describe("a lock that is left locked at the end of", function()
  after_each(helper.clean)

  for what, run in pairs(ENDS) do
    it(what .. " is released and reported, by its name", function()
      helper.with_pool({ concurrency = 1 }, function(pool)
        local m = thread.mutex()
        helper.catching(function(errors)
          run(pool, function()
            m:lock()
          end)
          eventually(function()
            return is_free(m)
          end, "its release")
          local report = eventually(function()
            return threads.report_of(errors, m)
          end, "the report")
          assert.matches(
            "^msys: thread.mutex: 0x%x+ was still locked when .+ ended, and is released$",
            report.err
          )
          assert.equal("error", report.info.kind)
          assert.is_string(report.info.traceback)
        end, reports(what))
      end)
    end)

    it(what .. " is had by the next that waits", function()
      helper.with_pool({ concurrency = 1 }, function(pool)
        local m, locked, go = thread.mutex(thread.MUTEX_RECURSIVE), thread.channel(), thread.channel()
        local got
        helper.catching(function()
          msys.spawn(function()
            threads.take(locked)
            msys.spawn(function()
              got = m:lock(LIMIT)
              m:unlock()
            end)
            -- It waits by now.
            msys.yield()
            msys.yield()
            go:send(true)
          end)
          run(pool, function()
            m:lock()
            m:lock()
            locked:send(true)
            threads.take(go)
          end)
          msys.run()
          assert.is_true(got)
        end, reports(what))
      end)
    end)

    it(what .. " does not harm the worker", function()
      helper.with_pool({ concurrency = 1 }, function(pool)
        local m = thread.mutex()
        must(pool, function()
          _OSTLS.mark = true
        end)
        helper.catching(function()
          run(pool, function()
            m:lock()
          end)
          eventually(function()
            return is_free(m)
          end, "its release")
          assert.is_true(must(pool, function()
            return _OSTLS.mark
          end))
        end, reports(what))
      end)
    end)
  end

  it(
    "a job with a completion in the pool is reported for that job alone, and none for one that unlocks",
    function()
      helper.with_pool({ concurrency = 1 }, function(pool)
        local m, done = thread.mutex(), thread.channel()
        must(pool, function()
          _OSTLS.mark = true
        end)
        local errors = helper.catching(function()
          for _ = 1, 10 do
            msys.runInPool(pool, function()
              m:lock()
            end, function()
              m:unlock()
              done:send(true)
            end)
            threads.take(done)
          end
          assert.is_true(must(pool, function()
            return _OSTLS.mark
          end))
        end)
        assert.same({}, errors)
      end)
    end
  )

  it("a synchronous job is free when its submitter goes on", function()
    helper.with_pool({}, function(pool)
      helper.catching(function()
        local m = thread.mutex()
        for _ = 1, 100 do
          must(pool, function()
            m:lock()
          end)
          assert.is_true(m:trylock())
          m:unlock()
        end
      end, 100)
    end)
  end)

  it("a session is reported once for each lock, also when it is recursive or has a name", function()
    local m, r = thread.mutex(thread.MUTEX_RECURSIVE), thread.mutex()
    local errors = helper.catching(function()
      in_session(function()
        m:lock()
        m:lock()
        r:lock()
        msys.lock "spec left"
      end)
    end)
    assert.equal(3, #errors)
    assert.is_table(threads.report_of(errors, m))
    assert.is_table(threads.report_of(errors, r))
    assert.is_table(threads.report_of(errors, "the lock named 'spec left'"))
  end)

  it("a session is reported once when its name has lines", function()
    local errors = helper.catching(function()
      in_session(msys.lock, "two\nlines")
    end)
    assert.equal(1, #errors)
  end)

  it("a job is reported with the job's id, name and pool", function()
    helper.with_pool({ name = "spec of locks" }, function(pool)
      local m = thread.mutex()
      local errors = helper.catching(function(reported)
        assert(msys.runInPool(pool, function()
          m:lock()
        end, { name = "resize" }))
        eventually(function()
          return #reported > 0
        end)
      end)
      assert.matches('was still locked when job %d+ "resize" of pool spec of locks ended', errors[1].err)
    end)
  end)

  it("a worker is released and reported, and its sessions wait for none", function()
    local m, other = thread.mutex(), thread.mutex()
    local errors = helper.catching(function()
      m:lock()
      helper.with_pool({ concurrency = 1 }, function(pool)
        local begun = thread.channel()
        must(pool, function()
          msys.spawn(function()
            other:lock()
            begun:send(true)
            m:lock()
          end)
        end)
        threads.take(begun)
        -- It waits, or no other job could run.
        must(pool, function() end)
      end)
      eventually(function()
        return is_free(other)
      end, "its release")
      m:unlock()
      assert.is_true(is_free(m))
    end, 1)
    assert.equal(1, #errors)
    assert.is_table(threads.report_of(errors, other))
  end)

  it("a session that has unlocked it is not reported", function()
    local errors = helper.catching(function()
      local m = thread.mutex(thread.MUTEX_RECURSIVE)
      local function fn()
        for _ = 1, 3 do
          m:lock()
        end
        for _ = 1, 3 do
          m:unlock()
        end
        msys.lock "spec"
        msys.unlock "spec"
      end
      in_session(fn)
      must("CPU", fn)
    end)
    assert.same({}, errors)
  end)
end)

describe("msys.lock", function()
  after_each(helper.clean)

  it("and msys.unlock give true", function()
    assert.same(pack(true), pack(msys.lock "spec"))
    assert.same(pack(true), pack(msys.unlock "spec"))
  end)

  it("is one lock for all VMs", function()
    msys.lock "spec"
    local function try()
      return msys.lock("spec", 0.001)
    end
    assert.same(pack(false, "timeout"), pack(in_session(try)))
    assert.same(pack(false, "timeout"), pack(must("CPU", try)))
    msys.unlock "spec"
    assert.is_true(must("CPU", function()
      return msys.lock "spec" and msys.unlock "spec"
    end))
  end)

  it("stays locked when the handle is collected meanwhile", function()
    msys.lock "spec"
    collectgarbage()
    collectgarbage()
    assert.is_false(must("CPU", msys.lock, "spec", 0))
    assert.is_true(msys.unlock "spec")
  end)

  it("is another lock for another name, whatever its bytes", function()
    local names =
      { "", "a", "A", "a\0", "a\0b", "a\nb", "\128", "\129", "\255\254", "\195\164", ("x"):rep(1000) }
    in_session(function()
      for _, name in ipairs(names) do
        assert.is_true(msys.lock(name, 0))
      end
      for _, name in ipairs(names) do
        assert.is_false(must("CPU", msys.lock, name, 0))
      end
      for _, name in ipairs(names) do
        assert.is_true(msys.unlock(name))
      end
    end)
  end)

  it("waits for many names in turn, which are forgotten", function()
    in_session(function()
      for i = 1, 2000 do
        msys.lock("spec " .. i)
        msys.unlock("spec " .. i)
      end
    end)
  end)

  it("lets sessions of all VMs through one after the other", function()
    local count = thread.counter()
    local function work()
      for _ = 1, 100 do
        msys.lock "spec"
        count:set(count:get() + 1)
        msys.unlock "spec"
      end
    end
    in_sessions(10, function(i)
      if i % 2 == 0 then
        work()
      else
        must("CPU", work)
      end
    end)
    assert.equal(1000, count:get())
  end)
end)

describe("a method of a mutex", function()
  after_each(helper.clean)

  it("crosses as a value, as the function of a module does", function()
    local m = thread.mutex()
    m:lock()
    assert.is_false(must("CPU", m.trylock, m))
    m:unlock()
  end)
end)

describe("tostring of a mutex says", function()
  after_each(helper.clean)

  local function text(m)
    return (tostring(m):gsub("0x%x+", "0x"))
  end

  it("that it is free", function()
    assert.equal("thread.mutex: 0x (free)", text(thread.mutex()))
  end)

  it("whose it is", function()
    helper.with_pool({ name = "spec of tostring" }, function(pool)
      local m = thread.mutex()
      local function locked()
        m:lock()
        local found = tostring(m):gsub("0x%x+", "0x"):gsub("job %d+", "job N")
        m:unlock()
        return found
      end
      assert.equal("thread.mutex: 0x (locked by the main code of the host)", locked())
      assert.equal("thread.mutex: 0x (locked by a session of the host)", in_session(locked))
      assert.equal("thread.mutex: 0x (locked by job N of pool spec of tostring)", must(pool, locked))
      local _, named = msys.runInPool(pool, locked, { name = "resize" })
      assert.equal('thread.mutex: 0x (locked by job N "resize" of pool spec of tostring)', named)
      local spawned = must(pool, function()
        local results = thread.channel()
        msys.spawn(function()
          results:send(locked())
        end)
        return threads.take(results)
      end)
      assert.equal("thread.mutex: 0x (locked by a session of a worker of pool spec of tostring)", spawned)
    end)
  end)

  it("the same from every VM, with the address that tells it from others", function()
    local m = thread.mutex()
    m:lock()
    assert.equal(
      tostring(m),
      must("CPU", function()
        return tostring(m)
      end)
    )
    m:unlock()
    assert.not_equal(tostring(m), tostring(thread.mutex()))
  end)

  it("what kind of handle it is, as getmetatable does", function()
    assert.equal("thread.mutex", getmetatable(thread.mutex()))
    assert.is_false((pcall(setmetatable, thread.mutex(), {})))
  end)
end)

describe("a mutex is the same object", function()
  after_each(helper.clean)

  --- Each sends a mutex to a job, and gives what comes back and whether it is locked there.
  local PLACES = {
    ["as an upvalue and a result"] = function(m)
      return must("CPU", function()
        return m, m:trylock()
      end)
    end,
    ["as an argument"] = function(m)
      return must("CPU", function(arg)
        return arg, arg:trylock()
      end, m)
    end,
    ["in a table"] = function(m)
      local back, got = must("CPU", function(arg)
        return { { arg.deep[1] } }, arg.deep[1]:trylock()
      end, { deep = { m } })
      return back[1][1], got
    end,
    ["as a key"] = function(m)
      local back, got = must("CPU", function(arg)
        local key = next(arg)
        return { [key] = key }, key:trylock() and arg[key]
      end, { [m] = true })
      return back[m], got
    end,
    ["in a function that is an upvalue of another"] = function(m)
      local function inner()
        return m
      end
      return must("CPU", function()
        return inner(), inner():trylock()
      end)
    end,
    ["through a channel"] = function(m)
      local there, back = thread.channel(), thread.channel()
      there:send(m)
      local got = must("CPU", function()
        local _, found = there:receive()
        back:send { found }
        return found:trylock()
      end)
      return select(2, back:receive())[1], got
    end,
    ["in a shared table"] = function(m)
      local t = thread.shared { m, nested = { m } }
      local got = must("CPU", function()
        t.back = t[1] == t.nested[1] and t[1]
        return t.back:trylock()
      end)
      return t.back, got
    end,
    ["through msys.shareSet"] = function(m)
      msys.shareSet("spec of mutexes", m)
      local got = must("CPU", function()
        return msys.shareGet("spec of mutexes"):trylock()
      end)
      return msys.shareUnset "spec of mutexes", got
    end,
    ["as an error value"] = function(m)
      local _, err = msys.runInPool("CPU", function()
        error { m, m:trylock() }
      end)
      return unpack(err)
    end,
    ["changed in place"] = function(m)
      local t = { got = false }
      must("CPU", function()
        t.m, t.got = m, m:trylock()
      end)
      return t.m, t.got
    end,
    ["through a nested job"] = function(m)
      return must("CPU", function()
        return must("IO", function()
          return m, m:trylock()
        end)
      end)
    end,
    ["through the completion on the scheduler"] = function(m)
      local back, got
      msys.runInPool("CPU", function()
        return m, m:trylock()
      end, function(_, ...)
        back, got = ...
      end, SCHED)
      msys.run()
      return back, got
    end,
  }

  for place, cross in pairs(PLACES) do
    it(place, function()
      local m = thread.mutex()
      helper.catching(function()
        m:lock()
        local back, got = cross(m)
        assert.is_true(rawequal(m, back))
        assert.equal("here", ({ [m] = "here" })[back])
        assert.is_false(got)
        m:unlock()
        back, got = cross(m)
        assert.is_true(rawequal(m, back))
        assert.is_true(got)
        eventually(function()
          return is_free(m)
        end)
      end)
    end)
  end

  it("for a worker too, however it came", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local m, channel = thread.mutex(), thread.channel()
      local t = thread.shared { m }
      channel:send(m)
      must(pool, function(arg)
        _OSTLS.m = arg
      end, m)
      assert.is_true(must(pool, function(arg)
        local all = { m, arg, t[1], (select(2, channel:receive())) }
        local set = { [_OSTLS.m] = true }
        for i = 1, 4 do
          if not set[all[i]] then return i end
        end
        return #all == 4
      end, m))
    end)
  end)

  it("and is another than any other", function()
    local a, b = thread.mutex(), thread.mutex()
    assert.not_equal(a, b)
    assert.same(
      { false, true, true },
      { must("CPU", function(x, y)
        return x == y, x == a, y == b
      end, a, b) }
    )
  end)
end)

describe("a VM lets go of a mutex", function()
  after_each(helper.clean)

  it("that it does not use", function()
    local weak = setmetatable({}, { __mode = "v" })
    for i = 1, 100 do
      weak[i] = thread.mutex()
      weak[i]:lock()
      weak[i]:unlock()
    end
    helper.collect()
    assert.is_nil(next(weak))
  end)

  it("as any other VM does, whoever made it", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local weak = setmetatable({}, { __mode = "v" })
      weak.host = must(pool, function()
        _OSTLS.weak = setmetatable({ thread.mutex() }, { __mode = "v" })
        return _OSTLS.weak[1]
      end)
      local function in_worker()
        return must(pool, function()
          collectgarbage()
          collectgarbage()
          return _OSTLS.weak[1]
        end)
      end
      helper.collect()
      assert.is_nil(weak.host)
      assert.is_nil(in_worker())
    end)
  end)

  it("and another VM can use it on", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      do
        local m = thread.mutex()
        must(pool, function()
          _OSTLS.m = m
        end)
      end
      collectgarbage()
      collectgarbage()
      local back, ok = must(pool, function()
        return _OSTLS.m, _OSTLS.m:lock() and _OSTLS.m:unlock()
      end)
      assert.is_true(ok)
      assert.is_true(back:trylock())
      back:unlock()
    end)
  end)

  it("only when its session has unlocked it", function()
    local name
    local errors = helper.catching(function()
      in_session(function()
        do
          local m = thread.mutex()
          m:lock()
          name = tostring(m):match "^thread.mutex: 0x%x+"
        end
        collectgarbage()
        collectgarbage()
        -- The handle may be gone by now; the lock is still this session's, which its end reports.
      end)
    end)
    assert.equal(1, #errors)
    assert.is_table(threads.report_of(errors, name))
  end)
end)
