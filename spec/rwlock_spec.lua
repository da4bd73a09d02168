-- `thread.rwlock`: readers beside each other, writers alone, and who comes first.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local LIMIT = helper.LIMIT
local must, eventually, in_sessions = helper.must, helper.eventually, helper.in_sessions
local in_session = msys.run

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- What another session can have of it now: reading, writing.
local function free_for(l)
  return must("CPU", function()
    local reads = l:tryrdlock() and l:unlock()
    return reads, l:trywrlock() and l:unlock()
  end)
end

describe("a reader-writer lock", function()
  after_each(helper.clean)

  it("gives true for each of its methods when it is free, and nothing else", function()
    local l = thread.rwlock()
    for _, method in ipairs { "rdlock", "wrlock", "tryrdlock", "trywrlock" } do
      assert.same(pack(true), pack(l[method](l)))
      assert.same(pack(true), pack(l:unlock()))
    end
    for _, method in ipairs { "rdlock", "wrlock" } do
      for _, timeout in ipairs { 0, 0.001, 1e300, math.huge } do
        assert.same(pack(true), pack(l[method](l, timeout)))
        l:unlock()
      end
    end
  end)

  it("that is read can be read by others, and not written", function()
    local l = thread.rwlock()
    l:rdlock()
    assert.same({ true, false }, { free_for(l) })
    l:unlock()
    assert.same({ true, true }, { free_for(l) })
  end)

  it("that is written can neither be read nor written by others", function()
    local l = thread.rwlock()
    l:wrlock()
    assert.same({ false, false }, { free_for(l) })
    l:unlock()
    assert.same({ true, true }, { free_for(l) })
  end)

  for _, timeout in ipairs { 0, 0.001, 0.02 } do
    it(("gives false and why after %g s"):format(timeout), function()
      local l = thread.rwlock()
      local function read()
        return l:rdlock(timeout)
      end
      local function write()
        return l:wrlock(timeout)
      end
      l:wrlock()
      for _, fn in ipairs { read, write } do
        assert.same(pack(false, "timeout"), pack(in_session(fn)))
        assert.same(pack(false, "timeout"), pack(must("CPU", fn)))
      end
      l:unlock()
      l:rdlock()
      assert.same(pack(false, "timeout"), pack(in_session(write)))
      assert.same(pack(false, "timeout"), pack(must("CPU", write)))
      l:unlock()
      assert.same({ true, true }, { free_for(l) })
    end)
  end

  it("is read by sessions of all VMs at once", function()
    helper.with_two({}, function(a, b)
      local l, meet = thread.rwlock(), threads.barrier(6)
      local function read()
        l:rdlock()
        meet()
        return l:unlock()
      end
      in_sessions(6, function(i)
        local pool = ({ [0] = false, a, b })[i % 3]
        assert.is_true(pool and must(pool, read) or read())
      end)
    end)
  end)

  it("lets writers of all VMs be alone", function()
    helper.with_two({ concurrency = 2 }, function(a, b)
      local l = thread.rwlock()
      local readers, writers, count = thread.counter(), thread.counter(), thread.counter()
      local function work(seed)
        for i = 1, 60 do
          if (i + seed) % 3 == 0 then
            l:wrlock()
            local alone = writers:add() == 1 and readers:get() == 0
            count:set(count:get() + 1)
            if i % 7 == 0 then msys.yield() end
            writers:add(-1)
            l:unlock()
            if not alone then error "not alone" end
          else
            l:rdlock()
            readers:add()
            local none = writers:get() == 0
            if i % 7 == 0 then msys.yield() end
            readers:add(-1)
            l:unlock()
            if not none then error "a writer beside a reader" end
          end
        end
      end
      in_sessions(15, function(i)
        local pool = ({ [0] = false, a, b })[i % 3]
        if pool then
          must(pool, work, i)
        else
          work(i)
        end
      end)
      assert.equal(15 * 20, count:get())
    end)
  end)

  it("is had by a waiting writer before readers that come later", function()
    local l, order = thread.rwlock(), {}
    l:rdlock()
    for _, name in ipairs { "writer", "reader 1", "reader 2", "writer 2", "reader 3" } do
      msys.spawn(function()
        l[name:find "writer" and "wrlock" or "rdlock"](l)
        order[#order + 1] = name
        msys.yield()
        l:unlock()
      end)
    end
    msys.yield()
    assert.same({ false, false }, { free_for(l) })
    l:unlock()
    msys.run()
    assert.same({ "writer", "reader 1", "reader 2", "writer 2", "reader 3" }, order)
  end)

  it("does not starve a writer where readers overlap", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local l, stop, meet = thread.rwlock(), thread.counter(), threads.barrier(5)
      local ended = 0
      for _ = 1, 4 do
        msys.spawn(function()
          must(pool, function()
            l:rdlock()
            meet()
            while stop:get() == 0 do
              msys.yield()
              l:unlock()
              l:rdlock()
            end
            l:unlock()
          end)
          ended = ended + 1
        end)
      end
      in_session(function()
        meet()
        local got = true
        for _ = 1, 10 do
          got = got and l:wrlock(LIMIT)
          if got then l:unlock() end
        end
        stop:set(1)
        assert.is_true(got)
      end)
      assert.equal(4, ended)
    end)
  end)

  it("does not starve a reader where writers follow each other", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local l, stop, meet = thread.rwlock(), thread.counter(), threads.barrier(3)
      for _ = 1, 2 do
        msys.spawn(must, pool, function()
          meet()
          while stop:get() == 0 do
            l:wrlock()
            l:unlock()
          end
        end)
      end
      in_session(function()
        meet()
        local got = true
        for _ = 1, 10 do
          got = got and l:rdlock(LIMIT)
          if got then l:unlock() end
        end
        stop:set(1)
        assert.is_true(got)
      end)
    end)
  end)

  it("lets readers in again when the writer that waits gives up", function()
    local l, got = thread.rwlock(), {}
    l:rdlock()
    msys.spawn(function()
      got.writer = pack(l:wrlock(0.003))
    end)
    msys.yield()
    msys.spawn(function()
      got.reader = l:rdlock(LIMIT)
      l:unlock()
    end)
    msys.run()
    l:unlock()
    assert.same(pack(false, "timeout"), got.writer)
    assert.is_true(got.reader)
  end)

  for _, depth in ipairs { 1, 2, 7 } do
    it(("is read %d times by a session that unlocks it as often"):format(depth), function()
      local l = thread.rwlock()
      for i = 1, depth do
        assert.is_true(l[i % 2 == 0 and "rdlock" or "tryrdlock"](l))
      end
      for _ = 1, depth do
        assert.same({ true, false }, { free_for(l) })
        l:unlock()
      end
      assert.same({ true, true }, { free_for(l) })
      assert.is_false((pcall(l.unlock, l)))
    end)
  end

  it("is read again by a reader while a writer waits", function()
    local l, got = thread.rwlock(), nil
    l:rdlock()
    msys.spawn(function()
      got = l:wrlock(LIMIT)
      l:unlock()
    end)
    msys.yield()
    assert.is_true(l:rdlock(0))
    assert.is_true(l:rdlock())
    for _ = 1, 3 do
      assert.is_nil(got)
      l:unlock()
    end
    msys.run()
    assert.is_true(got)
  end)

  it("leaves the worker to other jobs while a session waits", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      for _, method in ipairs { "rdlock", "wrlock" } do
        local l, begun, results = thread.rwlock(), thread.channel(), thread.channel()
        l:wrlock()
        msys.runInPool(pool, function()
          begun:send(true)
          results:send(l[method](l))
          l:unlock()
        end, true)
        threads.take(begun)
        assert.equal(
          1,
          must(pool, function()
            return 1
          end)
        )
        l:unlock()
        assert.is_true(threads.take(results))
      end
    end)
  end)

  for way, call in pairs(threads.ways) do
    it("is waited for " .. way, function()
      local function within()
        local l, locked = thread.rwlock(), thread.channel()
        local function both()
          local reads = l:rdlock() and l:unlock()
          return reads, l:wrlock() and l:unlock()
        end
        msys.spawn(function()
          for _ = 1, 2 do
            l:wrlock()
            locked:send(true)
            msys.sleep(0.001)
            l:unlock()
          end
        end)
        threads.take(locked)
        return call(both)
      end
      assert.same({ true, true }, { in_session(within) })
      assert.same({ true, true }, { must("CPU", within) })
    end)
  end

  for _, method in ipairs { "rdlock", "wrlock" } do
    it("that is left locked by " .. method .. " is released and reported", function()
      helper.with_pool({ concurrency = 1 }, function(pool)
        for _, run in ipairs {
          function(fn)
            in_session(fn)
          end,
          function(fn)
            must(pool, fn)
          end,
          function(fn)
            msys.runInPool(pool, fn, true)
          end,
        } do
          local l = thread.rwlock()
          helper.catching(function(errors)
            local got
            run(function()
              l[method](l)
              if method == "rdlock" then l:rdlock() end
            end)
            msys.run(function()
              got = l:wrlock(LIMIT)
              l:unlock()
            end)
            assert.is_true(got)
            local report = eventually(function()
              return threads.report_of(errors, l)
            end)
            assert.matches(
              "^msys: thread.rwlock: 0x%x+ was still locked when .+ ended, and is released$",
              report.err
            )
            assert.equal(1, #errors)
          end)
        end
      end)
    end)
  end

  it("is the same object in every VM", function()
    local l = thread.rwlock()
    local t = must("CPU", function()
      return { [l] = l }
    end)
    assert.equal(l, t[l])
    assert.equal("thread.rwlock", getmetatable(l))
  end)

  it("says whose it is", function()
    local l = thread.rwlock()
    local function text()
      return (tostring(l):gsub("0x%x+", "0x"):gsub("job %d+", "job N"))
    end
    assert.equal("thread.rwlock: 0x (free)", text())
    l:rdlock()
    assert.equal("thread.rwlock: 0x (locked by the main code of the host)", text())
    assert.equal(
      "thread.rwlock: 0x (locked by the main code of the host, job N of pool CPU)",
      must("CPU", function()
        l:rdlock()
        local found = text()
        l:unlock()
        return found
      end)
    )
    l:unlock()
  end)
end)

