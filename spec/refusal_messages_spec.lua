-- What refusals say, to the letter: from what is sent to the complete message. That each kind of value is refused in
-- each place, and where the error is raised: refusals_spec.lua

-- luacheck: no max line length

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

--- What the code below finds under these names.
local VALUES = [[
  local co, file, iter = coroutine.create(print), io.stdout, ("x"):gmatch "."
  local ptr, db = require("ffi").cast("int *", 0), newproxy(true)
  getmetatable(db).__name = "sqlite3"
]]
local PRELUDE = VALUES:gsub("\n", " ")

--- Code, what is done with what it gives, and what that says.
---
--- `call`: a closure and arguments are sent. `completion`: a function is sent as the completion of a job. `job`: a
--- closure is run, whose outcome is looked at. `init`: a pool is made with it. A number: as `call`, with that
--- `max_message`.
--- `large job`: as `job`, with a `max_message` of 10,000.
---@type { [1]: string, [2]: string | integer, [3]: string }[]
local cases = {
  -- Arguments
  { "return nothing, co", "call", "cannot send argument 1 (coroutine)" },
  { "return nothing, 1, nil, file", "call", "cannot send argument 3 (userdata 'file')" },
  { "return nothing, db", "call", "cannot send argument 1 (userdata 'sqlite3')" },
  { "return nothing, newproxy()", "call", "cannot send argument 1 (userdata)" },
  { "return nothing, iter", "call", "cannot send argument 1 (C function found in no module)" },
  { "return nothing, ptr", "call", "cannot send argument 1 (cdata 'int *')" },
  { "return nothing, {}, { co, file }", "call", "cannot send argument 2[1] (coroutine)" },

  -- Paths in tables
  {
    "return nothing, { a = { b = { 7, db } } }",
    "call",
    "cannot send argument 1.a.b[2] (userdata 'sqlite3')",
  },
  { "return nothing, { [''] = co }", "call", 'cannot send argument 1[""] (coroutine)' },
  {
    "return nothing, { ['two words'] = { ['end'] = co } }",
    "call",
    'cannot send argument 1["two words"].end (coroutine)',
  },
  {
    "return nothing, { ['9lives'] = { _9 = co } }",
    "call",
    'cannot send argument 1["9lives"]._9 (coroutine)',
  },
  { [[return nothing, { ['"'] = co }]], "call", [[cannot send argument 1["\""] (coroutine)]] },
  { "return nothing, { ['a\\0b'] = co }", "call", 'cannot send argument 1["a\\0b"] (coroutine)' },
  {
    "return nothing, { [true] = { [-1.5] = { [1e15] = co } } }",
    "call",
    "cannot send argument 1[true][-1.5][1e+15] (coroutine)",
  },
  {
    "return nothing, { [1/0] = { [-1/0] = { [0] = co } } }",
    "call",
    "cannot send argument 1[inf][-inf][0] (coroutine)",
  },
  {
    "return nothing, { [{}] = { [function() end] = { [1LL] = co } } }",
    "call",
    "cannot send argument 1[a table][a function][a cdata] (coroutine)",
  },

  -- Keys
  { "return nothing, { [co] = 1 }", "call", "cannot send a key of argument 1 (coroutine)" },
  { "return nothing, { a = { [file] = 1 } }", "call", "cannot send a key of argument 1.a (userdata 'file')" },
  {
    "return nothing, { [{ [ptr] = 1 }] = 2 }",
    "call",
    "cannot send a key of a key of argument 1 (cdata 'int *')",
  },
  {
    "return nothing, { [{ x = iter }] = 2 }",
    "call",
    "cannot send a key of argument 1.x (C function found in no module)",
  },

  -- Metatables
  {
    "return nothing, setmetatable({}, { __index = db })",
    "call",
    "cannot send the metatable of argument 1.__index (userdata 'sqlite3')",
  },
  {
    "return nothing, setmetatable({}, { __gc = iter, __metatable = false })",
    "call",
    "cannot send the metatable of argument 1.__gc (C function found in no module)",
  },
  {
    "return nothing, setmetatable({}, setmetatable({}, { x = co }))",
    "call",
    "cannot send the metatable of the metatable of argument 1.x (coroutine)",
  },

  -- Upvalues
  {
    "return function() return db end",
    "call",
    "cannot send upvalue 'db' (userdata 'sqlite3') of function at app.lua:1",
  },
  {
    "local cfg = { db = { ptr } }\nreturn function() return cfg end",
    "call",
    "cannot send upvalue 'cfg'.db[1] (cdata 'int *') of function at app.lua:2",
  },
  {
    "return nothing, function() return co end",
    "call",
    "cannot send upvalue 'co' (coroutine) of function at app.lua:1, argument 1",
  },
  {
    "return nothing, { on = { close = function() return iter end } }",
    "call",
    "cannot send upvalue 'iter' (C function found in no module) of function at app.lua:1, argument 1.on.close",
  },
  {
    "local function inner() return db end\nreturn function() return inner end",
    "call",
    "cannot send upvalue 'db' (userdata 'sqlite3') of function at app.lua:1, upvalue 'inner' of function at app.lua:2",
  },
  {
    "local function inner() return db end\nlocal outer = { { f = function() return inner end } }\nreturn function() return outer end",
    "call",
    "cannot send upvalue 'db' (userdata 'sqlite3') of function at app.lua:1, upvalue 'inner' of function at app.lua:2, upvalue 'outer'[1].f of function at app.lua:3",
  },
  {
    "local object = setmetatable({}, { __call = function() return co end })\nreturn function() return object() end",
    "call",
    "cannot send upvalue 'co' (coroutine) of function at app.lua:1, the metatable of upvalue 'object'.__call of function at app.lua:2",
  },

  -- Environments
  {
    "return setfenv(function() end, { db = db })",
    "call",
    "cannot send the environment.db (userdata 'sqlite3') of function at app.lua:1",
  },
  {
    "return setfenv(function() end, setmetatable({}, { __index = { co } }))",
    "call",
    "cannot send the metatable of the environment.__index[1] (coroutine) of function at app.lua:1",
  },
  {
    "local f = setfenv(function() end, { [file] = 1 })\nreturn function() return f end",
    "call",
    "cannot send a key of the environment (userdata 'file') of function at app.lua:1, upvalue 'f' of function at app.lua:2",
  },

  -- The shortest way of several
  {
    "local t = { { { co } } } t.t = t\nreturn function() return t end, t, { co }",
    "call",
    "cannot send argument 2[1] (coroutine)",
  },

  -- Completions and init
  {
    "return function() return db end",
    "completion",
    "cannot send upvalue 'db' (userdata 'sqlite3') of function at app.lua:1, the completion",
  },
  { "return iter", "completion", "cannot send the completion (C function found in no module)" },
  {
    "local function open() return db end\nreturn function() open() end",
    "init",
    "init: cannot send upvalue 'db' (userdata 'sqlite3') of function at app.lua:1, upvalue 'open' of function at app.lua:2",
  },
  {
    "return setfenv(function() end, { file })",
    "init",
    "init: cannot send the environment[1] (userdata 'file') of function at app.lua:1",
  },

  -- Closures
  { "return print", "call", "closure must be a Lua function, got a C function" },
  { "return iter", "call", "closure must be a Lua function, got a C function" },
  { "return setmetatable({}, { __call = print })", "call", "closure must be a Lua function, got table" },

  -- Results
  { "return function() return coroutine.create(print) end", "job", "cannot send result 1 (coroutine)" },
  {
    "return function() return 1, { a = { [{}] = io.stdout } } end",
    "job",
    "cannot send result 2.a[a table] (userdata 'file')",
  },
  {
    "return function() return { [coroutine.create(print)] = 1 } end",
    "job",
    "cannot send a key of result 1 (coroutine)",
  },
  {
    "return function() return nil, setmetatable({}, { x = io.stdout }) end",
    "job",
    "cannot send the metatable of result 2.x (userdata 'file')",
  },
  {
    "return function()\nlocal f = io.stdout\nreturn function() return f end end",
    "job",
    "cannot send upvalue 'f' (userdata 'file') of function at app.lua:3, result 1",
  },
  {
    "return function() return require('ffi').new('int *[1]') end",
    "job",
    "cannot send result 1 (cdata 'int *[1]')",
  },
  {
    "return function() return (('x'):gmatch '.') end",
    "job",
    "cannot send result 1 (C function found in no module)",
  },

  -- Error values
  {
    "return function() error(setmetatable({ coroutine.create(print) }, { __tostring = function() return 'in words' end })) end",
    "job",
    "cannot send the error value (coroutine): in words",
  },
  {
    "return function() local u = newproxy(true) local m = getmetatable(u) m.__name = 'thing' m.__tostring = function() return 'a thing' end error(u) end",
    "job",
    "cannot send the error value (userdata 'thing'): a thing",
  },

  -- Changes of what was sent
  {
    "local t = {} return function() t.x = coroutine.create(print) end",
    "job",
    "cannot send back what the job was sent, as the job has changed it: "
      .. "upvalue 't'.x (coroutine) of function at app.lua:1",
  },
  {
    "local n = 1 return function() n = io.stdout end",
    "job",
    "cannot send back what the job was sent, as the job has changed it: "
      .. "upvalue 'n' (userdata 'file') of function at app.lua:1",
  },

  -- Too large a message
  {
    "return nothing, ('x'):rep(20000)",
    10000,
    "the message has 20013 bytes, pool 'small' takes at most 10000 (max_message); the largest part is argument 1 with 19.5 KiB",
  },
  {
    "return nothing, ('x'):rep(20000), ('y'):rep(2 ^ 20), 'z', 5, true, nil",
    10000,
    "the message has 1068601 bytes, pool 'small' takes at most 10000 (max_message); "
      .. "the largest parts are argument 2 with 1.0 MiB, argument 1 with 19.5 KiB and argument 3 with 7 bytes",
  },
  {
    "local a, b, c, d = ('x'):rep(5000), ('y'):rep(3000), ('z'):rep(1022), ('w'):rep(10) return function() return a, b, c, d end",
    5000,
    "the message has 9061 bytes, pool 'small' takes at most 5000 (max_message); "
      .. "the largest parts are upvalue 'a' with 4.9 KiB, upvalue 'b' with 2.9 KiB and upvalue 'c' with 1.0 KiB",
  },
  {
    "local big = ('x'):rep(20000) local function f() return big end return function() return f end",
    10000,
    "the message has 20018 bytes, pool 'small' takes at most 10000 (max_message); the largest part is upvalue 'f' with 19.5 KiB",
  },
  {
    "local t = { rows = ('x'):rep(20000) } return function() return t end, t",
    10000,
    "the message has 20031 bytes, pool 'small' takes at most 10000 (max_message); "
      .. "the largest parts are upvalue 't' with 19.6 KiB and argument 1 with 19.6 KiB",
  },
  {
    "return setfenv(function() end, { ('x'):rep(20000) })",
    10000,
    "the message has 20022 bytes, pool 'small' takes at most 10000 (max_message); the largest part is the environment with 19.5 KiB",
  },
  {
    "return function() return spec_large end",
    10000,
    "the message has 20034 bytes, pool 'small' takes at most 10000 (max_message); the largest part is global 'spec_large' with 19.5 KiB",
  },
  {
    "return nothing, require('ffi').new('char[20000]')",
    10000,
    "the message has 20025 bytes, pool 'small' takes at most 10000 (max_message); the largest part is argument 1 with 19.6 KiB",
  },
  -- Of several parts that are too large each, all are counted, and those of one size are named in their order.
  {
    "local x = ('x'):rep(9000) return nothing, { x }, { x }, { x }, { x }, { x }",
    10000,
    "the message has 45078 bytes, pool 'small' takes at most 10000 (max_message); "
      .. "the largest parts are argument 1 with 8.8 KiB, argument 2 with 8.8 KiB and argument 3 with 8.8 KiB",
  },
  {
    "return function() return ('x'):rep(20000) end",
    "large job",
    "the message has 20010 bytes, pool 'small' takes at most 10000 (max_message); the largest part is result 1 with 19.5 KiB",
  },
  {
    "return function() return 1, { ('x'):rep(9000) }, { ('x'):rep(8000) } end",
    "large job",
    "the message has 17035 bytes, pool 'small' takes at most 10000 (max_message); "
      .. "the largest parts are result 2 with 8.8 KiB and result 3 with 7.8 KiB",
  },
}

