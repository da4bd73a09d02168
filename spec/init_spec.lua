--- The pool option `init`: what it may do, when it runs, and what becomes of jobs when it fails.

local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"

local tp = msys.threadpool
local until_stat, send, all_true = gate.until_stat, gate.send, gate.all_true

local describe, it, _, after_each, assert = helper.busted()

--- A job that gives what `init` left.
local function mark()
  return _OSTLS.mark
end

after_each(helper.clean)

describe("init", function()
  it("does not run before there is work", function()
    local path = helper.file()
    helper.with_pool({
      init = function()
        os.remove(path)
      end,
    }, function(pool)
      assert.is_truthy(io.open(path))
      msys.runInPool(pool, function() end)
      assert.is_nil(io.open(path))
    end)
  end)

  it("runs before the first job of its worker, and what it leaves stays for all of them", function()
    helper.with_pool({
      init = function()
        _OSTLS.mark = (_OSTLS.mark or 0) + 1
      end,
    }, function(pool)
      for _ = 1, 20 do
        assert.same({ true, 1 }, { msys.runInPool(pool, mark) })
      end
    end)
  end)

  it("runs once in each worker", function()
    local path = helper.file()
    gate.holding({
      concurrency = 4,
      sessions = 1,
      init = function()
        local file = _G.assert(io.open(path, "a"))
        file:write "init\n"
        file:close()
      end,
    }, function(pool, hold, open)
      local outcomes = send(pool, 12, hold)
      until_stat(pool, { job_num_running = 4 })
      open()
      msys.run()
      all_true(12, outcomes)
    end)
    assert.equal(("init\n"):rep(4), io.open(path):read "*a")
  end)

  it("runs again in a worker that takes an ended one's place", function()
    gate.holding({
      concurrency = 2,
      sessions = 1,
      init = function()
        _OSTLS.mark = "marked"
      end,
    }, function(pool, hold, open)
      for _ = 1, 3 do
        pool:resize(2)
        local outcomes = send(pool, 2, function()
          hold()
          return _OSTLS.mark
        end)
        until_stat(pool, { job_num_running = 2 })
        open(2)
        msys.run()
        assert.same({ { true, "marked" }, { true, "marked" } }, outcomes)
        pool:resize(1)
        until_stat(pool, { num_threads = 1 })
      end
      open()
      assert.equal(4, pool:stat().threads_started)
    end)
  end)

  it("is copied with its upvalues when the pool is created", function()
    local value = { "before" }
    helper.with_pool({
      init = function()
        _OSTLS.mark = value[1]
      end,
    }, function(pool)
      value[1] = "after"
      assert.same({ true, "before" }, { msys.runInPool(pool, mark) })
    end)
  end)

  it("may require modules, also the host's own", function()
    local folder = helper.folder { ["spec_init_module.lua"] = "return { value = 'from a file' }" }
    local path = package.path
    package.path = folder .. "/?.lua;" .. path
    local ok, err = pcall(helper.with_pool, {
      init = function()
        _OSTLS.mark = require("spec_init_module").value .. require("ffi").os
      end,
    }, function(pool)
      assert.same({ true, "from a file" .. jit.os }, { msys.runInPool(pool, mark) })
    end)
    package.path = path
    assert.is_true(ok, err)
  end)

  it("may define globals, which jobs then see", function()
    helper.with_pool({
      init = function()
        spec_init_global = 5 -- luacheck: ignore
      end,
    }, function(pool)
      assert.same({ true, 5 }, {
        msys.runInPool(pool, function()
          return spec_init_global -- luacheck: ignore
        end),
      })
    end)
  end)

  it("may sleep, while jobs wait", function()
    helper.with_pool({
      init = function()
        for _ = 1, 5 do
          msys.sleep(0.001)
        end
        _OSTLS.mark = "awake"
      end,
    }, function(pool)
      local outcomes = send(pool, 10, mark)
      msys.run()
      for number = 1, 10 do
        assert.same({ true, "awake" }, outcomes[number])
      end
    end)
  end)

  -- In a child, since what it tests has hung.
  it("may yield", function()
    local out, err = helper.script [[
      local msys = require "msys"
      local pool = msys.threadpool.create { name = "own", init = function()
        for _ = 1, 5 do msys.yield() end
        _OSTLS.mark = "went on"
      end }
      print(msys.runInPool(pool, function() return _OSTLS.mark end))
    ]]
    assert.equal("true\twent on\n", out .. err)
  end)

  for _, concurrency in ipairs { 1, 2 } do
    it(("may call a job of its own pool synchronously, with %d workers"):format(concurrency), function()
      local name = "Nested-Init-" .. concurrency
      helper.with_pool({
        name = name,
        concurrency = concurrency,
        init = function()
          if _OSTLS.mark then return end
          _OSTLS.mark = "begun"
          local ok, sum = msys.runInPool(name, function()
            return select(
              2,
              msys.runInPool(name, function()
                return 20
              end)
            ) + 1
          end)
          _OSTLS.mark = ok and sum
        end,
      }, function(pool)
        local line = helper.eventually(function()
          local outcome = { msys.runInPool(pool, mark) }
          return outcome[1] and outcome[2] == 21
        end, "init's job")
        assert.is_true(line)
      end)
    end)
  end

  it("may send an asynchronous job to its own pool", function()
    local path = helper.file()
    helper.with_pool({
      name = "Async-Init",
      init = function()
        msys.runInPool("Async-Init", function()
          os.remove(path)
        end, true)
        _OSTLS.mark = "sent"
      end,
    }, function(pool)
      assert.same({ true, "sent" }, { msys.runInPool(pool, mark) })
      helper.eventually(function()
        return not io.open(path)
      end, "init's asynchronous job")
    end)
  end)

  it("may call a job of another pool", function()
    helper.with_pool({
      init = function()
        _OSTLS.mark = select(
          2,
          _G.assert(msys.runInPool("CPU", function()
            return "from CPU"
          end))
        )
      end,
    }, function(pool)
      assert.same({ true, "from CPU" }, { msys.runInPool(pool, mark) })
    end)
  end)

  it("runs in no worker of other pools", function()
    helper.with_pool({
      init = function()
        _OSTLS.mark = "mine"
      end,
    }, function(pool)
      assert.equal("mine", select(2, msys.runInPool(pool, mark)))
      assert.is_nil(select(2, msys.runInPool("CPU", mark)))
    end)
  end)
end)

