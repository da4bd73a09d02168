-- `msys.workers`: the second seed's pool, line for line, and what is refused.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local workers = msys.workers

local with_workers = helper.with_workers

local function compile(source, name)
  return assert(workers.compile(source, name))
end

describe("the second seed's example", function()
  after_each(helper.clean)

  it("runs line for line", function()
    -- Create worker pool
    local pool, err = workers.newPool(4)
    assert.is_nil(err)

    -- Compile bytecode (typically done once and reused)
    local bytecode
    bytecode, err = workers.compile(
      [[
    return ctx.message .. " from Lua"
    ]],
      "script"
    )
    assert.is_nil(err)

    -- Set up execution context
    local ctx = workers.newContext()
    ctx:set("message", "Hello")
    ctx:set("params", { id = "123" })
    assert.equal("Hello", ctx:get "message")

    -- Execute bytecode
    local ok, result = pool:submit(bytecode, ctx)
    assert.is_true(ok)
    assert.equal("Hello from Lua", result)

    -- With timeout
    ok, result = pool:submit(bytecode, ctx, { timeout = 1 })
    assert.same({ true, "Hello from Lua" }, { ok, result })

    -- In Lua scripts
    ok, result = pool:submit(
      compile [[
      -- Access a simple value
      local msg = ctx.message
      -- Access nested values
      local id = ctx.params.id
      -- Return a result
      return { status = "success", data = msg, id = id }
    ]],
      ctx
    )
    assert.same({ true, { status = "success", data = "Hello", id = "123" } }, { ok, result })

    assert.equal(4, pool:activeWorkers())
    assert.is_true(pool:shutdown())
    assert.is_true(pool:shutdown())
    assert.equal(0, pool:activeWorkers())
    local info
    ok, err, info = pool:submit(bytecode, ctx)
    assert.same({ false, "shutdown" }, { ok, info.kind })
    assert.matches("is shut down", err)
  end)
end)

