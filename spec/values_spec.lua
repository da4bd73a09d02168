-- What crosses by copy: each kind of value, wherever it stands in a message.

local helper = require "spec.helper"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local run, echo = values.run, values.echo

--- Whether two values are one, also where `==` cannot tell.
local function same(a, b)
  return type(a) == type(b) and (a == b and (a ~= 0 or 1 / a == 1 / b) or a ~= a and b ~= b)
end

--- Values by name, each by what makes it: so a VM that is given one can compare it with one of its own.
---@type table<string, fun(): any>
local scalars = {}
for _, value in ipairs { false, true } do
  scalars[tostring(value)] = function()
    return value
  end
end
local NUMBERS = "0 -1/math.huge 1 -1 0.5 -2.5e-10 1/0 -1/0 0/0 5e-324 -5e-324 1.7976931348623157e308 "
  .. "63 64 -64 -65 8191 8192 2^31-1 2^31 -2^31 -2^31-1 2^32-1 2^32 -2^32 1e15 "
  .. "2^53-1 2^53 2^53+1 2^53+2 -2^53+1 -2^53 -2^53-1 -2^53-2 2^63 -2^63 2^64"
for text in NUMBERS:gmatch "%S+" do
  scalars["number " .. text] = assert(loadstring("return " .. text))
end
local STRINGS = {
  ["the empty string"] = '""',
  ["a zero byte"] = '"\\0"',
  ["a string with zero bytes"] = '"\\0a\\0\\0b\\0"',
  ["every byte"] = '(("."):rep(256):gsub("()%.", function(i) return string.char(i - 1) end))',
  ["invalid UTF-8"] = '"\\255\\254\\192\\128\\237\\160\\128"',
  ["255 bytes"] = '("x"):rep(255)',
  ["256 bytes"] = '("x"):rep(256)',
  ["65,536 bytes"] = '("\\0xyz"):rep(16384)',
  ["1 MiB"] = '("0123456789abcdef"):rep(65536)',
  ["a dump"] = '"\\27LJ\\2\\0"',
}
for name, text in pairs(STRINGS) do
  scalars[name] = assert(loadstring("return " .. text))
end

describe("a value of a message:", function()
  after_each(helper.clean)

  for name, make in pairs(scalars) do
    it(name .. " stays what it is, wherever it stands", function()
      local given = make()
      local function check(value, tbl, key_of)
        local own = make()
        return same(value, own)
          and same(given, own)
          and same(tbl.field, own)
          and same(tbl[1], own)
          and same(tbl.deep[1][1][1], own)
          and (own ~= own or key_of[own] == "here" and next(key_of) == own)
      end
      local key_of = given == given and { [given] = "here" } or {}
      local tbl = { given, given, field = given, deep = { { { given } } } }
      assert.is_true(check(given, tbl, key_of))
      assert.is_true((run(check, given, tbl, key_of)))
      assert.is_true(check(echo(given, tbl, key_of)))
    end)
  end

  it("nil keeps its place among others", function()
    local function count(...)
      local a, b, c = ...
      return select("#", ...), a, b, c
    end
    for _, case in ipairs { { n = 0 }, { n = 1 }, { n = 3 }, { n = 3, nil, 1 }, { n = 4, 1, nil, 2, nil } } do
      local n, a, b, c = run(count, unpack(case, 1, case.n))
      assert.same({ n = case.n, case[1], case[2], case[3] }, { n = n, a, b, c })
    end
  end)

  it("lightuserdata stays the same pointer", function()
    local light = debug.upvalueid(run, 1)
    assert.equal("userdata", type(light))
    local back, inner, key = echo(light, { light }, { [light] = true })
    assert.equal(light, back)
    assert.equal(light, inner[1])
    assert.is_true(key[light])
  end)

  it("1,000 arguments and results keep their order", function()
    local many = {}
    for i = 1, 1000 do
      many[i] = i % 3 == 0 and tostring(i) or i
    end
    assert.same(many, { echo(unpack(many)) })
  end)
end)

