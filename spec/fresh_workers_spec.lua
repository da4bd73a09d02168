-- Workers that have only run jobs so far: what a job may need is loaded when it does, and nobody sees that.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"

local must, runInPool = helper.must, msys.runInPool

--- Whether the worker that runs this has loaded no module behind `msys`; loads none itself.
local function is_fresh()
  return rawget(msys, "sleep") == nil
end

--- Runs `fn(pool)` with a worker that has just begun; it has to be fresh before, and not to be after.
local function with_fresh(fn)
  helper.with_pool({}, function(pool)
    assert.is_true(must(pool, is_fresh))
    fn(pool)
    assert.is_false(must(pool, is_fresh))
  end)
end

describe("a worker that has only run jobs", function()
  after_each(helper.clean)

  it("has loaded nothing of msys, and takes less than 64 KiB of Lua's memory", function()
    helper.with_pool({}, function(pool)
      local function kib()
        collectgarbage()
        return collectgarbage "count"
      end
      assert.equal(
        3,
        must(pool, function(a, b)
          return a + b
        end, 1, 2)
      )
      local count = must(pool, kib)
      assert.is_true(count < 64, count .. " KiB")
      assert.is_true(must(pool, is_fresh))
    end)
  end)

  it("stays fresh over values, coroutines, loops and modules that are there", function()
    helper.with_pool({}, function(pool)
      local sum = must(pool, function(list)
        local sum = 0
        for _, value in ipairs(list) do
          sum = sum + value
        end
        for _, value in pairs(list) do
          sum = sum + value
        end
        for value in
          coroutine.wrap(function()
            coroutine.yield(1)
            coroutine.yield(2)
          end)
        do
          sum = sum + value
        end
        local co = coroutine.create(function(...)
          return select("#", ...)
        end)
        if coroutine.status(co) ~= "suspended" then error "it has not begun" end
        local _, count = coroutine.resume(co, 1, 2, 3)
        if coroutine.status(co) ~= "dead" then error "it has ended" end
        return sum + count + require("math").floor(0.5)
      end, { 10, 20 })
      assert.equal(66, sum)
      assert.is_true(must(pool, is_fresh))
    end)
  end)

  -- What each job needs is loaded for it.
  local needs = {
    ["msys's functions"] = function(pool)
      assert.equal(
        7,
        must(pool, function()
          msys.sleep(0)
          return 7
        end)
      )
    end,
    ["thread's functions"] = function(pool)
      assert.equal(
        "thread.mutex",
        must(pool, function()
          return getmetatable(thread.mutex())
        end)
      )
    end,
    ["going through msys's fields"] = function(pool)
      assert.equal(
        "function",
        must(pool, function()
          local found
          for name, value in pairs(msys) do
            if name == "sleep" then found = value end
          end
          return type(found)
        end)
      )
    end,
    ["a function of msys's, sent by its name"] = function(pool)
      local sleep = msys.sleep
      assert.equal(
        7,
        must(pool, function()
          sleep(0)
          return 7
        end)
      )
    end,
    ["a module of msys's, sent by its name"] = function(pool)
      local threadpool = msys.threadpool
      assert.equal(
        tostring(pool),
        must(pool, function()
          return tostring(pool), threadpool
        end)
      )
    end,
    ["a handle"] = function(pool)
      local channel = thread.channel()
      must(pool, function()
        channel:send "here"
      end)
      assert.same({ true, "here" }, { channel:receive(0) })
    end,
    ["a pool's handle"] = function(pool)
      assert.equal(
        pool.name,
        must(pool, function()
          return pool.name
        end)
      )
    end,
    ["a shared table, in a loop"] = function(pool)
      local tbl = thread.shared()
      tbl.one, tbl.two = 1, 2
      assert.equal(
        3,
        must(pool, function()
          local sum = 0
          for _, value in pairs(tbl) do
            sum = sum + value
          end
          return sum
        end)
      )
    end,
    ["an FFI object, sent"] = function(pool)
      local number = 2LL ^ 40
      assert.is_true(must(pool, function()
        return number == 2LL ^ 40
      end))
    end,
    ["an FFI object, given back"] = function(pool)
      assert.equal(
        5LL,
        must(pool, function()
          return require("ffi").new("int64_t", 5)
        end)
      )
    end,
    ["globals of the script's"] = function(pool)
      _G.of_the_script = function()
        return 9
      end
      assert.equal(
        9,
        must(pool, function()
          return _G.of_the_script()
        end)
      )
      _G.of_the_script = nil
    end,
    ["assigning a global"] = function(pool)
      assert.equal(
        4,
        must(pool, function()
          something_new = 4 -- luacheck: ignore
          return something_new -- luacheck: ignore
        end)
      )
    end,
    ["a module that no worker has"] = function(pool)
      local path = package.path
      package.path = helper.folder { ["fresh_module.lua"] = "return { answer = 42 }" } .. "/?.lua;" .. path
      local ok, answer = runInPool(pool, function()
        return require("fresh_module").answer
      end)
      package.path = path
      assert.same({ true, 42 }, { ok, answer })
    end,
    ["the results' names"] = function(pool)
      assert.equal(
        string.format,
        must(pool, function()
          return string.format
        end)
      )
      must(pool, function()
        return msys.sleep
      end)
    end,
    ["an error's report"] = function(pool)
      local ok, err, info = runInPool(pool, function()
        error "raised"
      end)
      assert.is_false(ok)
      assert.matches("raised$", err)
      assert.equal("error", info.kind)
      assert.matches("fresh_workers_spec.lua:%d+: in function <[^\n]*$", info.traceback)
      assert.not_matches("msys", info.traceback:gsub("/msys[^/]*/", "/"))
    end,
    ["a refused result"] = function(pool)
      local ok, err, info = runInPool(pool, function()
        return io.stdout
      end)
      assert.is_false(ok)
      assert.matches("cannot send result 1", err)
      assert.equal("unsendable", info.kind)
    end,
    ["a completion in the pool"] = function(pool)
      local channel = thread.channel()
      runInPool(pool, function()
        return 3
      end, function(ok, value)
        channel:send { ok, value }
      end)
      assert.same({ true, 3 }, select(2, channel:receive(helper.LIMIT)))
    end,
    ["a time limit"] = function(pool)
      local ok, _, info = runInPool(pool, function()
        while true do
        end
      end, { timeout = 0.05 })
      assert.is_false(ok)
      assert.equal("timeout", info.kind)
    end,
    ["a job of its own"] = function(pool)
      assert.equal(
        8,
        must(pool, function()
          local _, value = msys.runInPool("IO", function()
            return 4
          end)
          return 2 * value
        end)
      )
    end,
    ["changes of what it was sent, of which one cannot be sent back"] = function(pool)
      local list = {}
      local ok, err = runInPool(pool, function()
        list.file = io.stdout
        return #list
      end)
      assert.is_false(ok)
      assert.matches("cannot send back", err)
    end,
  }
  for what, fn in pairs(needs) do
    it("loads what is needed for " .. what, function()
      with_fresh(fn)
    end)
  end

  it("keeps its tables: what a job has stored before is there afterwards", function()
    with_fresh(function(pool)
      assert.same({ true, true, 1, 2, 3 }, {
        must(pool, function()
          local before, before_of_thread, own = msys, thread, _OSTLS
          _OSTLS.one, _TLS.two = 1, 2
          msys.three = 3
          msys.sleep(0)
          local same = before == require "msys"
            and before_of_thread == require "thread"
            and own == msys._OSTLS
          return same, _TLS == msys._TLS, _OSTLS.one, _TLS.two, msys.three
        end),
      })
      assert.same({ 1, "nil" }, {
        must(pool, function()
          return _OSTLS.one, type(_TLS.two)
        end),
      })
    end)
  end)

  it("suspends sessions in coroutines whose functions a job has taken before", function()
    with_fresh(function(pool)
      assert.same({ true, 6 }, {
        must(pool, function()
          local resume, wrap = coroutine.resume, coroutine.wrap
          local co = coroutine.create(function(value)
            msys.sleep(0.001)
            return value
          end)
          local generator = wrap(function()
            msys.yield()
            coroutine.yield(1)
            msys.sleep(0.001)
            return 2
          end)
          local ok, value = resume(co, 3)
          return ok, value + generator() + generator()
        end),
      })
    end)
  end)

  it("knows Lua's own functions by name, though a job has put others in their places", function()
    with_fresh(function(pool)
      local format, kept = must(pool, function()
        local format = string.format
        local kept = string.rep
        -- Another C function under that name.
        string.rep = string.upper -- luacheck: ignore 122
        return format, kept
      end)
      assert.equal(string.format, format)
      assert.equal(string.rep, kept)
      must(pool, function()
        string.rep = nil -- luacheck: ignore 122
      end)
    end)
  end)

  it("runs what one job leaves for the next", function()
    helper.with_pool({}, function(pool)
      assert.same({ true, "main" }, {
        must(pool, function()
          setfenv(0, setmetatable({ name = "main" }, { __index = _G }))
          return getfenv(0) ~= _G, getfenv(0).name
        end),
      })
      assert.is_true(must(pool, function()
        return getfenv(0) == getfenv(1) or getfenv(0)._G ~= nil
      end))
    end)
  end)

  it("has many of them, each loaded while the others run", function()
    helper.with_pool({ concurrency = 4, sessions = 3 }, function(pool)
      local barrier, sum = thread.counter(), 0
      helper.in_sessions(24, function(i)
        local value = must(pool, function()
          barrier:add()
          msys.sleep(0.001)
          return i
        end)
        sum = sum + value
      end)
      assert.equal(300, sum)
      assert.equal(24, barrier:get())
    end)
  end)
end)

