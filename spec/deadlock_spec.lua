-- Waits for locks that would never end: they raise where the last one would begin, and say who waits for whom, where.
--
-- Tests of what must not hang, and of which no session could be ended otherwise, run as scripts of their own.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local native = require "msys.native"
local thread = require "thread"
local threads = require "spec.threads"

local LIMIT = helper.LIMIT
local SOURCE = debug.getinfo(1, "S").short_src
local must, in_sessions = helper.must, helper.in_sessions

--- The line of the code that calls this.
local function here()
  return debug.getinfo(2, "l").currentline
end

--- What a message calls a lock.
local function name_of(lock)
  return (tostring(lock):match "^thread.%l+: 0x%x+")
end

--- Calls `fn` in that pool, or here where there is none.
local function at(pool, fn, ...)
  if pool then return must(pool, fn, ...) end
  return fn(...)
end

--- How many of the list are that value.
local function count_of(list, value)
  local count = 0
  for _, item in pairs(list) do
    count = count + (item == value and 1 or 0)
  end
  return count
end

--- The links of a message: `who … waits at place for lock, which holder has`.
local function links_of(err)
  local links = {}
  for who, how, place, lock, holder in err:gmatch "\n\t(.-) (w%l+ ?w?%l*) at (%S+) for (.-), which (.-) has" do
    links[#links + 1] = { who = who, how = how, place = place, lock = lock, holder = holder }
  end
  return links
end

--- Checks that a message is a whole cycle of such locks, at such places.
local function assert_cycle(err, locks, lines)
  assert.matches("this wait would never end:\n", err, 1, true)
  local links = links_of(err)
  assert.equal(#locks, #links, err)
  local seen = {}
  for place, link in ipairs(links) do
    assert.equal(place == 1 and "would wait" or "waits", link.how, err)
    -- Who has it is who waits next.
    assert.equal(link.holder, links[place % #links + 1].who, err)
    seen[link.lock] = true
    assert.is_true(lines[link.place:match "^(.*):%d+$" == SOURCE and tonumber(link.place:match "%d+$")], err)
  end
  for _, lock in ipairs(locks) do
    assert.is_true(seen[name_of(lock)], err)
  end
end

local function with_pools(fn)
  helper.with_pool({ concurrency = 2 }, function(a)
    helper.with_pool({ concurrency = 1 }, function(b)
      fn { a = a, b = b }
    end)
  end)
end

describe("a wait that would close a cycle of sessions raises:", function()
  after_each(helper.clean)

  --- Where two sessions are; nil is the host.
  local PAIRS = {
    ["two of the host"] = {},
    ["one of the host, one of a worker"] = { nil, "a" },
    ["two of a worker"] = { "b", "b" },
    ["two of two workers of a pool"] = { "a", "a" },
    ["two of two pools"] = { "a", "b" },
  }

  for what, where in pairs(PAIRS) do
    it(what .. ", for one of them, and the other goes on", function()
      with_pools(function(pools)
        for _ = 1, 20 do
          local m, n, meet = thread.mutex(), thread.mutex(), threads.barrier(2)
          local lines = { [here() + 5] = true, [here() + 16] = true }
          local function one()
            m:lock()
            meet()
            local ok, err = pcall(function()
              n:lock()
              return true
            end)
            if ok then n:unlock() end
            m:unlock()
            return ok, not ok and err
          end
          local function other()
            n:lock()
            meet()
            local ok, err = pcall(function()
              m:lock()
              return true
            end)
            if ok then m:unlock() end
            n:unlock()
            return ok, not ok and err
          end
          local outcomes, errors = {}, {}
          in_sessions(2, function(i)
            outcomes[i], errors[i] = at(pools[where[i]], i == 1 and one or other)
          end)
          assert.equal(1, count_of(outcomes, true))
          local err = errors[1] or errors[2]
          local line = tonumber(err:match("^" .. SOURCE:gsub("%p", "%%%0") .. ":(%d+): thread.mutex:lock: "))
          assert.is_true(lines[line], err)
          assert_cycle(err, { m, n }, lines)
        end
      end)
    end)
  end

  it("five of the host and two pools, for one of them, and the others go on", function()
    with_pools(function(pools)
      for _ = 1, 10 do
        local locks, meet = {}, threads.barrier(5)
        for i = 1, 5 do
          locks[i] = thread.mutex()
        end
        local line = here() + 5
        local function work(mine, next_one)
          mine:lock()
          meet()
          local ok, err = pcall(function()
            next_one:lock()
            return true
          end)
          if ok then next_one:unlock() end
          mine:unlock()
          return ok, not ok and err
        end
        local outcomes, errors = {}, {}
        in_sessions(5, function(i)
          local pool = pools[({ "a", "a", "b", "b", false })[i]]
          local ok, err = at(pool, work, locks[i], locks[i % 5 + 1])
          outcomes[i], errors[#errors + 1] = ok, err or nil
        end)
        assert.equal(4, count_of(outcomes, true))
        assert_cycle(errors[1], locks, { [line] = true })
      end
    end)
  end)

  it("a host's that has a lock and waits for a job, which wants it", function()
    local function within(m)
      m:lock()
      local line
      local ok, err = msys.runInPool("CPU", function()
        line = debug.getinfo(1, "l").currentline + 1
        m:lock()
      end)
      m:unlock()
      return ok, err, line
    end
    for _, run in ipairs {
      msys.run,
      function(fn, ...)
        return fn(...)
      end,
    } do
      local m = thread.mutex()
      local ok, err, line = run(within, m)
      assert.is_false(ok)
      assert.equal(
        ("%s:%d: thread.mutex:lock: this wait would never end:"):format(SOURCE, line),
        err:match "^[^\n]+"
      )
      assert.matches("job %d+ of pool CPU would wait at " .. SOURCE:gsub("%p", "%%%0") .. ":" .. line, err)
      assert.matches(name_of(m), err, 1, true)
      assert.matches("of the host has", err, 1, true)
    end
  end)

  for depth = 1, 4 do
    it(
      ("a job that has a lock and waits for a job, %d levels above the one that wants it"):format(depth),
      function()
        with_pools(function(pools)
          local m = thread.mutex()
          local function nest(left)
            if left == 0 then return pcall(m.lock, m) end
            return must(left % 2 == 0 and pools.a or pools.b, nest, left - 1)
          end
          local function within()
            m:lock()
            local ok, err = nest(depth)
            m:unlock()
            return ok, err
          end
          for _, where in ipairs { false, "a", "b" } do
            local ok, err = at(pools[where], within)
            assert.is_false(ok)
            assert.matches("this wait would never end:", err, 1, true)
            assert.matches(name_of(m), err, 1, true)
          end
        end)
      end
    )
  end

  it("one that waits for what is held up by a job of its own", function()
    with_pools(function(pools)
      local m, n, meet = thread.mutex(), thread.mutex(), threads.barrier(2)
      local host_ok, job_ok, other_ok, text
      in_sessions(2, function(i)
        if i == 1 then
          -- Has m, and waits for a job that waits for n.
          m:lock()
          host_ok, job_ok = msys.runInPool(pools.a, function()
            meet()
            local ok = pcall(n.lock, n)
            if ok then n:unlock() end
            return ok
          end)
          m:unlock()
        else
          -- Has n, and waits for m.
          other_ok, text = must(pools.b, function()
            n:lock()
            meet()
            local ok, err = pcall(m.lock, m)
            if ok then m:unlock() end
            n:unlock()
            return ok, not ok and err
          end)
        end
      end)
      assert.is_true(host_ok)
      assert.equal(1, count_of({ job_ok, other_ok }, false))
      if text then assert.matches("this wait would never end:", text, 1, true) end
    end)
  end)

  --- Each has `r` first and wants `m`, or the other way round.
  for what, methods in pairs {
    ["a reader and a writer"] = { "rdlock", "wrlock" },
    ["two writers"] = { "wrlock", "wrlock" },
    ["a writer and a reader"] = { "wrlock", "rdlock" },
  } do
    it("through a reader-writer lock, of " .. what, function()
      with_pools(function(pools)
        for _ = 1, 10 do
          local r, m, meet = thread.rwlock(), thread.mutex(), threads.barrier(2)
          local lines = { [here() + 5] = true, [here() + 16] = true }
          local function one()
            r[methods[1]](r)
            meet()
            local ok, err = pcall(function()
              m:lock()
              return true
            end)
            if ok then m:unlock() end
            r:unlock()
            return ok, not ok and err
          end
          local function other()
            m:lock()
            meet()
            local ok, err = pcall(function()
              r[methods[2]](r)
              return true
            end)
            if ok then r:unlock() end
            m:unlock()
            return ok, not ok and err
          end
          local outcomes, errors = {}, {}
          in_sessions(2, function(i)
            outcomes[i], errors[i] = at(pools[i == 1 and "a" or "b"], i == 1 and one or other)
          end)
          assert.equal(1, count_of(outcomes, true))
          assert_cycle(errors[1] or errors[2], { r, m }, lines)
        end
      end)
    end)
  end

  it("one of two readers that a writer waits for", function()
    local r, m, order = thread.rwlock(), thread.mutex(), {}
    msys.run(function()
      local go = thread.channel()
      msys.spawn(function()
        r:rdlock()
        threads.take(go)
        r:unlock()
        order[#order + 1] = "innocent"
      end)
      msys.spawn(function()
        m:lock()
        msys.yield()
        r:wrlock()
        order[#order + 1] = "writer"
        r:unlock()
        m:unlock()
      end)
      msys.spawn(function()
        r:rdlock()
        msys.yield()
        msys.yield()
        assert.is_false((pcall(m.lock, m)))
        order[#order + 1] = "reader"
        r:unlock()
        go:send(true)
      end)
    end)
    assert.same({ "reader", "innocent", "writer" }, order)
  end)

  it("a reader, through one that waits behind a writer", function()
    local r, m, order = thread.rwlock(), thread.mutex(), {}
    msys.run(function()
      r:rdlock()
      msys.spawn(function()
        r:wrlock()
        order[#order + 1] = "writer"
        r:unlock()
      end)
      msys.yield()
      msys.spawn(function()
        m:lock()
        r:rdlock()
        order[#order + 1] = "second reader"
        r:unlock()
        m:unlock()
      end)
      msys.yield()
      local ok, err = pcall(m.lock, m)
      assert.is_false(ok)
      assert.equal(2, #links_of(err))
      order[#order + 1] = "reader"
      r:unlock()
    end)
    assert.same({ "reader", "writer", "second reader" }, order)
  end)

  it("of locks by name, which it names", function()
    local err
    in_sessions(2, function(i)
      local mine, other = "spec " .. i, "spec " .. 3 - i
      msys.lock(mine)
      msys.yield()
      local ok, found = pcall(msys.lock, other)
      if ok then
        msys.unlock(other)
      else
        err = found
      end
      msys.unlock(mine)
    end)
    assert.matches("^msys.lock: this wait would never end:", err)
    assert.matches("for the lock named 'spec 1', which a session of the host has", err, 1, true)
    assert.matches("for the lock named 'spec 2', which a session of the host has", err, 1, true)
  end)

  it("at once", function()
    local m, n = thread.mutex(), thread.mutex()
    msys.run(function()
      m:lock()
      msys.spawn(function()
        n:lock()
        m:lock()
        m:unlock()
        n:unlock()
      end)
      msys.yield()
      local begin = native.clock()
      assert.is_false((pcall(n.lock, n)))
      assert.is_true(native.clock() - begin < 1)
      m:unlock()
    end)
  end)

  it("and leaves what the session has as it was", function()
    local m, n, free = thread.mutex(), thread.mutex(), thread.mutex()
    msys.run(function()
      m:lock()
      msys.spawn(function()
        n:lock()
        m:lock()
        m:unlock()
        n:unlock()
      end)
      msys.yield()
      for _ = 1, 3 do
        assert.is_false((pcall(n.lock, n)))
        assert.is_false(n:trylock())
        assert.same({ false, "timeout" }, { n:lock(0.001) })
        assert.is_true(free:lock() and free:unlock())
        assert.is_false((pcall(m.lock, m)))
      end
      m:unlock()
      threads.lock(n)
      n:unlock()
    end)
  end)

  it(
    "also for one that waits for the mutex of a condition when its time is over, at its caller's line",
    function()
      local out, err = helper.script [[
      local msys, thread = require "msys", require "thread"
      local l, m = thread.mutex(), thread.mutex()
      local c = thread.condition(m)
      msys.spawn(function()
        l:lock()
        m:lock()
        local ok, err = pcall(loadstring("local c = ...\n\nc:wait(0.005)\nreturn", "=case"), c)
        print(ok, (err:match "^[^\n]+"))
        l:unlock()
      end)
      msys.spawn(function()
        m:lock()
        l:lock()
        print "the other"
        l:unlock()
        m:unlock()
      end)
      msys.run()
    ]]
      assert.same({
        "false\tcase:3: thread.condition:wait: this wait would never end:\nthe other\n",
        "",
      }, { out, err })
    end
  )

  it("also through one that a condition has signalled", function()
    local out, err = helper.script [[
      local msys, thread = require "msys", require "thread"
      local l, m = thread.mutex(), thread.mutex()
      local c = thread.condition(m)
      msys.spawn(function()
        l:lock()
        m:lock()
        c:wait()
        print "signalled"
        m:unlock()
        l:unlock()
      end)
      msys.spawn(function()
        m:lock()
        c:signal()
        print((pcall(l.lock, l)))
        m:unlock()
      end)
      msys.run()
    ]]
    assert.same({ "false\nsignalled\n", "" }, { out, err })
  end)

  it("also where the holder cannot go on before the wait ends, since that cannot be suspended", function()
    local out, err = helper.script [[
      local msys, thread = require "msys", require "thread"
      local m = thread.mutex()
      msys.spawn(coroutine.wrap(function()
        print((pcall(m.lock, m)))
      end))
      m:lock()
      print(msys.runInPool("CPU", function() return "the job" end))
      m:unlock()
      msys.run()
    ]]
    assert.same({ "false\ntrue\tthe job\n", "" }, { out, err })
  end)

  it("also where a job waits for a worker that others keep who wait for the submitter's lock", function()
    local out, _, status = helper.script [[
      local msys, thread = require "msys", require "thread"
      local m = thread.mutex()
      local pool = msys.threadpool.create { name = "small", concurrency = 1, sessions = 1 }
      msys.run(function()
        m:lock()
        msys.runInPool(pool, function()
          m:lock()
          m:unlock()
        end, true)
        while pool:stat().job_num_running ~= 1 do
          msys.yield()
        end
        pcall(msys.runInPool, pool, function() end)
        m:unlock()
      end)
      print "done"
    ]]
    assert.same({ "done\n", 0 }, { out, status })
  end)
end)

describe("no cycle is seen where there is none:", function()
  after_each(helper.clean)

  for what, limits in pairs {
    ["the first wait has a limit"] = { 0.02, nil },
    ["the second wait has a limit"] = { nil, 0.02 },
    ["both waits have one"] = { 0.02, 0.02 },
  } do
    it(what, function()
      with_pools(function(pools)
        for _, where in ipairs { {}, { "a", "b" } } do
          local locks, meet = { thread.mutex(), thread.mutex() }, threads.barrier(2)
          local function work(mine, other, timeout)
            mine:lock()
            meet()
            local got, why = other:lock(timeout)
            if got then other:unlock() end
            mine:unlock()
            return got, why
          end
          local outcomes = {}
          in_sessions(2, function(i)
            outcomes[i] = { at(pools[where[i]], work, locks[i], locks[3 - i], limits[i]) }
          end)
          for i = 1, 2 do
            if limits[i] then
              assert.is_true(outcomes[i][1] or outcomes[i][2] == "timeout")
            else
              assert.same({ true }, outcomes[i])
            end
          end
        end
      end)
    end)
  end

  it("a job that nobody waits for wants what its submitter has", function()
    local m, results = thread.mutex(), thread.channel()
    m:lock()
    msys.runInPool("CPU", function()
      results:send(true)
      results:send((pcall(m.lock, m)))
      m:unlock()
    end, true)
    threads.take(results)
    m:unlock()
    assert.is_true(threads.take(results))
  end)

  it("a session that a job has spawned wants what the job's submitter has", function()
    local m, results = thread.mutex(), thread.channel()
    m:lock()
    must("CPU", function()
      msys.spawn(function()
        results:send((pcall(m.lock, m)))
        m:unlock()
      end)
    end)
    m:unlock()
    assert.is_true(threads.take(results))
  end)

  it("the submitter has given its lock back before it waits", function()
    local m = thread.mutex()
    for _ = 1, 20 do
      m:lock()
      m:unlock()
      assert.is_true(must("CPU", function()
        return m:lock() and m:unlock()
      end))
    end
  end)

  it("many sessions of all VMs take locks in one order, and read and write", function()
    with_pools(function(pools)
      local locks = {}
      for i = 1, 6 do
        locks[i] = i % 3 == 0 and thread.rwlock() or thread.mutex()
      end
      local function work(seed)
        local state = seed
        local function random(n)
          state = (state * 1103515245 + 12345) % 2 ^ 31
          return math.floor(state / 65536) % n
        end
        for _ = 1, 60 do
          local mine = {}
          for i, lock in ipairs(locks) do
            if random(2) == 0 then
              if i % 3 ~= 0 then
                lock:lock()
              elseif random(2) == 0 then
                lock:rdlock()
              else
                lock:wrlock()
              end
              mine[#mine + 1] = lock
              if random(4) == 0 then msys.yield() end
            end
          end
          for i = #mine, 1, -1 do
            mine[i]:unlock()
          end
        end
        return true
      end
      in_sessions(16, function(i)
        assert.is_true(at(pools[({ "a", "b", "a", false })[i % 4 + 1]], work, i))
      end)
    end)
  end)

  it("sessions take what others have just released, over and over", function()
    with_pools(function(pools)
      local m, n = thread.mutex(), thread.mutex()
      local function work()
        for i = 1, 200 do
          local lock = i % 2 == 0 and m or n
          lock:lock()
          lock:unlock()
        end
        return true
      end
      in_sessions(9, function(i)
        assert.is_true(at(pools[({ "a", "b", false })[i % 3 + 1]], work))
      end)
    end)
  end)
end)

describe("cycles over and over", function()
  after_each(helper.clean)

  it("leave every lock free, and every session ends", function()
    with_pools(function(pools)
      local locks = {}
      for i = 1, 4 do
        locks[i] = thread.mutex()
      end
      local raised = thread.counter()
      local function work(seed)
        local state = seed
        for _ = 1, 100 do
          state = (state * 1103515245 + 12345) % 2 ^ 31
          local first = math.floor(state / 65536) % 4 + 1
          local second = (first + math.floor(state / 1048576) % 3) % 4 + 1
          locks[first]:lock()
          msys.yield()
          if pcall(locks[second].lock, locks[second]) then
            locks[second]:unlock()
          else
            raised:add()
          end
          locks[first]:unlock()
        end
      end
      in_sessions(12, function(i)
        at(pools[({ "a", "b", false })[i % 3 + 1]], work, i)
      end)
      for _, lock in ipairs(locks) do
        assert.is_true(lock:lock(LIMIT) and lock:unlock())
      end
      assert.is_true(raised:get() > 0)
    end)
  end)
end)
