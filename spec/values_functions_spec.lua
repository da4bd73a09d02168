-- What crosses by copy, second part: Lua functions, their cells, their environments.

local helper = require "spec.helper"
local msys = require "msys"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local run, echo = values.run, values.echo

describe("a function of a message", function()
  after_each(helper.clean)

  it("has two upvalues in one cell, where debug.upvaluejoin has joined them", function()
    local function joined()
      local a, b = 1, 2
      local function fn()
        a = a + 1
        local me = debug.getinfo(1, "f").func
        return b, debug.upvalueid(me, 1) == debug.upvalueid(me, 2)
      end
      debug.upvaluejoin(fn, 1, fn, 2)
      return fn
    end
    -- Code that was sent before goes another way.
    for _ = 1, 3 do
      assert.same({ true, 3, true }, { msys.submit("CPU", joined()):wait() })
      assert.same({ true, 3, true }, { msys.runInPool("CPU", joined()) })
    end
  end)

  it("may call itself", function()
    local function factorial(n)
      return n < 2 and 1 or n * factorial(n - 1)
    end
    assert.equal(3628800, (run(factorial, 10)))
    assert.equal(3628800, echo(factorial)(10))
  end)

  it("is one function wherever it stands", function()
    local function fn()
      return fn
    end
    local function is_right(a, tbl, key_of)
      return a == tbl.fn and a == tbl[1] and key_of[a] == "here" and a() == a
    end
    assert.is_true((run(is_right, fn, { fn, fn = fn }, { [fn] = "here" })))
    assert.is_true(is_right(echo(fn, { fn, fn = fn }, { [fn] = "here" })))
  end)

  it("shares a counter with its siblings, which call each other", function()
    local count = 0
    local odd
    local function even(n)
      count = count + 1
      return n == 0 or odd(n - 1)
    end
    function odd(n)
      count = count + 1
      return n ~= 0 and even(n - 1)
    end
    local function read()
      return count
    end
    assert.same({ true, false, 22 }, {
      run(function()
        return even(10), odd(10), read()
      end),
    })
    local back = echo { even = even, odd = odd, read = read }
    local before = back.read()
    assert.is_true(back.even(10))
    assert.is_true(back.odd(9))
    assert.equal(before + 21, back.read())
  end)

  it("has cells of its own in each message", function()
    local function counter()
      local n = 0
      return function()
        n = n + 1
        return n
      end
    end
    local one = counter()
    local function twice(fn)
      return fn() + fn() * 10
    end
    local a, b = echo(one), echo(one)
    assert.equal(21, twice(a))
    assert.equal(21, twice(b))
    local c, d = echo(counter(), counter())
    assert.equal(21, twice(c))
    assert.equal(21, twice(d))
  end)

  it("shares its cells with 299 others", function()
    local sum, groups, fns = 0, {}, {}
    for i = 1, 300 do
      local group = math.ceil(i / 3)
      local cell = groups[group]
      if not cell then
        local own = 0
        cell = {
          function()
            own = own + 1
            sum = sum + 1
            return own, sum
          end,
          function()
            own = own + 10
            sum = sum + 1
            return own, sum
          end,
          function()
            own = own + 100
            sum = sum + 1
            return own, sum
          end,
        }
        groups[group] = cell
      end
      fns[i] = cell[(i - 1) % 3 + 1]
    end
    local function is_right(list, from)
      for i, fn in ipairs(list) do
        local own, all = fn()
        if all ~= from + i or own ~= ({ 1, 11, 111 })[(i - 1) % 3 + 1] then
          return ("function %d: %d, %d"):format(i, own, all)
        end
      end
      return #list
    end
    assert.equal(300, is_right(echo(fns), 0))
    assert.equal(300, (run(is_right, fns, 0)))
  end)

  it("may have 60 upvalues", function()
    local names, sum = {}, {}
    for i = 1, 60 do
      names[i] = "u" .. i
      sum[i] = ("u%d * %d"):format(i, i)
    end
    local text = "local NAMES = ... return function() u1 = u1 + 1 return SUM end, function() return NAMES end"
    text = text:gsub("NAMES", table.concat(names, ", ")):gsub("SUM", table.concat(sum, " + "))
    local numbers = {}
    for i = 1, 60 do
      numbers[i] = i
    end
    local total, all = assert(loadstring(text))(unpack(numbers))
    local function both(a, b)
      return a(), select("#", b()), (b())
    end
    assert.same({ 73811, 60, 2 }, { both(echo(total, all)) })
    assert.same({ 73811, 60, 2 }, { run(both, total, all) })
  end)

  it("may take any number of arguments", function()
    local base = 1
    local function count(...)
      return select("#", ...) + base, ...
    end
    assert.same({ 4, "a", "b", "c" }, { run(count, "a", "b", "c") })
    assert.same({ 3, 1, 2 }, { echo(count)(1, 2) })
    assert.same({ 2, "x" }, { run(assert(loadstring "return select('#', ...) + 1, ..."), "x") })
  end)

  it("may make functions that make functions", function()
    local trace = {}
    local function outer(a)
      return function(b)
        return function(c)
          trace[#trace + 1] = a .. b .. c
          return table.concat(trace, ",")
        end
      end
    end
    assert.same({ "123", "123,124" }, {
      run(function()
        local inner = outer(1)(2)
        return inner(3), inner(4)
      end),
    })
    local inner = echo(outer(5)(6))
    local before = inner(7)
    assert.equal(before .. ",568", inner(8))
  end)

  it("keeps its own upvalues when its code is compiled for another of its kind", function()
    local function adder(n)
      return function(times)
        local sum = 0
        for _ = 1, times do
          sum = sum + n
        end
        return sum
      end
    end
    for n = 1, 5 do
      assert.equal(n * 10000, (run(adder(n), 10000)))
      assert.same({ n * 10000, -n * 10000 }, {
        run(function(a, b)
          return a(10000), b(10000)
        end, adder(n), adder(-n)),
      })
    end
  end)

  it("sees in a compiled loop what a sibling assigns", function()
    local step = 1
    local function sum(times)
      local all = 0
      for _ = 1, times do
        all = all + step
      end
      return all
    end
    local function set(value)
      step = value
    end
    assert.same({ 1000, 2000, 3000 }, {
      run(function()
        set(1)
        local first = sum(1000)
        set(2)
        local second = sum(1000)
        set(3)
        return first, second, sum(1000)
      end),
    })
  end)

  it("may be the end of a chain of 10,000 functions", function()
    local function chain(inner)
      return function()
        return inner
      end
    end
    local fn
    for _ = 1, 10000 do
      fn = chain(fn)
    end
    local function length(at)
      local count = 0
      while at do
        at, count = at(), count + 1
      end
      return count
    end
    assert.equal(10000, (run(length, fn)))
    assert.equal(10000, length((echo(fn))))
    assert.equal(10000, (run(function()
      return length(fn)
    end)))
  end)

  it("may be a stripped dump loaded again", function()
    local function scaled(x)
      return function(y)
        return x * y + 1, "text", 2.5
      end
    end
    local stripped = assert(loadstring(string.dump(scaled, true)))
    assert.same({ 7, "text", 2.5 }, { echo(stripped)(2)(3) })
    assert.same({ 13, "text", 2.5 }, { run(stripped(3), 4) })
    assert.same({ 13, "text", 2.5 }, { echo(stripped(3))(4) })
  end)

  it("may have 64-bit and complex constants", function()
    assert.same({ "9007199254740993LL", "18446744073709551615ULL", "0+2.5i" }, {
      run(function()
        return tostring(9007199254740993LL), tostring(0xffffffffffffffffULL), tostring(2.5i)
      end),
    })
  end)

  it("keeps its file, its lines and its names", function()
    local upvalue = 1
    local function fail()
      error("at this line" .. upvalue)
    end
    local here = debug.getinfo(fail, "S")
    local there, name, _, err = run(function()
      return debug.getinfo(fail, "S"), debug.getupvalue(fail, 1), pcall(fail)
    end)
    assert.same({ here.source, here.linedefined, here.lastlinedefined }, {
      there.source,
      there.linedefined,
      there.lastlinedefined,
    })
    assert.equal("upvalue", name)
    assert.equal(("%s:%d: at this line1"):format(here.short_src, here.linedefined + 1), err)
  end)

  it("may have run hot before", function()
    local all = 0
    local function fn(times)
      for i = 1, times do
        all = all + i
      end
      return all
    end
    fn(10000)
    all = 0
    assert.equal(5050, (run(fn, 100)))
  end)

  it("is right after 10,000 others", function()
    local function first()
      return "first"
    end
    assert.equal("first", (run(first)))
    for batch = 1, 10 do
      local fns = {}
      for i = 1, 1000 do
        fns[i] = assert(loadstring(("return %d"):format(batch * 1000 + i)))
      end
      assert.equal(batch * 1000000 + 500500, (run(function()
        local sum = 0
        for i = 1, #fns do
          sum = sum + fns[i]()
        end
        return sum
      end)))
    end
    assert.equal("first", (run(first)))
  end)
end)

describe("a function's environment", function()
  after_each(helper.clean)

  it("is the globals of the VM that it is in", function()
    local function environment()
      return getfenv(1)
    end
    assert.equal(_G, (run(environment)))
    assert.equal(_G, echo(environment)())
    assert.is_true((run(function()
      return environment() == _G and getfenv(1) == _G and getfenv(0) == _G
    end)))
  end)

  it("crosses if it is the function's own", function()
    local env = setmetatable({ own = "mine" }, { __index = _G })
    local function fn()
      made = type(own) -- luacheck: ignore
      return own, made, _G.made -- luacheck: ignore
    end
    setfenv(fn, env)
    assert.same({ "mine", "string" }, { run(fn) })
    assert.same({ "mine", "string" }, { echo(fn)() })
  end)

  it("stays one for the functions that share it", function()
    local env = {}
    local function set(value)
      shared = value -- luacheck: ignore
    end
    local function get()
      return shared -- luacheck: ignore
    end
    setfenv(set, env)
    setfenv(get, env)
    env.set, env.get = set, get
    local function is_right(a, b, e)
      a(5)
      return b() == 5 and e.shared == 5 and e.set == a and getfenv(a) == e and getfenv(b) == e
    end
    assert.is_true((run(is_right, set, get, env)))
    assert.is_true(is_right(echo(set, get, env)))
  end)

  it("is kept by a function that is nested deep", function()
    local env = { value = "own" }
    local deep = setfenv(function()
      return value -- luacheck: ignore
    end, env)
    for _ = 1, 100 do
      deep = { deep }
    end
    local back = echo(deep)
    for _ = 1, 100 do
      back = back[1]
    end
    assert.equal("own", back())
  end)

  it("is not what another job has made its thread's environment", function()
    helper.with_pool(nil, function(pool)
      local function global()
        return msys_spec_leak -- luacheck: ignore
      end
      local _, text = assert(msys.runInPool(pool, function()
        setfenv(0, setmetatable({ msys_spec_leak = "leaked" }, { __index = _G }))
        return assert(loadstring "return msys_spec_leak")()
      end))
      assert.equal("leaked", text)
      for _ = 1, 3 do
        assert.same({ true }, { msys.runInPool(pool, global) })
      end
    end)
  end)
end)