describe("a worker loads msys whatever a job has done before:", function()
  after_each(helper.clean)

  local deeds = {
    ["taken Lua's functions away"] = function()
      -- But those of strings, which are their methods too.
      for _, library in ipairs { table, debug, jit, io, math, bit } do
        for name in pairs(library) do
          library[name] = nil
        end
      end
    end,
    ["put others in their places"] = function()
      coroutine.create = error -- luacheck: ignore 122
      coroutine.yield = error -- luacheck: ignore 122
      coroutine.running = error -- luacheck: ignore 122
      coroutine.isyieldable = function() -- luacheck: ignore 122
        return false
      end
    end,
    ["emptied package.preload"] = function()
      for name in pairs(package.preload) do
        package.preload[name] = nil
      end
    end,
    ["taken msys out of package.loaded"] = function()
      for name in pairs(package.loaded) do
        if name:find "^msys" or name == "thread" then package.loaded[name] = nil end
      end
    end,
    ["left a hook that raises"] = function()
      local calls = 0
      debug.sethook(function()
        calls = calls + 1
        if calls > 100 then error("late", 0) end
      end, "c")
      return {}
    end,
    ["replaced a field"] = function()
      msys.all = "mine"
    end,
  }
  for what, deed in pairs(deeds) do
    it(what, function()
      helper.with_pool({}, function(pool)
        assert.is_true((runInPool(pool, deed)))
        for round = 1, 2 do
          assert.equal(
            round + 1,
            must(pool, function()
              local m = require "msys"
              m.sleep(0.001)
              local _, value = m.runInPool("IO", function()
                return round
              end)
              return value + 1
            end)
          )
        end
        assert.is_true(must(pool, function()
          local mutex = thread.mutex()
          return mutex:trylock() and mutex:unlock()
        end))
        local all = must(pool, function()
          return type(msys.all)
        end)
        assert.equal(what == "replaced a field" and "string" or "function", all)
      end)
    end)
  end
end)

