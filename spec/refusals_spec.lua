-- What cannot cross: refused with the path to it, where the call was made.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

--- What is refused: what the message calls it, and the expression that makes it.
---@type { kind: string, text: string, only_here?: boolean, make?: fun(): any }[]
local refused = {
  { kind = "coroutine", text = "coroutine.create(print)" },
  { kind = "userdata 'file'", text = "io.stdout" },
  { kind = "userdata 'file'", text = "(function() local f = io.tmpfile() f:close() return f end)()" },
  { kind = "userdata", text = "newproxy()" },
  { kind = "userdata", text = "newproxy(true)" },
  {
    kind = "userdata",
    text = "(function() local u = newproxy(true) getmetatable(u).__name = {} return u end)()",
  },
  {
    kind = "userdata 'spec.thing'",
    text = "(function() local u = newproxy(true) getmetatable(u).__name = 'spec.thing' return u end)()",
  },
  { kind = "userdata", text = "require('ffi').C" },
  { kind = "cdata 'int *'", text = "require('ffi').cast('int *', 0)" },
  { kind = "cdata 'char *[2]'", text = "require('ffi').new('char *[2]')" },
  { kind = "cdata 'int (&)[3]'", text = "require('ffi').new('int[2][3]')[0]" },
  { kind = "cdata 'void *'", text = "require('ffi').cast('void *', 0)" },
  { kind = "C function found in no module", text = "(('x'):gmatch '.')" },
  -- In a worker, where coroutines may wait, this is a Lua function.
  { kind = "C function found in no module", text = "coroutine.wrap(print)", only_here = true },
}
for _, case in ipairs(refused) do
  case.make = assert(loadstring("return " .. case.text))
end

local function here(fn)
  local info = debug.getinfo(fn, "S")
  return ("%s:%d"):format(info.short_src, info.linedefined)
end

local function nothing() end
nothing = setfenv(nothing, _G)

--- A value in a job: the closure, its arguments, and the path to the value with KIND for what it is.
---@type { where: string, make: fun(value: any): function, any[], string }[]
local places = {
  {
    where = "an argument",
    make = function(value)
      return nothing, { value }, "argument 1 (KIND)"
    end,
  },
  {
    where = "an argument behind nils",
    make = function(value)
      return nothing, { nil, nil, value, n = 3 }, "argument 3 (KIND)"
    end,
  },
  {
    where = "deep in an argument",
    make = function(value)
      return nothing, { 1, { a = { b = { 7, value, 8 } } } }, "argument 2.a.b[2] (KIND)"
    end,
  },
  {
    where = "under awkward keys",
    make = function(value)
      local tbl = { ["odd key"] = { [true] = { [-1.5] = { [{}] = value } } } }
      return nothing, { tbl }, 'argument 1["odd key"][true][-1.5][a table] (KIND)'
    end,
  },
  {
    where = "a key",
    make = function(value)
      return nothing, { { a = { [value] = true } } }, "a key of argument 1.a (KIND)"
    end,
  },
  {
    where = "in a metatable",
    make = function(value)
      local object = setmetatable({}, { __index = { field = value } })
      return nothing, { { object } }, "the metatable of argument 1[1].__index.field (KIND)"
    end,
  },
  {
    where = "100 tables deep",
    make = function(value)
      local tbl = value
      for _ = 1, 100 do
        tbl = { tbl }
      end
      return nothing, { tbl }, "argument 1" .. ("[1]"):rep(100) .. " (KIND)"
    end,
  },
  {
    where = "in a cyclic table with many others",
    make = function(value)
      local tbl = { others = {}, deep = { deeper = { value } } }
      tbl.self, tbl.deep.back = tbl, tbl
      for i = 1, 1000 do
        tbl.others[i] = { tbl, i }
      end
      return nothing, { tbl }, "argument 1.deep.deeper[1] (KIND)"
    end,
  },
  {
    where = "an upvalue",
    make = function(value)
      local function job()
        return value
      end
      return job, {}, "upvalue 'value' (KIND) of function at " .. here(job)
    end,
  },
  {
    where = "in a table that is an upvalue",
    make = function(value)
      local config = { db = { handle = value } }
      local function job()
        return config
      end
      return job, {}, "upvalue 'config'.db.handle (KIND) of function at " .. here(job)
    end,
  },
  {
    where = "an upvalue of a captured function",
    make = function(value)
      local function inner()
        return value
      end
      local function job()
        return inner
      end
      local text = "upvalue 'value' (KIND) of function at %s, upvalue 'inner' of function at %s"
      return job, {}, text:format(here(inner), here(job))
    end,
  },
  {
    where = "an upvalue of a function in an argument",
    make = function(value)
      local function fn()
        return value
      end
      return nothing,
        { { fn = fn } },
        "upvalue 'value' (KIND) of function at " .. here(fn) .. ", argument 1.fn"
    end,
  },
  {
    where = "an upvalue of a stripped function",
    make = function(value)
      local source = function()
        return value
      end
      local job = assert(loadstring(string.dump(source, true)))
      debug.setupvalue(job, 1, value)
      return job, {}, "upvalue '1' (KIND) of function at " .. here(job)
    end,
  },
  {
    where = "in the closure's environment",
    make = function(value)
      local function job() end
      setfenv(job, { settings = { value } })
      return job, {}, "the environment.settings[1] (KIND) of function at " .. here(job)
    end,
  },
  {
    where = "in a captured function's environment",
    make = function(value)
      local inner = setfenv(function() end, { value = value })
      local function job()
        return inner
      end
      local text = "the environment.value (KIND) of function at %s, upvalue 'inner' of function at %s"
      return job, {}, text:format(here(inner), here(job))
    end,
  },
  {
    where = "behind what is nested less deep",
    make = function(value)
      local others = { {}, { {} } }
      local function job()
        return others
      end
      return job, { { { { value } } }, others }, "argument 1[1][1][1] (KIND)"
    end,
  },
  {
    where = "deep in an argument, beside modules that hold others of its kind",
    make = function(value)
      local io, package, globals = io, package, _G
      local function job()
        return io, package, globals
      end
      return job, { { { { value } } } }, "argument 1[1][1][1] (KIND)"
    end,
  },
}