--- A text with its sizes, which are those of the messages' format, in the place of those of `expected` that are a
--- little more or less.
local function with_sizes_of(expected, text)
  local sizes = expected:gmatch "([%d.]+) (%a+)"
  return (
    text:gsub("([%d.]+) (%a+)", function(size, unit)
      local wanted, its_unit = sizes()
      local most = ({ bytes = 100, KiB = 0.1, MiB = 0.1 })[unit]
      if unit ~= its_unit or not most or math.abs(size - wanted) > most + 1e-9 then return end
      return ("%s %s"):format(wanted, unit)
    end)
  )
end

local function nothing() end
nothing = setfenv(nothing, _G)

--- The values that a case's code gives.
local function values_of(code)
  local text = ("local nothing = ... %s %s"):format(PRELUDE, code)
  return assert(loadstring(text, "=app.lua"))(nothing)
end
setfenv(values_of, _G)

--- Sends a closure with arguments, and gives what that raised.
local function raised_by_call(pool, closure, ...)
  local options = { args = { n = select("#", ...), ... } }
  local ok, text = pcall(msys.runInPool, pool, closure, options)
  assert.is_false(ok)
  return text
end

--- Runs a closure, and gives its outcome's text.
local function text_of_outcome(pool, closure)
  local ok, text, info = msys.runInPool(pool, closure)
  assert.same({ false, "unsendable" }, { ok, info.kind })
  return text
