-- What `msys.runInPool`, `msys.spawn`, `msys.run`, `msys.sleep` and `msys.onError` refuse: the message, which names
-- the caller's line.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"

local SOURCE = debug.getinfo(1, "S").short_src

local function fn() end
local object = setmetatable({}, {
  __call = fn,
  __tostring = function()
    return "an object"
  end,
})

---@class Case
---@field [1] string  the message without its position
---@field n integer  of arguments
---@field args table

--- A case: the message, then the arguments.
---@return Case
local function case(message, ...)
  return { message, args = { ... }, n = select("#", ...) }
end

--- Calls, and gives the error.
local function refusal(call, with)
  local line
  local ok, err = pcall(function()
    line = debug.getinfo(1, "l").currentline + 1
    call(unpack(with.args, 1, with.n))
    return "not in a tail call"
  end)
  assert.is_false(ok, "accepted: " .. with[1])
  return err, line
end

---@param name string
---@param call function
---@param cases Case[]
local function refuses(name, call, cases)
  for _, with in ipairs(cases) do
    it(("%s: %s"):format(name, with[1]), function()
      local err, line = refusal(call, with)
      assert.equal(("%s:%d: %s: %s"):format(SOURCE, line, name, with[1]), err)
    end)
  end
end

describe("refused at the caller's line:", function()
  after_each(helper.clean)

  refuses("msys.runInPool", msys.runInPool, {
    case("unknown pool 'nope', known are: CPU, IO", "nope", fn),
    case("unknown pool '', known are: CPU, IO", "", fn),
    case("unknown pool 'CPU ', known are: CPU, IO", "CPU ", fn),
    case("unknown pool 987654, known are: CPU, IO", 987654, fn),
    case("unknown pool -1, known are: CPU, IO", -1, fn),
    case("unknown pool 0.5, known are: CPU, IO", 0.5, fn),
    case("unknown pool nan, known are: CPU, IO", 0 / 0, fn),
    case("unknown pool inf, known are: CPU, IO", math.huge, fn),
    case("unknown pool 4294967296, known are: CPU, IO", 2 ^ 32, fn),
    case("pool must be a name, an id or a pool, got nil"),
    case("pool must be a name, an id or a pool, got nil", nil, fn),
    case("pool must be a name, an id or a pool, got boolean", true, fn),
    case("pool must be a name, an id or a pool, got table", { "CPU" }, fn),
    case("pool must be a name, an id or a pool, got function", fn, fn),
    case("pool must be a name, an id or a pool, got userdata", io.stdout, fn),
    case("closure must be a Lua function, got nil", "CPU"),
    case("closure must be a Lua function, got nil", "CPU", nil, true),
    case("closure must be a Lua function, got boolean", "CPU", false),
    case("closure must be a Lua function, got string", "CPU", "return 1"),
    case("closure must be a Lua function, got table", "CPU", object),
    case("closure must be a Lua function, got thread", "CPU", coroutine.create(fn)),
    case(
      "the third argument must be nil, a boolean, a completion function or an options table, got number",
      "CPU",
      fn,
      1
    ),
    case(
      "the third argument must be nil, a boolean, a completion function or an options table, got string",
      "CPU",
      fn,
      "async"
    ),
    case(
      "the third argument must be nil, a boolean, a completion function or an options table, got userdata",
      "CPU",
      fn,
      io.stdout
    ),
    case("option 'timeout' must be a number, got string", "CPU", fn, { timeout = "1" }),
    case("option 'timeout' must not be negative, got -1", "CPU", fn, { timeout = -1 }),
    case("option 'timeout' must not be negative, got nan", "CPU", fn, { timeout = 0 / 0 }),
    case("option 'cancel' must be what msys.canceller gives, got table", "CPU", fn, { cancel = {} }),
    case(
      "option 'cancel' must be what msys.canceller gives, got userdata",
      "CPU",
      fn,
      { cancel = io.stdout }
    ),
    case(
      "unknown option 'asinc', expected one of args, async, cancel, completion, in_place, mode, name, timeout",
      "CPU",
      fn,
      { asinc = true }
    ),
    case(
      "unknown option '1', expected one of args, async, cancel, completion, in_place, mode, name, timeout",
      "CPU",
      fn,
      { "x" }
    ),
    case(
      "unknown option 'an object', expected one of args, async, cancel, completion, in_place, mode, name, timeout",
      "CPU",
      fn,
      { [object] = 1 }
    ),
    case("option 'async' must be a boolean, got number", "CPU", fn, { async = 1 }),
    case("option 'args' must be a table, got string", "CPU", fn, { args = "x" }),
    case("option 'name' must be a string, got number", "CPU", fn, { name = 1 }),
    case("option 'mode' must be a number, got string", "CPU", fn, { completion = fn, mode = "SCHED" }),
    case("option 'completion' must be a function, got boolean", "CPU", fn, { completion = true }),
    case("option 'in_place' must be a boolean, got number", "CPU", fn, { in_place = 1 }),
    case("option 'args' must have from 0 to 7000 items, got -1", "CPU", fn, { args = { n = -1 } }),
    case("option 'args' must have from 0 to 7000 items, got 1.5", "CPU", fn, { args = { n = 1.5 } }),
    case("option 'args' must have from 0 to 7000 items, got nan", "CPU", fn, { args = { n = 0 / 0 } }),
    case("option 'args' must have from 0 to 7000 items, got 1", "CPU", fn, { args = { n = "1" } }),
    case("option 'args' must have from 0 to 7000 items, got 1000000000", "CPU", fn, { args = { n = 1e9 } }),
    case(
      "option 'completion' needs an asynchronous job, and 'async' is false",
      "CPU",
      fn,
      { async = false, completion = fn }
    ),
  })

  refuses("msys.spawn", msys.spawn, {
    case "fn must be a function, got nil",
    case("fn must be a function, got string", "x"),
    case("fn must be a function, got table", object),
    case("fn must be a function, got thread", coroutine.create(fn)),
  })

  refuses("msys.run", msys.run, {
    case("fn must be a function, got string", "x"),
    case("fn must be a function, got boolean", false),
    case("fn must be a function, got table", object),
  })

  refuses("msys.sleep", msys.sleep, {
    case "seconds must be a number, got nil",
    case("seconds must be a number, got string", "1"),
    case("seconds must be a number, got table", {}),
    case("seconds must not be negative, got -1", -1),
    case("seconds must not be negative, got -0.5", -0.5),
    case("seconds must not be negative, got nan", 0 / 0),
    case("seconds must not be negative, got -inf", -math.huge),
  })

  refuses("msys.onError", msys.onError, {
    case("fn must be a function, got number", 1),
    case("fn must be a function, got table", object),
  })

  it("a C function as closure", function()
    for _, closure in ipairs { print, string.rep, coroutine.wrap(fn), msys.threadpool.create } do
      if debug.getinfo(closure, "S").what == "C" then
        local err, line = refusal(msys.runInPool, case("C function", "CPU", closure))
        local expected = ("%s:%d: msys.runInPool: closure must be a Lua function, got "):format(SOURCE, line)
        assert.equal(expected, err:sub(1, #expected))
      end
    end
  end)

  it("a pool's name that is not known, with the names that are", function()
    helper.with_pool({ name = "Third" }, function()
      local err = refusal(msys.runInPool, case("unknown", "nope", fn))
      assert.matches("unknown pool 'nope', known are: CPU, IO, Third$", err)
    end)
  end)

  it("a value that cannot be sent", function()
    local co = coroutine.create(fn)
    local defined = debug.getinfo(1, "l").currentline + 1
    local closure = function()
      return co
    end
    local err, line = refusal(msys.runInPool, case("unsendable", "CPU", closure))
    local expected = "%s:%d: msys.runInPool: cannot send upvalue 'co' (coroutine) of function at %s:%d"
    assert.equal(expected:format(SOURCE, line, SOURCE, defined), err)
  end)

  it("msys.run inside a session", function()
    local ok, err = true, nil
    msys.run(function()
      ok, err = pcall(function()
        msys.run()
        return 1
      end)
    end)
    assert.is_false(ok)
    assert.matches(
      "misuse_spec.lua:%d+: msys.run: called inside a session, which would wait for itself$",
      err
    )
  end)

  it("all of it in a session too", function()
    msys.run(function()
      local err, line = refusal(msys.runInPool, case("unknown", "nope", fn))
      assert.equal(
        ("%s:%d: msys.runInPool: unknown pool 'nope', known are: CPU, IO"):format(SOURCE, line),
        err
      )
    end)
  end)

  it("with the pool sound afterwards", function()
    helper.with_pool({}, function(pool)
      local closure = function()
        return fn, io.stdout
      end
      local co = coroutine.create(fn)
      for _ = 1, 200 do
        assert.is_false((pcall(msys.runInPool, pool, function()
          return closure, co
        end)))
        assert.is_false((pcall(msys.runInPool, pool, fn, { timeout = -1 })))
      end
      local stat = pool:stat()
      assert.same({ 0, 0 }, { stat.job_num_queued, stat.job_num_running })
      assert.same({ true, 1 }, {
        msys.runInPool(pool, function()
          return 1
        end),
      })
    end)
  end)
end)