describe("an isolated execution", function()
  after_each(helper.clean)

  it("gives results of every kind that can be copied, nils and their count kept", function()
    with_workers(1, nil, function(pool)
      local t = {}
      t.self = t
      local ctx = workers.newContext()
      ctx:set("t", t)
      ctx:set(1, { 1, 2, 3 })
      ctx:set(true, "yes")
      ctx:set("add", function(a, b)
        return a + b
      end)
      local got = {
        pool:submit(
          compile "return nil, ctx.t, ctx.t.self == ctx.t, #ctx[1], ctx[true], ctx.add(1, 2), nil",
          ctx
        ),
      }
      assert.equal(got[3], got[3].self)
      assert.same({ true, nil, got[3], true, 3, "yes", 3 }, got)
      local count = select("#", pool:submit(compile "return nil, nil"))
      assert.equal(3, count)
      assert.same({ true, "\0\255", 1 / 0, -0 }, { pool:submit(compile "return '\\0\\255', 1/0, -0") })
    end)
  end)

  it("works on a copy of the context", function()
    with_workers(1, nil, function(pool)
      local ctx, list = workers.newContext(), { 1 }
      ctx:set("list", list)
      assert.is_true(pool:submit(compile "ctx.list[1] = 5 ctx.new = 1 ctx = nil", ctx))
      assert.same({ { 1 }, nil }, { list, ctx:get "new" })
    end)
  end)

  it("fails with the error that the script raises, unchanged, and where", function()
    with_workers(1, nil, function(pool)
      local ok, err, info = pool:submit(compile("local function f() error 'boom' end\nf()", "failing"))
      assert.same({ false, "failing:1: boom", "error", "number" }, { ok, err, info.kind, type(info.job) })
      assert.matches("failing:1: in function 'f'\n\tfailing:2: in main chunk", info.traceback)
      ok, err = pool:submit(compile "error { code = 5 }")
      assert.same({ false, { code = 5 } }, { ok, err })
      ok, err = pool:submit(compile "return coroutine.yield(1)")
      assert.is_false(ok)
      assert.matches("attempt to yield", err)
    end)
  end)

  it("cannot give what cannot be copied", function()
    with_workers(1, nil, function(pool)
      for source, text in pairs {
        ["return 1, io.stdout"] = "msys.workers: cannot send result 2 (userdata)",
        ["return coroutine.create(print)"] = "msys.workers: cannot send result 1 (thread)",
        ["return { {}, { io.stdout } }"] = "msys.workers: cannot send a result or error value (userdata)",
      } do
        local ok, err, info = pool:submit(compile(source))
        assert.same({ false, text, "unsendable" }, { ok, err, info.kind })
      end
      assert.same({ true, 1 }, { pool:submit(compile "return 1") })
    end)
  end)

  it("sees LuaJIT's own libraries, and nothing of msys", function()
    with_workers(1, nil, function(pool)
      local ok, a, b, c, d = pool:submit(compile "return msys, thread, _OSTLS, type(require 'ffi')")
      assert.same({ true, nil, nil, nil, "table" }, { ok, a, b, c, d })
    end)
  end)

  it("that needs more than memory_limit ends with kind memory, and the next one goes on", function()
    with_workers(1, { memory_limit = 8 * 2 ^ 20 }, function(pool)
      for _ = 1, 3 do
        local ok, err, info = pool:submit(compile "return #('x'):rep(2^24)")
        assert.same({ false, "not enough memory", "memory" }, { ok, err, info.kind })
        assert.same({ true, 1 }, { pool:submit(compile "return 1") })
      end
    end)
  end)

  it("has all of memory_limit, whatever the one before has left as garbage", function()
    with_workers(1, { memory_limit = 32 * 2 ^ 20 }, function(pool)
      for _ = 1, 20 do
        assert.same({ true, 1e7 }, { pool:submit(compile "return #('x'):rep(1e7)") })
        assert.same({ true, 1e7 }, { pool:submit(compile "return #('y'):rep(1e7)") })
      end
    end)
  end)

  it("that was stopped leaves a worker that uses no CPU", function()
    local out, err, status = helper.script [[
      local msys = require "msys"
      local workers = msys.workers
      local pool = assert(workers.newPool(1))
      local ok, _, info = pool:submit(assert(workers.compile [=[
        local p = newproxy(true)
        getmetatable(p).__gc = function() while true do end end
        string.kept = p
      ]=]), nil, { timeout = 0.05 })
      print(ok, info.kind, pool:submit(assert(workers.compile "return 1")))
      local before = os.clock()
      msys.sleep(0.3)
      print(os.clock() - before < 0.1, pool:stat().abandoned)
    ]]
    -- LuaJITs from 2024 on tell of any error in a finalizer.
    err = err:gsub("^ERROR in finalizer: msys: job 1 of pool '[^']*' timed out[^\n]*\n", "")
    assert.same({ "false\ttimeout\ttrue\t1\ntrue\t0\n", "", 0 }, { out, err, status })
  end)

  it("is compiled once for all executions of a worker", function()
    with_workers(1, nil, function(pool)
      -- The pool's own view of its VM: the same trace serves.
      local script = compile "local sum = 0 for i = 1, 1e6 do sum = sum + i end return sum, os.clock()"
      for _ = 1, 50 do
        local ok, sum = pool:submit(script)
        assert.same({ true, 500000500000 }, { ok, sum })
      end
    end)
  end)

  it("runs beside others, from many sessions", function()
    with_workers(2, nil, function(pool)
      local script = compile "count = (count or 0) + 1 return ctx.i, count"
      local ended = 0
      helper.in_sessions(200, function(i)
        local ctx = workers.newContext()
        ctx:set("i", i)
        local ok, same, count = pool:submit(script, ctx)
        assert.same({ true, i, 1 }, { ok, same, count })
        ended = ended + 1
      end)
      assert.equal(200, ended)
    end)
  end)

  it("has a new VM each time with fresh = true", function()
    with_workers(1, { fresh = true }, function(pool)
      local script = compile "local m = getmetatable '' m.n = (m.n or 0) + 1 return m.n"
      for _ = 1, 3 do
        assert.same({ true, 1 }, { pool:submit(script) })
      end
    end)
  end)

  it("can be made in a job", function()
    assert.same({ true, true, "in a job" }, {
      msys.runInPool("CPU", function()
        local pool = assert(msys.workers.newPool(1))
        local ctx = msys.workers.newContext()
        ctx:set("x", "in a job")
        local ok, result = pool:submit(assert(msys.workers.compile "return ctx.x"), ctx)
        pool:shutdown()
        return ok, result
      end),
    })
  end)
end)