describe("a table of a message", function()
  after_each(helper.clean)

  local tables = {
    ["an empty table"] = {},
    ["an array"] = { 1, 2, 3, "four", false },
    ["an array with holes"] = { 1, nil, 3, nil, nil, 6 },
    ["an array that begins with nil"] = { nil, nil, 3 },
    ["keys around an array"] = { [-1] = "a", [0] = "b", "c", "d", [4] = "e", [1.5] = "f", [2 ^ 40] = "g" },
    ["boolean keys"] = { [true] = 1, [false] = 0 },
    ["awkward keys"] = {
      [""] = 1,
      ["\0"] = 2,
      ["a\0b"] = 3,
      ["1"] = 4,
      [("k"):rep(300)] = 5,
      [math.huge] = 6,
    },
    ["nested tables"] = { a = { b = { c = {} } }, { {}, { {} } } },
  }
  for name, tbl in pairs(tables) do
    it("is kept: " .. name, function()
      assert.same(tbl, (echo(tbl)))
    end)
  end

  for _, count in ipairs { 99, 100, 101, 255, 256, 257, 5000 } do
    it(("keeps %d distinct keys, each used twice"):format(count), function()
      local one, two = {}, {}
      for i = 1, count do
        one["key " .. i], two["key " .. i] = i, -i
      end
      assert.same({ one, two }, { echo(one, two) })
    end)
  end

  it("keeps 100,000 items in order", function()
    local list = {}
    for i = 1, 100000 do
      list[i] = i * 3
    end
    local back = echo(list)
    assert.equal(100000, #back)
    for i = 1, 100000 do
      assert(back[i] == i * 3, i)
    end
  end)

  it("may refer to itself, as value, as key and as metatable", function()
    local function is_right(t)
      return rawget(t, "self") == t and rawget(t, t) == t and getmetatable(t) == t and t.absent == nil
    end
    local tbl = {}
    tbl.self, tbl[tbl] = tbl, tbl
    setmetatable(tbl, tbl)
    assert.is_true((run(is_right, tbl)))
    assert.is_true(is_right(echo(tbl)))
  end)

  it("is one table wherever it stands", function()
    local shared = {}
    local function is_right(a, outer, fn)
      return a == outer[1]
        and a == outer[2].deep
        and outer[a] == a
        and fn() == a
        and getmetatable(outer).of == a
    end
    local outer = setmetatable({ shared, { deep = shared }, [shared] = shared }, { of = shared })
    local function fn()
      return shared
    end
    assert.is_true((run(function(...)
      return is_right(...) and select(1, ...) == shared
    end, shared, outer, fn)))
    assert.is_true(is_right(echo(shared, outer, fn)))
  end)

  it("stays apart from an equal one", function()
    local a, b = echo({ 1 }, { 1 })
    assert.not_equal(a, b)
  end)

  local DEPTH = 100000
  local lists = {
    ["as a linked list"] = function(inner, i)
      return { next = inner, i = i }
    end,
    ["as nested arrays"] = function(inner)
      return { inner }
    end,
    ["through keys"] = function(inner)
      return inner and { [inner] = true } or {}
    end,
    ["through metatables"] = function(inner)
      return setmetatable({}, inner)
    end,
  }
  local function depth_of(tbl)
    local depth = 0
    while tbl do
      depth = depth + 1
      local key = next(tbl)
      tbl = tbl.next or tbl[1] or type(key) == "table" and key or getmetatable(tbl)
    end
    return depth
  end
  setfenv(depth_of, _G)
  for name, wrap in pairs(lists) do
    it(("may be nested 100,000 deep %s"):format(name), function()
      local tbl
      for i = 1, DEPTH do
        tbl = wrap(tbl, i)
      end
      assert.equal(DEPTH, (run(depth_of, tbl)))
      assert.equal(DEPTH, depth_of(echo(tbl)))
    end)
  end

  it("may be a cycle of 100,000 tables", function()
    local first = { i = 1 }
    local last = first
    for i = 2, DEPTH do
      last.next = { i = i, before = last }
      last = last.next
    end
    last.next, first.before = first, last
    local function is_right(tbl)
      local at = tbl
      for i = 1, DEPTH do
        if at.i ~= i or at.next.before ~= at then return false end
        at = at.next
      end
      return at == tbl
    end
    assert.is_true((run(function(tbl)
      return is_right(tbl)
    end, first)))
    assert.is_true(is_right(echo(first)))
  end)

  it("does not share a part that is nested deep with an equal one", function()
    local shared = { "shared" }
    local one, two = { shared }, { shared }
    for _ = 1, 200 do
      one, two = { one }, { two }
    end
    local function bottom(tbl)
      for _ = 1, 201 do
        tbl = tbl[1]
      end
      return tbl
    end
    local a, b, c = echo(one, two, { "shared" })
    assert.equal(bottom(a), bottom(b))
    assert.not_equal(bottom(a), c)
    assert.same({ "shared" }, bottom(a))
  end)
end)

describe("a metatable of a message", function()
  after_each(helper.clean)

  it("crosses with its functions", function()
    local Point = {}
    Point.__index = Point
    Point.__add = function(a, b)
      return setmetatable({ x = a.x + b.x }, Point)
    end
    Point.__call = function(self, y)
      return self.x * y
    end
    Point.__tostring = function(self)
      return "x=" .. self.x
    end
    function Point:double()
      return self + self
    end
    local function point(x)
      return setmetatable({ x = x }, Point)
    end
    local text, product, sum, kin = run(function(a, b)
      return tostring(a), b(10), a + b, getmetatable(a) == getmetatable(b) and getmetatable(a) == Point
    end, point(1), point(2))
    assert.same({ "x=1", 20, true }, { text, product, kin })
    assert.equal(12, sum:double():double().x)
    assert.equal("x=6", tostring(sum:double()))
  end)

  it("crosses with an __index function that sees what it closed over", function()
    local defaults = { colour = "red" }
    local object = setmetatable({}, {
      __index = function(_, key)
        return defaults[key]
      end,
    })
    assert.equal("red", (run(function()
      return object.colour
    end)))
    assert.equal("red", echo(object).colour)
  end)

  it("is one for all of its objects", function()
    local meta, many = {}, {}
    for i = 1, 1000 do
      many[i] = setmetatable({}, meta)
    end
    local function count(objects)
      local metas, n = {}, 0
      for _, object in ipairs(objects) do
        n = n + (metas[getmetatable(object)] and 0 or 1)
        metas[getmetatable(object)] = true
      end
      return #objects, n
    end
    assert.same({ 1000, 1 }, { run(count, many) })
    assert.same({ 1000, 1 }, { count((echo(many))) })
  end)

  it("has none of its metamethods called on the way", function()
    local function fail()
      error "called"
    end
    local meta = { __metatable = "hidden", __mode = "kv", __name = "spec" }
    for event in ("index newindex len eq pairs ipairs gc tostring call concat"):gmatch "%a+" do
      meta["__" .. event] = fail
    end
    local object = setmetatable({ field = 1, 2 }, meta)
    local deep = object
    for _ = 1, 100 do
      deep = { deep }
    end
    local back = echo(object)
    assert.equal("hidden", getmetatable(back))
    assert.equal(1, rawget(back, "field"))
    assert.equal(2, rawget(back, 1))
    deep = echo(deep)
    for _ = 1, 100 do
      deep = deep[1]
    end
    assert.equal("hidden", getmetatable(deep))
    assert.equal(1, rawget(deep, "field"))
  end)
end)