describe("raises at the caller's line:", function()
  after_each(helper.clean)

  local HAS = ": this session has it already: thread.rwlock: 0x%x+ %(locked by the main code of the host%)$"
  local CASES = {
    ["writing what it reads"] = { "l:wrlock()", "wrlock" .. HAS, "rdlock" },
    ["writing what it reads, with a limit"] = { "l:wrlock(1)", "wrlock" .. HAS, "rdlock" },
    ["trying to write what it reads"] = { "l:trywrlock()", "trywrlock" .. HAS, "rdlock" },
    ["reading what it writes"] = { "l:rdlock()", "rdlock" .. HAS, "wrlock" },
    ["trying to read what it writes"] = { "l:tryrdlock()", "tryrdlock" .. HAS, "wrlock" },
    ["writing what it writes"] = { "l:wrlock()", "wrlock" .. HAS, "wrlock" },
    ["unlocking a free one"] = {
      "l:unlock()",
      "unlock: this session does not have it: thread.rwlock: 0x%x+ %(free%)$",
    },
    ["unlocking what another reads"] = {
      "l:unlock()",
      "unlock: this session does not have it: thread.rwlock: 0x%x+ %(locked by a session of the host%)$",
      other = true,
    },
    ["a limit that is no number"] = { "l:rdlock 'x'", "rdlock: timeout must be a number, got string$" },
    ["a negative limit"] = { "l:wrlock(-1)", "wrlock: timeout must not be negative, got %-1$" },
    ["rdlock without a colon"] = { "l.rdlock()", "rdlock: called on nil %(call it with a colon%)$" },
    ["wrlock without a colon"] = { "l.wrlock(1)", "wrlock: called on number %(call it with a colon%)$" },
    ["tryrdlock without a colon"] = {
      "l.tryrdlock {}",
      "tryrdlock: called on table %(call it with a colon%)$",
    },
    ["trywrlock without a colon"] = { "l.trywrlock()", "trywrlock: called on nil %(call it with a colon%)$" },
    ["unlock of another handle"] = {
      "l.unlock(thread.mutex())",
      "unlock: called on userdata %(call it with a colon%)$",
    },
  }

  for what, case in pairs(CASES) do
    it(what, function()
      local l, go = thread.rwlock(), thread.channel()
      if case.other then
        msys.spawn(function()
          l:rdlock()
          threads.take(go)
          l:unlock()
        end)
        msys.yield()
      end
      if case[3] then l[case[3]](l) end
      local err = threads.error_of(case[1], { l = l })
      if case[3] then l:unlock() end
      go:send(true)
      msys.run()
      assert.matches("^case:3: thread.rwlock:" .. case[2], err)
      assert.same({ true, true }, { free_for(l) })
    end)
  end
end)