describe("what is refused:", function()
  after_each(helper.clean)

  it("pools of no workers", function()
    for _, case in ipairs {
      { 0, "concurrency must be a whole number from 1 to 1024, got 0" },
      { -1, "concurrency must be a whole number from 1 to 1024, got -1" },
      { 1.5, "concurrency must be a whole number from 1 to 1024, got 1.5" },
      { "2", "the number of workers must be a number, got string" },
      { nil, "the number of workers must be a number, got nil" },
    } do
      assert.same({ nil, "msys.workers.newPool: " .. case[2], n = 2 }, {
        n = select("#", workers.newPool(case[1])),
        workers.newPool(case[1]),
      })
    end
    assert.same(
      { nil, "msys.workers.newPool: unknown option 'name'" },
      { workers.newPool(1, { name = "x" }) }
    )
    local _, err = workers.newPool(1, { fresh = 1 })
    assert.equal("msys.workers.newPool: fresh must be a boolean, got number", err)
  end)

  it("scripts that do not compile", function()
    assert.same({ nil, "bad:2: '=' expected near 'y'" }, { workers.compile("\nx y", "bad") })
    local _, err = workers.compile(string.dump(function() end), "twice")
    assert.equal("twice: source must be text, got bytecode", err)
  end)

  it("bytecode that this LuaJIT must not see", function()
    local good = compile "return 1"
    local function changed(place, byte)
      return good:sub(1, place - 1) .. string.char(byte) .. good:sub(place + 1)
    end
    with_workers(1, nil, function(pool)
      for what, case in pairs {
        text = { "return 1", "this is text, and no bytecode (compile it first)" },
        nothing = { "", "this is text, and no bytecode (compile it first)" },
        ["another Lua"] = { "\27Lua\81", "this is bytecode of another Lua, and not of LuaJIT" },
        ["cut off"] = { good:sub(1, 4), "the bytecode is cut off" },
        version = {
          changed(4, 1),
          ("the bytecode has version 1, and this LuaJIT's is %d"):format(good:byte(4)),
        },
        GC64 = {
          changed(5, bit.bxor(good:byte(5), 8)),
          "the bytecode was made without GC64 mode, and this LuaJIT runs in it",
        },
        ["byte order"] = {
          changed(5, bit.bxor(good:byte(5), 1)),
          "the bytecode is of a machine with another order of bytes",
        },
      } do
        local ok, err = pcall(pool.submit, pool, case[1])
        assert.same(
          { what, false, "msys.workers:submit: " .. case[2] },
          { what, ok, (err:gsub("^[^:]*:%d+: ", "")) }
        )
      end
      -- What looks right and is not whole is LuaJIT's to refuse.
      local ok, err = pool:submit(good:sub(1, -3))
      assert.is_false(ok)
      assert.matches("cannot load .* bytecode", err)
    end)
  end)

  it("wrong arguments, at the caller's line", function()
    with_workers(1, nil, function(pool)
      local ctx, good = workers.newContext(), compile "return 1"
      local env = {
        pool = pool,
        ctx = ctx,
        good = good,
        workers = workers,
        io = io,
        coroutine = coroutine,
        print = print,
      }
      local OF_SUBMIT, OF_SET = "msys.workers:submit: ", "msys.context:set: "
      for code, text in pairs {
        ["pool:submit(5)"] = "msys.workers:submit: bytecode must be a string, got number",
        ["pool:submit(good, {})"] = "msys.workers:submit: ctx must be what msys.workers.newContext gives, got table",
        ["pool:submit(good, ctx, 5)"] = "msys.workers:submit: options must be a table, got number",
        ["pool:submit(good, ctx, { timeOut = 1 })"] = OF_SUBMIT
          .. "unknown option 'timeOut', expected cancel or timeout",
        ["pool:submit(good, ctx, { timeout = 'x' })"] = OF_SUBMIT
          .. "option 'timeout' must be a number, got string",
        ["pool:submit(good, ctx, { cancel = {} })"] = OF_SUBMIT
          .. "option 'cancel' must be what msys.canceller gives, got table",
        ["pool.submit(good)"] = "msys.workers:submit: called on string (call it with a colon)",
        ["ctx:set(nil, 1)"] = "msys.context:set: key must be a string, a number or a boolean, got nil",
        ["ctx:set({}, 1)"] = "msys.context:set: key must be a string, a number or a boolean, got table",
        ["ctx.set('x', 1)"] = "msys.context:set: called on string (call it with a colon)",
        ["ctx:set('file', io.stdout)"] = "msys.context:set: cannot send ctx.file (file)",
        ["ctx:set('deep', { a = { b = coroutine.create(print) } })"] = OF_SET
          .. "cannot send ctx.deep.a.b (thread)",
        ["ctx:get()"] = false,
        ["workers.compile(5)"] = "msys.workers.compile: source must be a string, got number",
        ["workers.execute('', {}, false)"] = "msys.workers.execute: this is for workers",
      } do
        local ok, err = pcall(setfenv(assert(loadstring(code, "=code")), env))
        if text then
          assert.is_false(ok, code)
          assert.equal("code:1: " .. text, err:sub(1, 8 + #text))
        else
          assert.is_true(ok, code)
        end
      end
    end)
  end)
end)