describe("_TLS of a job that has begun without the scheduler", function()
  after_each(helper.clean)

  --- Runs `fn` on a fresh worker, on one that has loaded all, and once more; each has to give the same.
  local function each(expected, fn)
    helper.with_pool({ sessions = 4 }, function(pool)
      for _ = 1, 2 do
        assert.same(expected, { must(pool, fn) })
      end
      must(pool, function()
        return msys._VERSION
      end)
      assert.same(expected, { must(pool, fn) })
    end)
  end

  it("stays through waits that cannot suspend", function()
    each({ 1, 1 }, function()
      assert(next(_TLS) == nil)
      _TLS.x = 1
      table.sort({ 2, 1 }, function(a, b)
        msys.runInPool("IO", function() end)
        msys.yield()
        return a < b
      end)
      return _TLS.x, msys._TLS.x
    end)
  end)

  it("stays through a plain coroutine.yield", function()
    each({ 1 }, function()
      assert(next(_TLS) == nil)
      _TLS.x = 1
      coroutine.yield()
      return _TLS.x
    end)
  end)

  it("is its own where its arguments are handles", function()
    local counter = thread.counter()
    each({ 1, true }, function()
      local _ = counter
      assert(next(_TLS) == nil)
      _TLS.x = 1
      msys.sleep(0)
      return _TLS.x, msys._TLS == _TLS
    end)
  end)

  it("is not that of another job that fails meanwhile", function()
    helper.with_pool({ sessions = 4 }, function(pool)
      local channel = thread.channel(1)
      local other = msys.submit(pool, function()
        _TLS.who = "other"
        channel:receive()
        error("fails", 0)
      end)
      assert.equal(
        "one",
        must(pool, function()
          _TLS.who = "one"
          table.sort({ 2, 1 }, function(a, b)
            if #channel == 0 then channel:send(1) end
            msys.sleep(0.001)
            return a < b
          end)
          return _TLS.who
        end)
      )
      assert.is_false((other:wait()))
    end)
  end)
end)