end

---@type table<string, fun(code: string): any>
local ways = {
  call = function(code)
    return raised_by_call("CPU", values_of(code))
  end,
  completion = function(code)
    local ok, text = pcall(msys.runInPool, "CPU", nothing, (values_of(code)))
    assert.is_false(ok)
    return text
  end,
  init = function(code)
    local ok, text =
      pcall(msys.threadpool.create, { name = "small", concurrency = 1, init = (values_of(code)) })
    assert.is_false(ok)
    return text
  end,
  job = function(code)
    return text_of_outcome("CPU", (values_of(code)))
  end,
  ["large job"] = function(code)
    return helper.with_pool({ name = "small", max_message = 10000 }, function(pool)
      return text_of_outcome(pool, (values_of(code)))
    end)
  end,
}

describe("a refusal says what cannot be sent, and where it is:", function()
  after_each(helper.clean)

  for place, case in ipairs(cases) do
    local code, way, expected = case[1], case[2], case[3]
    it(("%d. %s: %s"):format(place, way, code), function()
      rawset(_G, "spec_large", { ("x"):rep(20000) })
      local ok, text
      if type(way) == "number" then
        ok, text = pcall(helper.with_pool, { name = "small", max_message = way }, function(pool)
          return raised_by_call(pool, values_of(code))
        end)
      else
        ok, text = pcall(ways[way], code)
      end
      rawset(_G, "spec_large", nil)
      local face = way == "init" and "msys.threadpool.create: " or "msys.runInPool: "
      assert.same({ true, face .. expected }, { ok, with_sizes_of(face .. expected, text) })
    end)
  end

  it("what of a job's changes is too large", function()
    helper.with_pool({ name = "small", max_message = 10000 }, function(pool)
      local log = {}
      local text = text_of_outcome(pool, function()
        log.text = ("x"):rep(20000)
      end)
      assert.matches("the message has 20%d%d%d bytes, pool 'small' takes at most 10000 %(max_message%)", text)
      assert.matches("the largest part is [^\n]+ with 19.%d KiB", text)
      assert.same({}, log)
    end)
  end)

  it("where of a job's changes it is", function()
    local log = { lines = {} }
    local text = text_of_outcome("CPU", function()
      log.lines[1] = io.stdout
    end)
    assert.matches("lines", text, 1, true)
    assert.matches("(userdata 'file')", text, 1, true)
    assert.same({ lines = {} }, log)
  end)
end)