describe("a message is refused, with the path, for", function()
  after_each(helper.clean)

  for _, place in ipairs(places) do
    it("what cannot cross " .. place.where, function()
      local count = msys.threadpool.stat("CPU").invocations
      for _, case in ipairs(refused) do
        local value = case.make()
        local closure, args, text = place.make(value)
        text = "msys.runInPool: cannot send " .. text:gsub("KIND", case.kind)
        local function call(options)
          options.args = args
          msys.runInPool("CPU", closure, options) -- the line of the call
        end
        local at = debug.getinfo(call, "S")
        local expected = ("%s:%d: %s"):format(at.short_src, at.linedefined + 2, text)
        assert.same({ false, expected }, { pcall(call, {}) })
        assert.same({ false, expected }, { pcall(call, { async = true }) })
        assert.same({ false, expected }, { pcall(call, { completion = nothing }) })
      end
      assert.equal(count, msys.threadpool.stat("CPU").invocations)
    end)
  end

  it("what cannot cross in a completion that is to run in the pool", function()
    for _, case in ipairs(refused) do
      local value = case.make()
      local function completion()
        return value
      end
      local _, text = pcall(function()
        msys.runInPool("CPU", nothing, completion)
      end)
      local expected = "cannot send upvalue 'value' (%s) of function at %s, the completion"
      assert.matches(expected:format(case.kind, here(completion)), text, 1, true)
    end
  end)

  it("nothing in a completion that stays here", function()
    local got
    local value = coroutine.create(print)
    msys.runInPool("CPU", nothing, function(ok)
      got = { ok, value }
    end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
    helper.eventually(function()
      return got
    end, "the completion")
    assert.same({ true, value }, got)
  end)

  it("a value in a job's own nested call, at its line there", function()
    local ok, text = msys.runInPool("CPU", function()
      local co = coroutine.create(print)
      msys.runInPool("CPU", nothing, { args = { co } }) -- in the job
    end)
    assert.is_false(ok)
    assert.matches(
      "^[^\n]*refusals_spec%.lua:%d+: msys%.runInPool: cannot send argument 1 %(coroutine%)$",
      text
    )
  end)

  it("a value in a pool's init", function()
    local co = coroutine.create(print)
    local function init()
      return co
    end
    local _, text = pcall(msys.threadpool.create, { name = "never", concurrency = 1, init = init })
    local expected = "init: cannot send upvalue 'co' (coroutine) of function at " .. here(init)
    assert.matches(expected, text, 1, true)
    assert.is_nil(msys.threadpool.find "never")
  end)
end)

--- What a job can come upon.
local refused_there = {}
for _, case in ipairs(refused) do
  if not case.only_here then refused_there[#refused_there + 1] = case end
end

--- Where it may stand in the results.
local result_paths = {
  ["result 1"] = function(value)
    return value
  end,
  ["result 3"] = function(value)
    return nil, 2, value
  end,
  ["result 2.a.b[1]"] = function(value)
    return 1, { a = { b = { value } } }
  end,
  ["a key of result 1"] = function(value)
    return { [value] = 1 }
  end,
  ["the metatable of result 1.__index"] = function(value)
    return setmetatable({}, { __index = value })
  end,
}

describe("a job's outcome", function()
  after_each(helper.clean)

  for path, give in pairs(result_paths) do
    it(('is of kind "unsendable" and has the path for %s'):format(path), function()
      for _, case in ipairs(refused_there) do
        local make = case.make
        local ok, err, info = msys.runInPool("CPU", function()
          return give(make())
        end, { name = "named" })
        assert.is_false(ok)
        assert.equal(("msys.runInPool: cannot send %s (%s)"):format(path, case.kind), err)
        assert.equal("unsendable", info.kind)
        assert.equal("CPU", info.pool)
        assert.equal("named", info.name)
        assert.is_number(info.job)
        assert.is_string(info.traceback)
      end
    end)
  end

  it("names the upvalue of a result that is a function", function()
    local ok, err = msys.runInPool("CPU", function()
      local co = coroutine.create(print)
      return function()
        return co
      end
    end)
    assert.is_false(ok)
    assert.matches("cannot send upvalue 'co' (coroutine) of function at ", err, 1, true)
    assert.matches(", result 1$", err)
  end)

  it('is of kind "unsendable" for an error value that cannot cross', function()
    for _, case in ipairs(refused_there) do
      local make = case.make
      for _, wrap in ipairs { false, true } do
        local ok, err, info = msys.runInPool("CPU", function()
          error(wrap and { make() } or make())
        end)
        assert.is_false(ok)
        assert.equal("unsendable", info.kind)
        assert.matches(("cannot send the error value (%s)"):format(case.kind), err, 1, true)
        assert.matches("refusals_spec.lua", info.traceback, 1, true)
      end
    end
  end)

  it("comes also when the error value's own __tostring fails", function()
    -- A child, since its failure is a job that never ends.
    local out, err, status = helper.script [[
      local msys = require "msys"
      local ok, text, info = msys.runInPool("CPU", function()
        error(setmetatable({ coroutine.create(print) }, { __tostring = function() error "again" end }))
      end)
      print(ok, type(text), info.kind)
    ]]
    assert.same({ "false\tstring\tunsendable\n", "", 0 }, { out, err, status })
  end)

  it("that is unsendable goes to msys.onError when nobody waits", function()
    local errors = helper.catching(function(errors)
      msys.runInPool("CPU", function()
        error { coroutine.create(print) }
      end, true)
      helper.eventually(function()
        return errors[1]
      end, "the report")
    end)
    assert.equal(1, #errors)
    assert.equal("unsendable", errors[1].info.kind)
    assert.matches("cannot send the error value (coroutine)", errors[1].err, 1, true)
  end)

  it("that is unsendable reaches a completion as values where both are in the pool", function()
    local errors = helper.catching(function(errors)
      msys.runInPool("CPU", function()
        return coroutine.create(print)
      end, function(ok, co)
        error(("got %s %s"):format(tostring(ok), type(co)), 0)
      end)
      helper.eventually(function()
        return errors[1]
      end, "the report")
    end)
    assert.equal("got true thread", errors[1].err)
  end)

  it("leaves the pool in order", function()
    helper.with_pool(nil, function(pool)
      for _ = 1, 100 do
        local ok = msys.runInPool(pool, function()
          return coroutine.create(print)
        end)
        assert.is_false(ok)
        assert.is_false((pcall(msys.runInPool, pool, nothing, { args = { coroutine.create(print) } })))
      end
      assert.same({ true, 7 }, {
        msys.runInPool(pool, function()
          return 7
        end),
      })
    end)
  end)
end)
