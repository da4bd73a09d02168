-- `thread.condition`: who waits without the mutex, who is signalled, and that whoever goes on has the mutex.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local LIMIT = helper.LIMIT
local must, in_sessions = helper.must, helper.in_sessions
local in_session = msys.run

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- A condition, its mutex, and a list of the names of those that went on, with what `wait` gave.
local function make(kind)
  local m = thread.mutex(kind)
  return thread.condition(m), m, {}
end

--- A session of the host that waits, and has begun to.
local function waiter(c, m, list, name, timeout)
  msys.spawn(function()
    m:lock()
    local got = pack(c:wait(timeout))
    list[#list + 1] = { name, unpack(got, 1, got.n) }
    m:unlock()
  end)
  msys.yield()
end

describe("condition:wait", function()
  after_each(helper.clean)

  it("lets others have the mutex, and has it again when it returns", function()
    local c, m = make()
    local got
    msys.spawn(function()
      m:lock()
      got = pack(c:wait())
      assert.is_false((pcall(m.lock, m)))
      assert.is_true(m:unlock())
    end)
    in_session(function()
      m:lock(LIMIT)
      c:signal()
      msys.yield()
      assert.is_nil(got)
      m:unlock()
    end)
    assert.same(pack(true), got)
  end)

  for _, timeout in ipairs { 0, 1e-9, 0.005 } do
    it(("gives false and why after %g s, and has the mutex again"):format(timeout), function()
      local function within()
        local c, m = make()
        m:lock()
        local got = pack(c:wait(timeout))
        return got, m:unlock()
      end
      for _, run in pairs { within, in_session, must } do
        local got, unlocked
        if run == within then
          got, unlocked = run()
        elseif run == in_session then
          got, unlocked = run(within)
        else
          got, unlocked = run("CPU", within)
        end
        assert.same(pack(false, "timeout"), got)
        assert.is_true(unlocked)
      end
    end)
  end

  for _, timeout in ipairs { 30, math.huge } do
    it(("gives true when it is signalled within %g s"):format(timeout), function()
      local c, m, list = make()
      waiter(c, m, list, "a", timeout)
      assert.is_true(c:signal())
      msys.run()
      assert.same({ { "a", true } }, list)
    end)
  end

  it("waits for the mutex when its time is over", function()
    local c, m, list = make()
    waiter(c, m, list, "a", 0.001)
    m:lock()
    msys.sleep(0.01)
    assert.same({}, list)
    m:unlock()
    msys.run()
    assert.same({ { "a", false, "timeout" } }, list)
  end)

  for _, depth in ipairs { 1, 2, 5 } do
    for _, signalled in ipairs { true, false } do
      local how = signalled and "signalled" or "timed out"
      it(("gives a mutex back that is locked %d times, when it was %s"):format(depth, how), function()
        local c, m = make(thread.MUTEX_RECURSIVE)
        local got
        local function is_free()
          return must("CPU", function()
            return m:trylock() and m:unlock()
          end)
        end
        msys.spawn(function()
          for _ = 1, depth do
            m:lock()
          end
          got = pack(c:wait(not signalled and 0.002 or nil))
          for i = 1, depth do
            assert.is_false(is_free(), i)
            m:unlock()
          end
          assert.is_true(is_free())
          assert.is_false((pcall(m.unlock, m)))
        end)
        msys.yield()
        if signalled then
          -- One whose time may be over has the mutex by now.
          assert.is_true(is_free())
          c:signal()
        end
        msys.run()
        assert.equal(signalled, got[1])
      end)
    end
  end

  it("leaves the worker to other jobs", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local c, m = make()
      local begun, results = thread.channel(), thread.channel()
      msys.runInPool(pool, function()
        m:lock()
        begun:send(true)
        results:send(c:wait())
        m:unlock()
      end, true)
      threads.take(begun)
      assert.equal(
        1,
        must(pool, function()
          return 1
        end)
      )
      assert.is_true(c:signal())
      assert.is_true(threads.take(results))
    end)
  end)

  for way, call in pairs(threads.ways) do
    it("works " .. way, function()
      local function within()
        local c, m = make()
        local function wait()
          m:lock()
          local got = c:wait()
          m:unlock()
          return got
        end
        msys.spawn(function()
          threads.await(function()
            return m:lock() and c:signal() or m:unlock() and false
          end)
          m:unlock()
        end)
        return call(wait)
      end
      assert.is_true(within())
      assert.is_true(in_session(within))
      assert.is_true(must("CPU", within))
    end)
  end
end)