describe("jobs and completions that are run one after the other", function()
  after_each(helper.clean)

  it("leave nothing for each other: environments, hooks, `_TLS`, locks", function()
    helper.with_pool({ sessions = 1 }, function(pool)
      local mutex = thread.mutex()
      local errors = helper.catching(function()
        for i = 1, 40 do
          local found = {
            must(pool, function()
              local clean = next(_TLS) == nil and getfenv(0).mark == nil and select(2, debug.gethook()) == ""
              _TLS.mark = i
              if i % 4 == 0 then debug.sethook(function() end, "", 1e6) end
              if i % 4 == 1 then mutex:lock() end
              if i % 4 == 2 then msys.sleep(0) end
              if i % 8 == 3 then msys.spawn(msys.yield) end
              return clean, i
            end),
          }
          assert.same({ true, i }, found)
        end
        assert.is_true(mutex:trylock())
        mutex:unlock()
      end, 10)
      assert.equal(10, #errors)
      for _, report in ipairs(errors) do
        assert.matches("was still locked", report.err)
      end
    end)
  end)

  it("end as they do beside others: with values, errors, waits, locks, tables that change", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local mutex, done, failed = thread.mutex(), {}, 0
      local errors = helper.catching(function()
        for i = 1, 200 do
          runInPool(pool, function()
            if i % 5 == 0 then error { i } end
            if i % 5 == 1 then msys.sleep(0) end
            return i, { i }
          end, function(ok, value, list)
            if i % 3 == 0 then msys.sleep(0.0001) end
            if i % 3 == 1 then
              mutex:lock()
              msys.yield()
              mutex:unlock()
            end
            assert(next(msys._TLS) == nil)
            msys._TLS.mark = i
            if not ok then
              assert(value[1] == i)
              failed = failed + 1
            else
              assert(value == i and list[1] == i)
            end
            done[i] = true
            if i % 50 == 0 then error("completion " .. i, 0) end
          end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
        end
        msys.run()
      end)
      assert.equal(200, #done)
      assert.equal(40, failed)
      assert.equal(4, #errors)
      for _, failure in ipairs(errors) do
        assert.matches("^completion %d+$", failure.err)
      end
    end)
  end)

  it("resume sessions that wait for them, whatever those do next", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      local mutex, sum = thread.mutex(), 0
      helper.in_sessions(50, function(i)
        for round = 1, 6 do
          local value = must(pool, function()
            return round
          end)
          sum = sum + value
          if (i + round) % 4 == 0 then msys.yield() end
          if (i + round) % 4 == 1 then msys.sleep(0) end
          if (i + round) % 4 == 2 then
            mutex:lock()
            assert(must(pool, function()
              return i
            end) == i)
            mutex:unlock()
          end
        end
      end)
      assert.equal(50 * 21, sum)
    end)
  end)

  it("release a lock of a job whose results are too many", function()
    helper.with_pool({}, function(pool)
      local mutex = thread.mutex()
      local function many(count, ...)
        if count == 0 then return ... end
        return many(count - 1, count, ...)
      end
      local errors = helper.catching(function(errors)
        assert.is_false((runInPool(pool, function()
          mutex:lock()
          return many(7990)
        end)))
        helper.eventually(function()
          return #errors == 1
        end, "the report")
      end)
      assert.matches("was still locked", errors[1].err)
      assert.is_true(mutex:trylock())
      mutex:unlock()
    end)
  end)

  it("have results packed once, also where they are refused", function()
    helper.with_pool({}, function(pool)
      local counter = thread.counter()
      for round = 1, 3 do
        local ok, err = runInPool(pool, function()
          return setmetatable({}, {
            __msys_pack = function()
              counter:add(1)
              error("not this", 0)
            end,
          })
        end)
        assert.is_false(ok)
        assert.matches("not this", err)
        assert.equal(round, counter:get())
      end
    end)
  end)

  it("have the environment of the host's own thread", function()
    local out, err = helper.script [[
      local msys = require "msys"
      setfenv(0, setmetatable({ of_the_host = 42 }, { __index = _G }))
      for _ = 1, 2 do
        msys.runInPool("CPU", function() end, function()
          print(loadstring "return of_the_host"())
        end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
        msys.run()
      end
    ]]
    assert.same({ "42\n42\n", "" }, { out, err })
  end)
end)