describe("an init that fails", function()
  local causes = {
    {
      "with a string",
      function()
        error("no luck", 0)
      end,
      "no luck",
    },
    {
      "with an object",
      function()
        error(setmetatable({}, {
          __tostring = function()
            return "as an object"
          end,
        }))
      end,
      "as an object",
    },
    {
      "with a failed require",
      function()
        require "no_such_module"
      end,
      "module 'no_such_module' not found",
    },
    {
      "after a sleep",
      function()
        msys.sleep(0.001)
        error "too late"
      end,
      "too late",
    },
  }
  for _, cause in ipairs(causes) do
    it(cause[1] .. " ends the first job with a failure that says so", function()
      helper.with_pool({ name = "Bad-Init", concurrency = 2, init = cause[2] }, function(pool)
        local ok, err, info = msys.runInPool(pool, mark)
        assert.is_false(ok)
        assert.equal("init of pool 'Bad-Init' failed: ", err:match "^init of pool 'Bad%-Init' failed: ")
        assert.is_truthy(err:find(cause[3], 1, true), err)
        assert.same({ "error", "Bad-Init" }, { info.kind, info.pool })
      end)
    end)
  end

  it("shows in the traceback where it failed", function()
    helper.with_pool({ init = causes[1][2] }, function(pool)
      local traceback = select(3, msys.runInPool(pool, mark)).traceback
      local place = ("spec/init_spec.lua:%d"):format(debug.getinfo(causes[1][2]).linedefined + 1)
      assert.is_truthy(tostring(traceback):find(place, 1, true), traceback)
    end)
  end)

  it("hangs no job: each of many gets an outcome", function()
    helper.with_pool({
      concurrency = 3,
      init = function()
        error "never"
      end,
    }, function(pool)
      local outcomes = send(pool, 50, mark)
      msys.run()
      assert.equal(50, #outcomes)
      for _, outcome in ipairs(outcomes) do
        assert.is_false(outcome[1])
        assert.is_truthy(outcome[2]:find("never", 1, true))
      end
    end)
  end)

  it("is tried again with the next job", function()
    local path = helper.file()
    helper.with_pool({
      init = function()
        local file = io.open(path)
        if file then
          file:close()
          os.remove(path)
          error "first time"
        end
        _OSTLS.mark = "second time"
      end,
    }, function(pool)
      assert.is_false((msys.runInPool(pool, mark)))
      assert.same({ true, "second time" }, { msys.runInPool(pool, mark) })
    end)
  end)

  it("is reported for an asynchronous job", function()
    local errors = helper.catching(function(errors)
      helper.with_pool({
        init = function()
          error "unheard"
        end,
      }, function(pool)
        msys.runInPool(pool, mark, true)
        helper.eventually(function()
          return #errors > 0
        end, "a report")
      end)
    end)
    assert.equal(1, #errors)
    assert.is_truthy(errors[1].err:find("unheard", 1, true))
  end)

  it("does not keep the pool from being shut down", function()
    helper.with_pool({
      init = function()
        error "never"
      end,
    }, function(pool)
      local outcomes = send(pool, 5, mark)
      assert.is_true(pool:shutdown())
      msys.run()
      assert.equal(5, #outcomes)
      assert.equal(0, pool:stat().num_threads)
    end)
  end)
end)

describe("an init that cannot be sent", function()
  it("is refused by create, at its line, with the path to the value", function()
    local file, count = io.stdout, tp.count()
    local config = { log = file }
    local co = coroutine.create(print)
    local line
    local cases = {
      {
        function()
          return file
        end,
        "upvalue 'file' (userdata 'file')",
      },
      {
        function()
          return config
        end,
        "upvalue 'config'.log (userdata 'file')",
      },
      {
        function()
          return co
        end,
        "upvalue 'co' (coroutine)",
      },
    }
    for _, case in ipairs(cases) do
      local ok, err = pcall(function()
        line = debug.getinfo(1, "l").currentline + 1
        tp.create { name = "Unsendable-Init", init = case[1] }
      end)
      assert.is_false(ok)
      local tail = (" of function at spec/init_spec.lua:%d"):format(debug.getinfo(case[1]).linedefined)
      assert.equal(
        ("spec/init_spec.lua:%d: msys.threadpool.create: init: cannot send %s%s"):format(line, case[2], tail),
        err
      )
    end
    assert.equal(count, tp.count())
    assert.is_nil(tp.find "Unsendable-Init")
  end)
end)