describe("condition:signal", function()
  after_each(helper.clean)

  it("lets the one go on that has waited longest", function()
    local c, m, list = make()
    for name = 1, 5 do
      waiter(c, m, list, name)
    end
    for name = 1, 5 do
      assert.same(pack(true), pack(c:signal()))
      threads.await(function()
        return #list == name
      end)
      msys.yield()
      assert.same({ name, true }, list[name])
      assert.equal(name, #list)
    end
    msys.run()
  end)

  it("gives false when nobody waits, and is not kept for later", function()
    local c, m = make()
    assert.same(pack(false), pack(c:signal()))
    m:lock()
    assert.is_false(c:wait(0.001))
    m:unlock()
    assert.is_false(c:signal())
  end)

  it("does not count those whose time is over", function()
    local c, m, list = make()
    waiter(c, m, list, "a", 0.001)
    waiter(c, m, list, "b")
    threads.await(function()
      return #list == 1
    end)
    assert.is_true(c:signal())
    msys.run()
    assert.same({ { "a", false, "timeout" }, { "b", true } }, list)
  end)

  it("works for those who have the mutex and for those who do not", function()
    local c, m, list = make()
    waiter(c, m, list, "a")
    waiter(c, m, list, "b")
    m:lock()
    c:signal()
    m:unlock()
    c:signal()
    msys.run()
    assert.same({ { "a", true }, { "b", true } }, list)
  end)

  it("reaches sessions of all VMs", function()
    helper.with_two({}, function(a, b)
      local c, m = make()
      local results = thread.channel()
      local function wait(name)
        m:lock()
        results:send "begun"
        c:wait()
        m:unlock()
        results:send(name)
      end
      for name, pool in pairs { a = a, b = b } do
        msys.runInPool(pool, wait, { async = true, args = { name } })
        threads.take(results)
        -- The mutex is free when it waits.
        threads.lock(m)
        m:unlock()
      end
      local names = {}
      for _ = 1, 2 do
        assert.is_true(must(b, function()
          return c:signal()
        end))
        names[threads.take(results)] = true
      end
      assert.same({ a = true, b = true }, names)
    end)
  end)
end)

describe("condition:broadcast", function()
  after_each(helper.clean)

  it("lets all go on, one after the other, and gives their number", function()
    local c, m, list = make()
    for name = 1, 10 do
      waiter(c, m, list, name)
    end
    assert.same(pack(10), pack(c:broadcast()))
    msys.run()
    assert.equal(10, #list)
    for place, item in ipairs(list) do
      assert.same({ place, true }, item)
    end
  end)

  it("gives 0 when nobody waits", function()
    assert.same(pack(0), pack(make():broadcast()))
  end)

  it("reaches sessions of all VMs, which are never inside together", function()
    helper.with_two({ concurrency = 2 }, function(a, b)
      local c, m = make()
      local ready, inside = thread.counter(), thread.counter()
      local open = thread.shared {}
      local function wait()
        m:lock()
        ready:add()
        while not open.yes do
          c:wait()
        end
        local alone = inside:add() == 1
        msys.yield()
        inside:add(-1)
        m:unlock()
        return alone
      end
      msys.spawn(function()
        threads.await(function()
          return ready:get() == 30
        end)
        m:lock()
        open.yes = true
        c:broadcast()
        m:unlock()
      end)
      in_sessions(30, function(i)
        if i % 3 == 0 then
          assert.is_true(wait())
        else
          assert.is_true(must(i % 3 == 1 and a or b, wait))
        end
      end)
    end)
  end)
end)

describe("a condition", function()
  after_each(helper.clean)

  it("makes a queue of producers and consumers in all VMs, which loses nothing", function()
    helper.with_two({ concurrency = 2 }, function(a, b)
      local m = thread.mutex()
      local not_empty, not_full = thread.condition(m), thread.condition(m)
      local queue = thread.shared {}
      local first, last = thread.counter(1), thread.counter()
      local EACH, CAPACITY = 100, 3
      local function produce(from)
        for i = from + 1, from + EACH do
          m:lock()
          while last:get() - first:get() + 1 >= CAPACITY do
            not_full:wait()
          end
          queue[last:add()] = i
          not_empty:signal()
          m:unlock()
        end
      end
      local function consume()
        local sum = 0
        for _ = 1, EACH do
          m:lock()
          while last:get() < first:get() do
            not_empty:wait()
          end
          local place = first:get()
          first:set(place + 1)
          sum, queue[place] = sum + queue[place], nil
          not_full:signal()
          m:unlock()
        end
        return sum
      end
      local sums = 0
      in_sessions(12, function(i)
        local where = ({ [0] = false, a, b })[i % 3]
        local producer = i <= 6
        local function run()
          if producer then return produce(i * EACH) or 0 end
          return consume()
        end
        local sum = where and must(where, run) or run()
        sums = sums + sum
      end)
      local expected = 0
      for i = EACH + 1, 7 * EACH do
        expected = expected + i
      end
      assert.equal(expected, sums)
      assert.equal(6 * EACH, last:get())
    end)
  end)

  it("loses no signal to waits whose time is over at that moment", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local c, m = make()
      local tokens, taken, stop = thread.counter(), thread.counter(), thread.counter()
      local function take()
        while stop:get() == 0 do
          m:lock()
          if tokens:get() == 0 then c:wait(0.0003) end
          if tokens:get() > 0 then
            tokens:add(-1)
            taken:add()
          end
          m:unlock()
        end
      end
      local ended = 0
      for _ = 1, 6 do
        msys.spawn(function()
          must(pool, take)
          ended = ended + 1
        end)
      end
      in_session(function()
        for i = 1, 200 do
          m:lock()
          tokens:add()
          c:signal()
          m:unlock()
          if i % 10 == 0 then msys.sleep(0.0003) end
        end
        threads.await(function()
          return taken:get() == 200
        end, "the last token")
        stop:set(1)
      end)
      assert.equal(6, ended)
      assert.equal(0, tokens:get())
    end)
  end)

  it("is the same object in every VM, and tells its address", function()
    local c = thread.condition(thread.mutex())
    local back, text = must("CPU", function()
      return { [c] = c }, tostring(c)
    end)
    assert.equal(c, back[c])
    assert.equal(tostring(c), text)
    assert.matches("^thread.condition: 0x%x+$", text)
    assert.equal("thread.condition", getmetatable(c))
  end)

  it("has its mutex also when nobody else has the handle of that", function()
    local c
    do
      local m = thread.mutex()
      c = thread.condition(m)
    end
    collectgarbage()
    collectgarbage()
    assert.matches("%(free%)$", threads.error_of("c:wait()", { c = c }))
  end)

  it("is left by a session whose worker ends", function()
    local c, m, list = make()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local begun = thread.channel()
      must(pool, function()
        msys.spawn(function()
          m:lock()
          begun:send(true)
          c:wait()
        end)
      end)
      threads.take(begun)
      must(pool, function() end)
    end)
    waiter(c, m, list, "a")
    threads.await(function()
      c:signal()
      return #list == 1
    end)
    msys.run()
    assert.is_true(m:trylock() and m:unlock())
  end)
end)

