-- Globals on demand: what a job's functions name of the script's globals comes along, for that job alone.

-- luacheck: globals spec_value spec_other spec_fn spec_table spec_even spec_odd spec_db spec_made spec_count
-- luacheck: globals spec_own spec_step spec_list

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local with_pool, must = helper.with_pool, helper.must

--- Runs `fn` while the script has these globals.
local function with(globals, fn)
  for name, value in pairs(globals) do
    rawset(_G, name, value)
  end
  local ok, err = pcall(fn)
  for name in pairs(globals) do
    rawset(_G, name, nil)
  end
  if not ok then error(err, 0) end
end

--- A job whose globals stay its own: nothing comes back to the script.
local function run(fn, ...)
  local args = { n = select("#", ...), ... }
  local function checked(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return checked(msys.runInPool("CPU", fn, { args = args, in_place = false }))
end

--- The outcome of a job that nobody waits for.
local function run_async(pool, fn)
  local got
  msys.runInPool(pool, fn, function(...)
    got = { n = select("#", ...), ... }
  end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
  helper.eventually(function()
    return got
  end, "the completion")
  return unpack(got, 1, got.n)
end

--- Fails a test that leaves one of the globals above behind.
local function clean()
  for name in pairs(_G) do
    if type(name) == "string" and name:find "^spec_" then
      rawset(_G, name, nil)
      error("a test left the global " .. name)
    end
  end
  helper.clean()
end

describe("a global of the script's that a job names comes along:", function()
  after_each(clean)

  for what, value in pairs {
    ["a number"] = -2.5,
    ["a string"] = "text\0with a zero",
    ["the empty string"] = "",
    ["true"] = true,
    ["false"] = false,
    ["a table"] = { 1, { deep = "yes" } },
    ["infinity"] = 1 / 0,
  } do
    it(what, function()
      with({ spec_value = value }, function()
        assert.same({ n = 1, value }, {
          n = 1,
          run(function()
            return spec_value
          end),
        })
      end)
    end)
  end

  it("a function", function()
    with({
      spec_fn = function(x)
        return x * 2
      end,
    }, function()
      assert.equal(42, (run(function()
        return spec_fn(21)
      end)))
    end)
  end)

  it("a 64-bit number", function()
    with({ spec_value = 2LL }, function()
      assert.equal("3LL", (run(function()
        return tostring(spec_value + 1)
      end)))
    end)
  end)

  it("a pool", function()
    with_pool({ name = "Spec of globals" }, function(pool)
      with({ spec_value = pool }, function()
        assert.equal(pool, (run(function()
          return spec_value.name == "Spec of globals" and spec_value
        end)))
      end)
    end)
  end)

  it("a module, as what `require` finds there", function()
    with({ spec_value = msys, spec_fn = msys.runInPool }, function()
      assert.is_true((run(function()
        return spec_value == require "msys" and spec_fn == spec_value.runInPool
      end)))
    end)
  end)

  it("an object, with its class", function()
    local class = {}
    class.__index = class
    function class:get()
      return self.x * spec_step
    end
    with({ spec_value = setmetatable({ x = 2 }, class), spec_step = 5 }, function()
      assert.equal(10, (run(function()
        return spec_value:get()
      end)))
    end)
  end)

  it("a list of 100,000 nested tables", function()
    local list
    for i = 1, 100000 do
      list = { next = list, i = i }
    end
    with({ spec_list = list }, function()
      assert.equal(100000, (run(function()
        local at, count = spec_list, 0
        while at do
          at, count = at.next, count + 1
        end
        return count
      end)))
    end)
  end)
end)

--- Where the global `spec_value` may be named: each gives a job that returns it.
---@type table<string, fun(): fun(...): any, any>
local places = {
  ["the closure"] = function()
    return function()
      return spec_value
    end
  end,
  ["a function made in the closure"] = function()
    return function()
      return (function()
        return function()
          return spec_value
        end
      end)()()
    end
  end,
  ["a function that the closure captured"] = function()
    local function inner()
      return spec_value
    end
    return function()
      return inner()
    end
  end,
  ["a function that a captured function captured"] = function()
    local function innermost()
      return spec_value
    end
    local function inner()
      return innermost()
    end
    return function()
      return inner()
    end
  end,
  ["an argument"] = function()
    return function(fn)
      return fn()
    end, function()
      return spec_value
    end
  end,
  ["a function in a captured table"] = function()
    local tbl = { a = {
      {
        function()
          return spec_value
        end,
      },
    } }
    return function()
      return tbl.a[1][1]()
    end
  end,
  ["a function that is a key"] = function()
    local tbl = {
      [function()
        return spec_value
      end] = true,
    }
    return function()
      return next(tbl)()
    end
  end,
  ["a metatable's __index"] = function()
    local object = setmetatable({}, {
      __index = function()
        return spec_value
      end,
    })
    return function()
      return object.any
    end
  end,
  ["a metatable of a metatable"] = function()
    local object = setmetatable(
      {},
      setmetatable({}, {
        __call = function()
          return spec_value
        end,
      })
    )
    return function()
      return getmetatable(object)()
    end
  end,
  ["another global function"] = function()
    function spec_fn()
      return spec_value
    end
    return function()
      return spec_fn()
    end
  end,
  ["a method of a global table"] = function()
    spec_table = {}
    function spec_table.get()
      return spec_value
    end
    return function()
      return spec_table.get()
    end
  end,
  ["a method that a global object inherits"] = function()
    local class = {
      get = function()
        return spec_value
      end,
    }
    spec_table = setmetatable({}, { __index = class })
    return function()
      return spec_table.get()
    end
  end,
  ["a function at the end of a chain of 200"] = function()
    local fn = function()
      return spec_value
    end
    for _ = 1, 200 do
      local inner = fn
      fn = function()
        return inner()
      end
    end
    return fn
  end,
  ["a function 200 tables deep"] = function()
    local tbl = {
      function()
        return spec_value
      end,
    }
    for _ = 1, 200 do
      tbl = { tbl }
    end
    return function()
      local at = tbl
      while type(at) == "table" do
        at = at[1]
      end
      return at()
    end
  end,
  ["a function 200 tables deep in another global"] = function()
    local tbl = {
      function()
        return spec_value
      end,
    }
    for _ = 1, 200 do
      tbl = { tbl }
    end
    spec_table = tbl
    return function()
      local at = spec_table
      while type(at) == "table" do
        at = at[1]
      end
      return at()
    end
  end,
  ["a coroutine of the job's"] = function()
    return function()
      return coroutine.wrap(function()
        coroutine.yield(spec_value)
      end)()
    end
  end,
  ["a stripped function"] = function()
    return assert(loadstring(string.dump(function()
      return spec_value
    end, true)))
  end,
  ["a branch that is rarely taken"] = function()
    return function(x)
      if x == nil then return spec_value end
      return x
    end
  end,
  ["a completion"] = function()
    return function()
      return spec_value
    end
  end,
  ["the field `_G.spec_value`"] = function()
    return function()
      return _G.spec_value
    end
  end,
  ["a field of a captured _G"] = function()
    local globals = _G
    return function()
      return globals.spec_value
    end
  end,
  ["a function with an environment behind which are the globals"] = function()
    return setfenv(function()
      return own == "own" and spec_value -- luacheck: ignore
    end, setmetatable({ own = "own" }, { __index = _G }))
  end,
  ["a captured function with an environment behind which are the globals"] = function()
    local inner = setfenv(function()
      return own == "own" and spec_value -- luacheck: ignore
    end, setmetatable({ own = "own" }, { __index = _G }))
    return function()
      return inner()
    end
  end,
  ["a function that gives itself an environment behind which are the globals"] = function()
    return function()
      setfenv(1, setmetatable({}, { __index = _G }))
      return spec_value
    end
  end,
}

describe("a global comes along where it is named in", function()
  after_each(clean)

  for where, make in pairs(places) do
    it(where, function()
      with({ spec_value = "the script's" }, function()
        local job, arg = make()
        local ok, there = pcall(run, job, arg)
        spec_fn, spec_table = nil, nil
        assert.same({ true, "the script's" }, { ok, there })
      end)
    end)
  end

  it("a completion that runs in the pool", function()
    with({ spec_value = "the script's" }, function()
      local errors = helper.catching(function(errors)
        msys.runInPool("CPU", function() end, function()
          error(spec_value, 0)
        end)
        helper.eventually(function()
          return errors[1]
        end, "the report")
      end)
      assert.equal("the script's", errors[1].err)
    end)
  end)
end)

describe("globals that come along", function()
  after_each(clean)

  it("may be functions that call each other", function()
    with({ spec_count = 0 }, function()
      function spec_even(n)
        if n == 0 then return true end
        return spec_odd(n - 1)
      end
      function spec_odd(n)
        if n == 0 then return false end
        return spec_even(n - 1)
      end
      local even, odd = spec_even, spec_odd
      local a, b, one = run(function(arg)
        return spec_even(100), spec_odd(100), arg == spec_even
      end, even)
      spec_even, spec_odd = nil, nil
      assert.same({ true, false, true }, { a, b, one })
      assert.is_function(odd)
    end)
  end)

  it("are one object each, however they are reached", function()
    local shared = { 1 }
    local function fn()
      return shared
    end
    local env = { shared = shared }
    with({ spec_table = shared, spec_other = { shared, fn }, spec_fn = fn }, function()
      local wrong = run(function(arg, key_of)
        for place, one in ipairs { shared, spec_other[1], fn(), spec_fn(), arg, next(key_of), env.shared } do
          if one ~= spec_table then return place end
        end
        return spec_fn ~= fn and "fn" or spec_fn ~= spec_other[2] and "other" or false
      end, shared, { [shared] = true })
      assert.is_false(wrong)
    end)
  end)

  it("share cells with the functions that are sent beside them", function()
    local count = 0
    local function read()
      return count
    end
    with({
      spec_fn = function()
        count = count + 1
      end,
    }, function()
      assert.equal(3, (run(function()
        for _ = 1, 3 do
          spec_fn()
        end
        return read()
      end)))
    end)
  end)

  it("may refer to `_G`, which is what the job sees", function()
    with({ spec_table = { globals = _G }, spec_value = 5 }, function()
      assert.same({ true, 5, true, true }, {
        run(function()
          local here = spec_value
          return spec_table.globals == _G, spec_table.globals.spec_value, here == 5, _G._G == _G
        end),
      })
    end)
  end)

  it("may be 1,000", function()
    local set, names = {}, {}
    for i = 1, 1000 do
      set["spec_" .. i], names[i] = i, "spec_" .. i
    end
    local job = assert(loadstring("return " .. table.concat(names, " + ")))
    with(set, function()
      assert.equal(500500, (run(job)))
    end)
  end)

  local odd = {
    ["bytes that are no UTF-8"] = "spec_\255\254\192\128",
    ["the letters of another language"] = "spec_größe",
    ["100,000 letters"] = "spec_" .. ("n"):rep(100000),
    ["255 letters"] = "spec_" .. ("n"):rep(250),
  }
  for what, name in pairs(odd) do
    it("may have a name of " .. what, function()
      local job = assert(loadstring(("return %s, type(%s)"):format(name, name)))
      with({ [name] = { 7 } }, function()
        assert.same({ { 7 }, "table" }, { run(job) })
      end)
      assert.same({ n = 2, nil, "nil" }, { n = 2, run(job) })
      with({ [name] = coroutine.create(print) }, function()
        local _, text = pcall(run, job)
        local expected = ("global '%s' did not come along: it cannot be sent (coroutine)"):format(name)
        assert.is_truthy(text:find(expected, 1, true))
      end)
    end)
  end

  it("are as they are when the call is made", function()
    local function job()
      return spec_value, spec_table[1]
    end
    for i = 1, 3 do
      with({ spec_value = i, spec_table = { i } }, function()
        assert.same({ i, i }, { run(job) })
      end)
    end
    assert.is_false((pcall(run, job)))
  end)

  it("are fresh in each call", function()
    with_pool(nil, function(pool)
      local function job()
        spec_table[1] = spec_table[1] + 1
        spec_value = spec_value + 1
        return spec_table[1], spec_value
      end
      with({ spec_table = { 0 }, spec_value = 0 }, function()
        for _ = 1, 3 do
          assert.same({ true, 1, 1 }, { run_async(pool, job) })
        end
        assert.same({ { 0 }, 0 }, { spec_table, spec_value })
      end)
    end)
  end)

  it("are not seen by other jobs of the worker", function()
    with_pool(nil, function(pool)
      -- Names that are not in the bytecode.
      local function look()
        return rawget(_G, "spec_" .. "value"),
          getfenv(0)["spec_" .. "value"],
          package.loaded._G["spec_" .. "value"]
      end
      with({ spec_value = "seen" }, function()
        assert.equal("seen", (must(pool, function()
          return spec_value
        end)))
        assert.equal("seen", (must(pool, function()
          return _G and spec_value
        end)))
        assert.same({}, { must(pool, look) })
      end)
      assert.same({}, { must(pool, look) })
    end)
  end)

  it("are not seen by another job that is in progress on the same worker", function()
    with_pool({ sessions = 8 }, function(pool)
      local function job(value)
        local before = spec_value
        msys.sleep(0.001)
        return before == value and spec_value == value and spec_fn() == value
      end
      local right = 0
      helper.in_sessions(8, function(i)
        rawset(_G, "spec_value", i)
        rawset(_G, "spec_fn", function()
          return spec_value
        end)
        local ok, is_right = msys.runInPool(pool, job, { args = { i }, in_place = false })
        if ok and is_right then right = right + 1 end
      end)
      rawset(_G, "spec_value", nil)
      rawset(_G, "spec_fn", nil)
      assert.equal(8, right)
    end)
  end)

  it("come with a function that was another job's result", function()
    with({ spec_value = 1 }, function()
      local back = run(function()
        return function()
          return spec_value
        end
      end)
      rawset(_G, "spec_value", 2)
      assert.equal(2, back())
      assert.equal(2, (run(back)))
    end)
  end)
end)

describe("a worker's own global", function()
  after_each(clean)

  local function with_init(init, fn)
    with_pool({ init = init }, fn)
  end

  it("goes before the script's", function()
    with_init(function()
      spec_value, spec_other = "worker", false
    end, function(pool)
      with({ spec_value = "script", spec_other = "script" }, function()
        local function job()
          return spec_value, spec_other
        end
        assert.same({ "worker", false }, { must(pool, job) })
        assert.same({ true, "worker", false }, { run_async(pool, job) })
      end)
    end)
  end)

  it("goes before one of the script's that cannot be sent", function()
    with_init(function()
      spec_db = "worker"
    end, function(pool)
      with({ spec_db = io.stdout }, function()
        assert.equal("worker", (must(pool, function()
          return spec_db
        end)))
      end)
    end)
  end)

  it("may be a function that uses the script's globals as they were when the pool was made", function()
    with({ spec_value = "then" }, function()
      with_init(function()
        function spec_fn()
          return spec_value
        end
        spec_count = 0
      end, function(pool)
        rawset(_G, "spec_value", "now")
        assert.same({ "then", "now", 0 }, {
          must(pool, function()
            return spec_fn(), spec_value, spec_count
          end),
        })
      end)
    end)
  end)

  it("may come from a module loaded there", function()
    local folder = helper.folder { ["spec_module_of_globals.lua"] = "spec_value = 'module' return {}" }
    local path = package.path
    package.path = folder .. "/?.lua;" .. path
    local ok, err = pcall(with_pool, nil, function(pool)
      with({ spec_value = "script" }, function()
        local function job()
          return spec_value
        end
        assert.equal("script", (must(pool, job)))
        must(pool, function()
          require "spec_module_of_globals"
        end)
        assert.equal("module", (must(pool, job)))
      end)
    end)
    package.path = path
    if not ok then error(err, 0) end
  end)

  it("is read through, not copied: what changes it is seen at once", function()
    with_init(function()
      spec_table = { 0 }
    end, function(pool)
      local function job()
        spec_table[1] = spec_table[1] + 1
        return spec_table[1]
      end
      assert.same({ 1, 2, 3 }, { (must(pool, job)), (must(pool, job)), (must(pool, job)) })
    end)
  end)

  it("is a library's function also where the script has put another one in its place", function()
    local original = rawget(_G, "gcinfo")
    local ok, kind
    with({
      gcinfo = function()
        return "the script's"
      end,
    }, function()
      ok, kind = pcall(run, function()
        return type(gcinfo()) -- luacheck: ignore
      end)
    end)
    rawset(_G, "gcinfo", original)
    assert.same({ true, "number" }, { ok, kind })
  end)

  it(
    "is a library's function also where a job captured it before the script put another one in its place",
    function()
      local original, ok, kind = rawget(_G, "gcinfo"), nil, nil
      with({
        gcinfo = function()
          return "the script's"
        end,
      }, function()
        -- What is refused makes msys look at all that is loaded.
        pcall(run, function() end, coroutine.create(print))
        ok, kind = pcall(run, function()
          return type(original())
        end)
      end)
      rawset(_G, "gcinfo", original)
      assert.same({ true, "number" }, { ok, kind })
    end
  )

  it("has strings' own methods, not those that the script has added", function()
    -- luacheck: push ignore
    string.spec_shout = function(text)
      return text:upper() .. "!"
    end
    local ok, known = pcall(run, function()
      return ("x").spec_shout == nil
    end)
    string.spec_shout = nil
    -- luacheck: pop
    assert.same({ true, true }, { ok, known })
  end)
end)

describe("a global that neither side knows", function()
  after_each(clean)

  it("is nil", function()
    assert.same({ n = 2, nil, "nil" }, {
      n = 2,
      run(function()
        return spec_value, type(spec_other)
      end),
    })
  end)

  it("fails where it is used, as in place", function()
    local ok, text = pcall(run, function()
      spec_fn()
    end)
    assert.is_false(ok)
    assert.matches("globals_spec%.lua:%d+: attempt to call global 'spec_fn' %(a nil value%)", text)
  end)

  it("is nil too where the script's own globals refuse to be read", function()
    local old = getmetatable(_G)
    setmetatable(_G, {
      __index = function(_, name)
        error("undeclared " .. tostring(name), 2)
      end,
      __newindex = function(_, name)
        error("undeclared " .. tostring(name), 2)
      end,
    })
    local ok, value = pcall(run, function()
      return spec_value
    end)
    setmetatable(_G, old)
    assert.same({ n = 2, true }, { n = 2, ok, value })
  end)
end)

--- What cannot be sent, by what the error calls it.
---@type { [1]: string, [2]: fun(): any }[]
local unsendable = {
  {
    "coroutine",
    function()
      return coroutine.create(print)
    end,
  },
  {
    "userdata 'file'",
    function()
      return io.stdout
    end,
  },
  {
    "userdata 'sqlite3'",
    function()
      local db = newproxy(true)
      getmetatable(db).__name = "sqlite3"
      return db
    end,
  },
  {
    "C function found in no module",
    function()
      return (("x"):gmatch ".")
    end,
  },
  {
    "cdata 'int *'",
    function()
      return require("ffi").cast("int *", 0)
    end,
  },
  {
    "it refers to a coroutine",
    function()
      return { deep = { coroutine.create(print) } }
    end,
  },
  {
    "it refers to a userdata 'file'",
    function()
      local file = io.stdout
      return function()
        return file
      end
    end,
  },
  {
    "it refers to a userdata 'file'",
    function()
      local deep = io.stdout
      for _ = 1, 200 do
        deep = { deep }
      end
      return deep
    end,
  },
}

describe("a global that cannot be sent", function()
  after_each(clean)

  for place, case in ipairs(unsendable) do
    it(("is left behind, and reading it says so: %d. %s"):format(place, case[1]), function()
      with({ spec_db = case[2]() }, function()
        local function job()
          return spec_db
        end
        local at = debug.getinfo(job, "S")
        local expected = ("%s:%d: global 'spec_db' did not come along: it cannot be sent (%s)"):format(
          at.short_src,
          at.linedefined + 1,
          case[1]
        )
        for _, options in ipairs { { in_place = false }, {} } do
          local ok, text, info = msys.runInPool("CPU", job, options)
          assert.same({ false, expected, "error" }, { ok, text, info.kind })
        end
      end)
    end)
  end

  it("does no harm where it is named and not read", function()
    with({ spec_db = io.stdout, spec_value = "came" }, function()
      assert.equal("came", (run(function(use)
        if use then spec_db:write() end
        return spec_value
      end)))
    end)
  end)

  it("may be caught", function()
    with({ spec_db = io.stdout }, function()
      local ok, text = run(function()
        return pcall(function()
          return spec_db
        end)
      end)
      assert.is_false(ok)
      assert.matches("global 'spec_db' did not come along", text, 1, true)
    end)
  end)

  it("may be assigned, and then read", function()
    with({ spec_db = io.stdout }, function()
      assert.equal("own", (run(function()
        spec_db = "own"
        return spec_db
      end)))
      assert.equal(io.stdout, spec_db)
    end)
  end)

  it("leaves other globals that name it as they are", function()
    with({
      spec_db = io.stdout,
      spec_fn = function(use)
        return use and spec_db or "fine"
      end,
      spec_table = {
        open = function()
          return spec_db
        end,
        1,
      },
    }, function()
      assert.same({ "fine", 1, false }, {
        run(function()
          return spec_fn(), spec_table[1], (pcall(spec_table.open))
        end),
      })
    end)
  end)

  it("does not take along what it refers to, which may come by its own name", function()
    local inner = { "inner" }
    with({ spec_table = { inner, io.stdout }, spec_other = inner }, function()
      assert.same({ "inner", false }, {
        run(function()
          return spec_other[1], (pcall(function()
            return spec_table
          end))
        end),
      })
    end)
  end)

  it("may be one of 200", function()
    local set, names = { spec_value = "came" }, {}
    for i = 1, 200 do
      set["spec_" .. i], names[i] = coroutine.create(print), "spec_" .. i
    end
    local job = assert(loadstring(([[
      local value, left_out = spec_value, 0
      for _, read in ipairs { %s } do
        left_out = left_out + (pcall(read) and 0 or 1)
      end
      return value, left_out
    ]]):format("function() return " .. table.concat(names, " end, function() return ") .. " end")))
    with(set, function()
      assert.same({ "came", 200 }, { run(job) })
    end)
  end)

  it("is missed in what the job runs with loadstring, too", function()
    with({ spec_db = io.stdout }, function()
      local ok, text = run(function(use)
        if use then return spec_db end
        return pcall(assert(loadstring "return spec_db"))
      end)
      assert.is_false(ok)
      assert.matches("global 'spec_db' did not come along", tostring(text), 1, true)
    end)
  end)

  it("is missed in a job of the job's, too", function()
    with({ spec_db = io.stdout }, function()
      local ok, text = run(function(use)
        if use then return spec_db end
        return msys.runInPool("CPU", function()
          return spec_db
        end)
      end)
      assert.is_false(ok)
      assert.matches("global 'spec_db' did not come along", tostring(text), 1, true)
    end)
  end)

  it("is missed as a field of _G, too", function()
    with({ spec_db = io.stdout }, function()
      local ok, text = run(function(use)
        if use then return spec_db end
        return pcall(function()
          return _G.spec_db
        end)
      end)
      assert.is_false(ok)
      assert.matches("global 'spec_db' did not come along", tostring(text), 1, true)
    end)
  end)

  it("can be asked for with rawget", function()
    with({ spec_db = io.stdout }, function()
      assert.same({ n = 1 }, {
        n = 1,
        run(function(use)
          if use then return spec_db end
          return rawget(_G, "spec_db")
        end),
      })
    end)
  end)
end)

--- Ways to assign the global `spec_made` in a job, each of which reads it after that.
---@type table<string, fun(): any>
local assignments = {
  ["by its name"] = function()
    spec_made = "made"
    return spec_made
  end,
  ["in a nested function"] = function()
    (function()
      spec_made = "made"
    end)()
    return spec_made
  end,
  ["as a field of _G"] = function()
    _G.spec_made = "made"
    return spec_made
  end,
  ["as a field of _G, by another name"] = function()
    _G["spec_" .. "made"] = "made"
    return _G["spec_" .. "made"]
  end,
  ["with rawset"] = function()
    rawset(_G, "spec_made", "made")
    return spec_made
  end,
  ["through getfenv"] = function()
    getfenv(1).spec_made = "made"
    return spec_made
  end,
  ["through getfenv(0)"] = function()
    getfenv(0).spec_made = "made"
    return spec_made
  end,
  ["with loadstring"] = function()
    assert(loadstring "spec_made = 'made'")()
    return spec_made
  end,
  ["with load"] = function()
    local text = "spec_made = 'made'"
    assert(load(function()
      local piece = text
      text = nil
      return piece
    end))()
    return spec_made
  end,
  ["in a coroutine"] = function()
    coroutine.wrap(function()
      spec_made = "made"
    end)()
    return spec_made
  end,
  ["with loadstring in a coroutine"] = function()
    coroutine.wrap(function()
      assert(loadstring "spec_made = 'made'")()
    end)()
    return spec_made
  end,
  ["through `require '_G'`"] = function()
    require("_G").spec_made = "made"
    return require("_G").spec_made
  end,
}
do
  local globals, getfenv, loadstring, load, setfenv = _G, getfenv, loadstring, load, setfenv
  assignments["as a field of a captured _G"] = function()
    globals.spec_made = "made"
    return spec_made
  end
  assignments["with a captured loadstring"] = function()
    loadstring "spec_made = 'made'"()
    return loadstring "return spec_made"()
  end
  assignments["with a captured load"] = function()
    local text = "spec_made = 'made' return spec_made"
    return load(function()
      local piece = text
      text = nil
      return piece
    end)()
  end
  assignments["through a captured getfenv"] = function()
    getfenv(1).spec_made = "made"
    return spec_made
  end
  assignments["through a captured getfenv(0)"] = function()
    getfenv(0).spec_made = "made"
    return getfenv(0).spec_made
  end
  assignments["with a captured setfenv"] = function()
    setfenv(1, getfenv(0))
    spec_made = "made"
    return spec_made
  end
  local lib = { run = loadstring }
  assignments["with a loadstring in a captured table"] = function()
    return lib.run "spec_made = 'made' return spec_made"()
  end
end
for name, fn in pairs(assignments) do
  assignments[name] = setfenv(fn, _G)
end

describe("a global that an asynchronous job assigns is that job's own:", function()
  after_each(clean)

  for how, assign in pairs(assignments) do
    it(how, function()
      with_pool(nil, function(pool)
        assert.same({ true, "made" }, { run_async(pool, assign) })
        -- Neither a name in the bytecode nor a look at the globals.
        local loaded = package.loaded
        assert.same({ n = 3 }, {
          n = 3,
          must(pool, function()
            local ok, value = pcall(function()
              return loaded._G.spec_made
            end)
            return spec_made, not ok or nil, value
          end),
        })
        assert.is_nil(rawget(_G, "spec_made"))
      end)
    end)
  end

  it("also after an error", function()
    with_pool(nil, function(pool)
      for _ = 1, 2 do
        local ok, text = run_async(pool, function()
          if spec_made then error("leaked", 0) end
          spec_made = true
          error("own", 0)
        end)
        assert.same({ false, "own" }, { ok, text })
      end
    end)
  end)

  it("also after a module could not be loaded", function()
    with_pool(nil, function(pool)
      assert.same({ true, false, "script" }, {
        run_async(pool, function()
          local ok = pcall(require, "no.such.module")
          assert(loadstring "spec_made = 'script'")()
          return ok, spec_made
        end),
      })
      assert.is_nil((must(pool, function()
        return spec_made
      end)))
    end)
  end)
end)

describe("a global that a job assigns", function()
  after_each(clean)

  it("is seen by its own functions, and by what it loads", function()
    local function read()
      return spec_made
    end
    assert.same({ 1, 2, 3 }, {
      run(function()
        spec_made = 1
        local first = read()
        spec_made = 2
        local second = assert(loadstring "return spec_made")()
        _G.spec_made = 3
        return first, second, read()
      end),
    })
  end)

  it("is seen by a job of its own", function()
    assert.same({ "made", 4 }, {
      run(function()
        spec_made = "made"
        function spec_fn(x)
          return x * 2
        end
        return select(
          2,
          msys.runInPool("CPU", function()
            return spec_made, spec_fn(2)
          end, { in_place = false })
        )
      end),
    })
  end)

  it("is the script's too, if it waits", function()
    assert.is_true((msys.runInPool("CPU", function()
      spec_made = { 1 }
    end)))
    local made = rawget(_G, "spec_made")
    rawset(_G, "spec_made", nil)
    assert.same({ 1 }, made)
  end)

  it("may take the place of one of the script's", function()
    with({ spec_value = 1 }, function()
      assert.same({ 2, 2 }, {
        run(function()
          spec_value = spec_value + 1
          return spec_value, _G.spec_value
        end),
      })
      assert.equal(1, spec_value)
    end)
  end)
end)

--- What a job that can look at its globals finds; all of these see the global `spec_value`, which is named.
---@type table<string, fun(): any>
local looks = {
  ["_G.name"] = function()
    return spec_value and _G.spec_value
  end,
  ["_G[name]"] = function()
    local name = "spec_" .. "value"
    return spec_value and _G[name]
  end,
  ["rawget"] = function()
    return spec_value and rawget(_G, "spec_value")
  end,
  ["next"] = function()
    for name, value in next, _G do
      if name == "spec_value" then return spec_value and value end
    end
  end,
  ["pairs"] = function()
    for name, value in pairs(_G) do
      if name == "spec_value" then return spec_value and value end
    end
  end,
  ["getfenv()"] = function()
    return spec_value and getfenv().spec_value
  end,
  ["getfenv(0)"] = function()
    return spec_value and getfenv(0).spec_value
  end,
  ["getfenv of a function"] = function()
    return getfenv(function()
      return spec_value
    end).spec_value
  end,
  ["setfenv"] = function()
    local function fn()
      return spec_value
    end
    setfenv(fn, { spec_value = spec_value .. "!" })
    return fn():sub(1, -2)
  end,
  ["setfenv(1)"] = function()
    local value = spec_value
    setfenv(1, { spec_value = value })
    return spec_value
  end,
  ["loadstring"] = function()
    return spec_value and assert(loadstring "return spec_value")()
  end,
  ["loadstring in loadstring"] = function()
    return spec_value and assert(loadstring "return loadstring 'return _G.spec_value' ()")()
  end,
  ["loadstring in a coroutine"] = function()
    return spec_value
      and coroutine.wrap(function()
        return assert(loadstring "return spec_value")()
      end)()
  end,
  ["require '_G'"] = function()
    return spec_value and require("_G").spec_value
  end,
}

describe("a global that came along can be found in a job with", function()
  after_each(clean)

  for how, look in pairs(looks) do
    setfenv(look, _G)
    it(how, function()
      with({ spec_value = "found" }, function()
        assert.equal("found", (run(look)))
      end)
    end)
  end

  it("what captures the functions that look", function()
    local getfenv, loadstring, rawget, globals = getfenv, loadstring, rawget, _G
    with({ spec_value = "found" }, function()
      assert.same({ "found", "found", "found" }, {
        run(function()
          return spec_value and getfenv(1).spec_value,
            rawget(globals, "spec_value"),
            loadstring "return spec_value"()
        end),
      })
    end)
  end)

  it("a captured loadstring alone", function()
    local loadstring = loadstring
    with({ spec_value = "found" }, function()
      assert.equal("found", (run(function()
        return spec_value and loadstring "return spec_value"()
      end)))
    end)
  end)

  it("a captured getfenv(0) alone", function()
    local getfenv = getfenv
    with({ spec_value = "found" }, function()
      assert.equal("found", (run(function()
        return spec_value and getfenv(0).spec_value
      end)))
    end)
  end)
end)

describe("the globals that a job sees", function()
  after_each(clean)

  it("hold the standard library, for pairs and rawget too", function()
    assert.same({ true, true, true, true }, {
      run(function()
        local found = {}
        for name, value in pairs(_G) do
          found[name] = value
        end
        return found.print == print,
          found.string == string,
          found._G == _G,
          rawget(_G, "tostring") == tostring
      end),
    })
  end)

  it("hold the standard library for a captured getfenv, too", function()
    local getfenv, rawget = getfenv, rawget
    assert.is_true((run(function()
      spec_made = 1
      return rawget(getfenv(1), "tostring") == tostring
    end)))
  end)

  it("are one table, by whatever name", function()
    assert.is_true((run(function()
      return _G == _G._G and getfenv() == _G and getfenv(0) == _G and require "_G" == _G
    end)))
  end)

  it("have a metatable of their own", function()
    with_pool(nil, function(pool)
      run_async(pool, function()
        getmetatable(_G).__index = function()
          return "leaked"
        end
      end)
      assert.is_nil((must(pool, function()
        return spec_value
      end)))
      run_async(pool, function()
        setmetatable(_G, {
          __index = function()
            return "leaked"
          end,
        })
      end)
      assert.is_nil((must(pool, function()
        return spec_value
      end)))
    end)
  end)

  it("may be made strict", function()
    local ok, text = run(function()
      setmetatable(_G, {
        __newindex = function(_, name)
          error("assign to undeclared variable '" .. name .. "'", 2)
        end,
        __index = function(_, name)
          error("undeclared variable '" .. name .. "'", 2)
        end,
      })
      return pcall(function()
        return spec_value
      end)
    end)
    assert.is_false(ok)
    assert.matches("undeclared variable 'spec_value'", text, 1, true)
  end)
end)

local MODULE = [[
local module = {}
spec_count = (spec_count or 0) + 1
function module.value() return spec_value end
function module.made() spec_made = "by the module" end
function module.globals() return getfenv(1), _G, package.loaded._G end
module.loaded = loadstring "return spec_value"
return module
]]

describe("a module that a job requires", function()
  after_each(clean)

  local made = 0

  --- Calls `fn` with a pool, and the name of a module that it has not loaded.
  local function with_module(fn)
    made = made + 1
    local name = ("spec_module_%d_%d"):format(helper.pid(), made)
    local path = package.path
    package.path = helper.folder { [name .. ".lua"] = MODULE } .. "/?.lua;" .. path
    local ok, err = pcall(with_pool, nil, function(pool)
      fn(name, pool)
    end)
    package.path = path
    package.loaded[name] = nil
    if not ok then error(err, 0) end
  end

  --- Jobs that see globals of their own, by how far; each requires the module, calls `fn` with it, and gives what that
  --- gives.
  ---@type table<string, fun(name: string, fn: fun(module: any): any): any>
  local jobs = {
    ["names them"] = function(name, fn)
      assert(spec_value == "the job's")
      return fn(require(name))
    end,
    ["looks at them"] = function(name, fn)
      assert(_G.spec_value == "the job's" and spec_value)
      return fn(require(name))
    end,
    ["requires it in a coroutine"] = function(name, fn)
      assert(_G.spec_value == "the job's" and spec_value)
      return fn(coroutine.wrap(function()
        return require(name)
      end)())
    end,
    ["requires it in code that it loads"] = function(name, fn)
      assert(spec_value == "the job's")
      return fn(assert(loadstring "return require(...)")(name))
    end,
  }
  for what, job in pairs(jobs) do
    setfenv(job, _G)
    it(("has the VM's globals where the job %s"):format(what), function()
      with_module(function(name, pool)
        with({ spec_value = "the job's" }, function()
          local function call(fn)
            local ok, value = run_async(pool, function()
              return job(name, fn)
            end)
            assert.is_true(ok, tostring(value))
            return value
          end
          assert.equal(
            "nil nil",
            call(function(module)
              return tostring(module.value()) .. " " .. tostring(module.loaded())
            end)
          )
          assert.is_true(call(function(module)
            local env, globals, loaded = module.globals()
            return env == globals and env == loaded
          end))
          call(function(module)
            module.made()
          end)
        end)
        -- The script knows none of these names: they are the worker's.
        assert.same({ 1, "by the module" }, {
          must(pool, function()
            return spec_count, spec_made
          end),
        })
      end)
    end)
  end

  it("leaves the job its own globals", function()
    with_module(function(name, pool)
      with({ spec_value = "the job's" }, function()
        assert.same({ "the job's", "the job's", "the job's" }, {
          must(pool, function()
            require(name)
            return spec_value, _G.spec_value, assert(loadstring "return spec_value")()
          end),
        })
      end)
    end)
  end)

  it("is what the job's functions are sent back as", function()
    with_module(function(name, pool)
      local back = must(pool, function()
        return require(name).value
      end)
      assert.equal(require(name).value, back)
      rawset(_G, "spec_count", nil)
    end)
  end)
end)

describe("a function's own environment", function()
  after_each(clean)

  it("crosses as a value, and takes no globals along", function()
    local env = { own = "mine", type = type }
    local fn = setfenv(function()
      return own, spec_value, type(print) -- luacheck: ignore
    end, env)
    with({ spec_value = "the script's" }, function()
      assert.same({ n = 3, "mine", nil, "nil" }, { n = 3, run(fn) })
      assert.same({ n = 4, "mine", nil, "nil", "the script's" }, {
        n = 4,
        run(function()
          local a, b, c = fn()
          return a, b, c, spec_value
        end),
      })
    end)
  end)

  it("may have what the script's globals have under the same name", function()
    local fn = setfenv(function()
      return spec_value -- luacheck: ignore
    end, { spec_value = "the environment's" })
    with({ spec_value = "the script's" }, function()
      assert.same({ "the environment's", "the script's" }, {
        run(function()
          return fn(), spec_value
        end),
      })
    end)
  end)

  it("behind which are the globals sees the libraries, and what it has itself", function()
    local env = setmetatable({ own = "mine" }, { __index = _G })
    env._M = env
    local fn = setfenv(function()
      local before = own -- luacheck: ignore
      own = tostring(own) .. "!" -- luacheck: ignore
      return before, own, _M.own, _G.own == nil -- luacheck: ignore
    end, env)
    assert.same({ "mine", "mine!", "mine!", true }, { run(fn) })
  end)

  it(
    "as `module` makes it, of a module that no file holds, works with the script's globals behind",
    function()
      local made = setfenv(
        assert(loadstring [[
        module("spec_fileless", package.seeall)
        limit = 5
        function within(x) return x < limit and spec_fn(x) end
        return within
      ]]),
        _G
      )()
      package.loaded.spec_fileless = nil
      rawset(_G, "spec_fileless", nil)
      with({
        spec_fn = function(x)
          return -x
        end,
      }, function()
        assert.same({ true, -3, false }, {
          pcall(run, function()
            return made(3), made(7)
          end),
        })
      end)
    end
  )

  it("that a job made stays with what it gives back", function()
    local fn = run(function()
      return setfenv(function()
        return own -- luacheck: ignore
      end, { own = "made there" })
    end)
    assert.equal("made there", fn())
  end)
end)

describe("a job of a job", function()
  after_each(clean)

  it("has the globals that came along with the job", function()
    with({
      spec_step = 3,
      spec_fn = function(x)
        return x * spec_step
      end,
    }, function()
      assert.same({ true, 15, 3 }, {
        run(function()
          local fn = spec_fn
          return msys.runInPool("CPU", function()
            return fn(5), spec_step
          end)
        end),
      })
    end)
  end)

  it("has globals that only it names", function()
    with({
      spec_fn = function(x)
        return x + 1
      end,
    }, function()
      assert.same({ true, true, 8 }, {
        run(function()
          return msys.runInPool("CPU", function()
            return msys.runInPool("CPU", function()
              return spec_fn(7)
            end)
          end)
        end),
      })
    end)
  end)

  it("has the globals of the job that calls, not those of one beside it", function()
    with_pool({ sessions = 4 }, function(pool)
      local right = 0
      local function job(value)
        return spec_value == value
          and select(
              2,
              msys.runInPool(pool, function()
                msys.yield()
                return spec_value
              end)
            )
            == value
      end
      helper.in_sessions(4, function(i)
        rawset(_G, "spec_value", i)
        local ok, is_right = msys.runInPool(pool, job, { args = { i }, in_place = false })
        if ok and is_right then right = right + 1 end
      end)
      rawset(_G, "spec_value", nil)
      assert.equal(4, right)
    end)
  end)
end)

describe("msys.capture", function()
  after_each(function()
    msys.capture(true)
    clean()
  end)

  local function job()
    return spec_value
  end

  it("says whether globals come along, which they do", function()
    assert.is_true(msys.capture())
    assert.is_true(msys.capture(true))
    assert.is_true(msys.capture(nil))
  end)

  it("turns it off and on, and gives what was before", function()
    with({ spec_value = "came" }, function()
      assert.is_true(msys.capture(false))
      assert.is_false(msys.capture())
      assert.is_nil((run(job)))
      assert.is_false(msys.capture(false))
      assert.is_false(msys.capture(true))
      assert.is_true(msys.capture())
      assert.equal("came", (run(job)))
    end)
  end)

  it("turned off, leaves a job's own assignments its own", function()
    msys.capture(false)
    with_pool(nil, function(pool)
      for _ = 1, 2 do
        assert.same({ true, nil, "made" }, {
          run_async(pool, function()
            local before = spec_made
            spec_made = "made"
            return before, spec_made
          end),
        })
      end
    end)
  end)

  it("turned off, lets what cannot be sent be nil", function()
    msys.capture(false)
    with({ spec_value = io.stdout }, function()
      assert.is_nil((run(job)))
    end)
  end)

  it("refuses what is no boolean", function()
    for _, value in ipairs { 0, "off", {}, print } do
      local _, text = pcall(function()
        msys.capture(value)
      end)
      assert.matches("globals_spec%.lua:%d+: msys%.capture: on must be a boolean, got " .. type(value), text)
    end
    assert.is_true(msys.capture())
  end)
end)