describe("raises at the caller's line:", function()
  after_each(helper.clean)

  local CASES = {
    ["waiting without the mutex"] = {
      "c:wait()",
      "^case:3: thread.condition:wait: this session does not have the mutex: thread.mutex: 0x%x+ %(free%)$",
    },
    ["waiting without the mutex, which another session has"] = {
      "c:wait(1)",
      "^case:3: thread.condition:wait: this session does not have the mutex: "
        .. "thread.mutex: 0x%x+ %(locked by a session of the host%)$",
      other = true,
    },
    ["a limit that is no number"] = {
      "c:wait {}",
      "^case:3: thread.condition:wait: timeout must be a number, got table$",
    },
    ["a negative limit"] = {
      "c:wait(-0.5)",
      "^case:3: thread.condition:wait: timeout must not be negative, got %-0.5$",
    },
    ["wait without a colon"] = {
      "c.wait(1)",
      "^case:3: thread.condition:wait: called on number %(call it with a colon%)$",
    },
    ["signal without a colon"] = {
      "c.signal()",
      "^case:3: thread.condition:signal: called on nil %(call it with a colon%)$",
    },
    ["broadcast of the mutex"] = {
      "c.broadcast(thread.mutex())",
      "^case:3: thread.condition:broadcast: called on userdata %(call it with a colon%)$",
    },
    ["a condition of nothing"] = {
      "thread.condition()",
      "^case:3: thread.condition: needs a thread.mutex, got nil$",
    },
    ["a condition of a table"] = {
      "thread.condition {}",
      "^case:3: thread.condition: needs a thread.mutex, got table$",
    },
    ["a condition of another lock"] = {
      "thread.condition(thread.rwlock())",
      "^case:3: thread.condition: needs a thread.mutex, got %S+$",
    },
  }

  for what, case in pairs(CASES) do
    it(what, function()
      local c, m = make()
      local go = thread.channel()
      if case.other then
        msys.spawn(function()
          m:lock()
          threads.take(go)
          m:unlock()
        end)
        msys.yield()
      end
      local err = threads.error_of(case[1], { c = c })
      go:send(true)
      msys.run()
      assert.matches(case[2], err)
    end)
  end
end)
