-- Usual object systems, as scripts write them: classes and objects keep working in a job, and on the way back.

local helper = require "spec.helper"
local msys = require "msys"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local run, echo = values.run, values.echo

--- In the manner of middleclass: metamethods are propagated to subclasses, which are kept in a weak table.
local MIDDLE = [[
local function index_of(class, f)
  if f == nil then
    return class.__instances
  elseif type(f) == "function" then
    return function(self, name)
      local value = class.__instances[name]
      if value ~= nil then return value end
      return f(self, name)
    end
  end
  return function(_, name)
    local value = class.__instances[name]
    if value ~= nil then return value end
    return f[name]
  end
end

local function propagate(class, name, f)
  f = name == "__index" and index_of(class, f) or f
  class.__instances[name] = f
  for subclass in pairs(class.subclasses) do
    if rawget(subclass.__declared, name) == nil then propagate(subclass, name, f) end
  end
end

local function declare(class, name, f)
  class.__declared[name] = f
  if f == nil and class.super then f = class.super.__instances[name] end
  propagate(class, name, f)
end

local function new_class(name, super)
  local instances = {}
  instances.__index = instances
  local class = {
    name = name, super = super, static = {}, __instances = instances, __declared = {},
    subclasses = setmetatable({}, { __mode = "k" }),
  }
  if super then
    setmetatable(class.static, { __index = function(_, key)
      local result = rawget(instances, key)
      if result == nil then return super.static[key] end
      return result
    end })
  else
    setmetatable(class.static, { __index = function(_, key) return rawget(instances, key) end })
  end
  setmetatable(class, {
    __index = class.static,
    __tostring = function() return "class " .. name end,
    __call = function(self, ...) return self:new(...) end,
    __newindex = declare,
  })
  return class
end

local Default = {
  __tostring = function(self) return "instance of " .. tostring(self.class) end,
  initialize = function() end,
  isInstanceOf = function(self, class)
    return type(class) == "table" and type(self) == "table"
      and (self.class == class or type(self.class) == "table" and self.class:isSubclassOf(class))
  end,
  static = {
    allocate = function(self) return setmetatable({ class = self }, self.__instances) end,
    new = function(self, ...)
      local instance = self:allocate()
      instance:initialize(...)
      return instance
    end,
    subclass = function(self, name)
      local subclass = new_class(name, self)
      for method, f in pairs(self.__instances) do
        if not (method == "__index" and type(f) == "table") then propagate(subclass, method, f) end
      end
      subclass.initialize = function(instance, ...) return self.initialize(instance, ...) end
      self.subclasses[subclass] = true
      return subclass
    end,
    isSubclassOf = function(self, other)
      return type(other) == "table" and type(self.super) == "table"
        and (self.super == other or self.super:isSubclassOf(other))
    end,
    include = function(self, ...)
      for _, mixin in ipairs { ... } do
        for name, method in pairs(mixin) do
          if name ~= "included" and name ~= "static" then self[name] = method end
        end
        for name, method in pairs(mixin.static or {}) do self.static[name] = method end
        if mixin.included then mixin.included(self) end
      end
      return self
    end,
  },
}

return function(name, super)
  if super then return super:subclass(name) end
  return Default.static.include(new_class(name), Default)
end
]]
local class = setfenv(assert(loadstring(MIDDLE, "=middle")), _G)()

--- Shapes: a class, a subclass, and a mixin.
local function shapes()
  local Shape = class "Shape"
  Shape.static.count = 0
  function Shape:initialize(name)
    self.name = name
    Shape.static.count = Shape.static.count + 1
  end
  function Shape.area()
    return 0
  end
  function Shape:describe()
    return ("%s %s of area %d"):format(self.class.name, self.name, self:area())
  end
  function Shape.__eq(a, b)
    return a:area() == b:area()
  end
  function Shape.__add(a, b)
    return a:area() + b:area()
  end
  function Shape.static.made()
    return Shape.static.count
  end
  local Coloured = {
    paint = function(self, colour)
      self.colour = colour
      return self
    end,
    static = {
      palette = function()
        return "red green"
      end,
    },
    included = function(of)
      of.static.is_coloured = true
    end,
  }
  local Square = class("Square", Shape)
  function Square:initialize(name, side)
    Shape.initialize(self, name)
    self.side = side
  end
  function Square:area()
    return self.side * self.side
  end
  Square:include(Coloured)
  return Shape, Square
end
setfenv(shapes, _G)

describe("classes in the manner of middleclass", function()
  after_each(helper.clean)

  it("make objects in a job", function()
    local Shape, Square = shapes()
    assert.same(
      { "Square s of area 9", "class Square", "instance of class Square", 1, true, "red", "red green" },
      {
        run(function()
          local square = Square("s", 3):paint "red"
          return square:describe(),
            tostring(Square),
            tostring(square),
            Shape.made(),
            Square.is_coloured,
            square.colour,
            Square.palette()
        end),
      }
    )
  end)

  it("know their objects there", function()
    local Shape, Square = shapes()
    local square, other = Square("s", 3), class "Other"
    local function knows(object)
      return object:isInstanceOf(Square),
        object:isInstanceOf(Shape),
        object:isInstanceOf(other),
        object.class == Square,
        Square:isSubclassOf(Shape),
        Square.super == Shape,
        Shape.subclasses[Square]
    end
    assert.same({ true, true, false, true, true, true, true }, { run(knows, square) })
    assert.same({ true, true, false, true, true, true, true }, {
      run(function()
        return knows(Square("made there", 2))
      end),
    })
  end)

  it("know their objects on the way back, in a job that is as in place", function()
    local Shape, Square = shapes()
    local square = Square("s", 3)
    local ok, made, same = msys.runInPool("CPU", function(arg)
      arg.side = 5
      return Square("made there", 4), arg
    end, { args = { square } })
    assert.is_true(ok, tostring(made))
    assert.is_true(made:isInstanceOf(Square))
    assert.is_true(made:isInstanceOf(Shape))
    assert.equal(Square, made.class)
    assert.equal(getmetatable(square), getmetatable(made))
    assert.equal(square, same)
    assert.same({ 5, 25, 41 }, { square.side, square:area(), square + made })
    assert.equal(2, Shape.made())
  end)

  it("come back as classes of their own, where they are copied", function()
    local _, Square = shapes()
    local back, its_class = echo(Square("s", 3), Square)
    assert.equal(its_class, back.class)
    assert.not_equal(Square, its_class)
    assert.is_true(back:isInstanceOf(its_class))
    assert.is_true(back:isInstanceOf(its_class.super))
    assert.is_false(back:isInstanceOf(Square))
    assert.same({ 9, "instance of class Square" }, { back:area(), tostring(back) })
  end)

  it("hand metamethods on to subclasses, also those that are declared in the job", function()
    local Shape, Square = shapes()
    assert.same({ true, 13, "concat", "concat", 2 }, {
      run(function()
        function Shape.__concat()
          return "concat"
        end
        local Cube = class("Cube", Square)
        local a, b = Square("a", 2), Square("b", 3)
        local count = 0
        for _ in pairs(Shape.subclasses) do
          count = count + 1
        end
        for _ in pairs(Square.subclasses) do
          count = count + 1
        end
        return a == Square("c", 2), a + b, a .. b, Cube("d", 1) .. b, count
      end),
    })
  end)

  it("may have an __index function", function()
    local Lazy = class "Lazy"
    local made = 0
    function Lazy.__index(self, name)
      made = made + 1
      local value = name .. made
      rawset(self, name, value)
      return value
    end
    local Lazier = class("Lazier", Lazy)
    function Lazier:twice(name)
      return self[name] .. self[name]
    end
    assert.same({ "a1", "a1", "b2b2" }, {
      run(function()
        local lazy = Lazier()
        return lazy.a, lazy.a, lazy:twice "b"
      end),
    })
  end)

  it("keep their subclasses in a table that is weak there, too", function()
    local Shape, Square = shapes()
    assert.same({ "k", 1, true }, {
      run(function()
        for i = 1, 10 do
          class("Passing" .. i, Shape)
        end
        collectgarbage()
        collectgarbage()
        local count = 0
        for _ in pairs(Shape.subclasses) do
          count = count + 1
        end
        return getmetatable(Shape.subclasses).__mode, count, Shape.subclasses[Square]
      end),
    })
  end)

  it("may be a hierarchy of 150", function()
    local classes = { class "Class1" }
    classes[1].depth = function()
      return 1
    end
    for i = 2, 150 do
      classes[i] = class("Class" .. i, classes[i - 1])
      local super = classes[i - 1]
      classes[i].depth = function(self)
        return super.depth(self) + 1
      end
    end
    local last = classes[150]
    assert.same({ 150, true, 150 }, {
      run(function()
        local object = last()
        return object:depth(), object:isInstanceOf(classes[1]), #classes
      end),
    })
  end)
end)

--- Each gives a class whose objects have `x`, the methods `add(n)` and `get()`, and what `is(object)` tells.
---@type table<string, fun(): { new: (fun(x: number): any), is: (fun(object: any): boolean) }>
local systems = {
  ["tables that are their objects' metatables"] = function()
    local Point = {}
    Point.__index = Point
    function Point.new(x)
      return setmetatable({ x = x }, Point)
    end
    function Point:add(n)
      self.x = self.x + n
      return self
    end
    function Point:get()
      return self.x
    end
    return {
      new = Point.new,
      is = function(object)
        return getmetatable(object) == Point
      end,
    }
  end,
  ["closures"] = function()
    local made = setmetatable({}, { __mode = "k" })
    local function new(x)
      local self = {}
      function self.add(_, n)
        x = x + n
        return self
      end
      function self.get()
        return x
      end
      made[self] = true
      return self
    end
    return {
      new = new,
      is = function(object)
        return made[object] == true
      end,
    }
  end,
  ["prototypes"] = function()
    local base = {}
    function base:clone(fields)
      return setmetatable(fields, { __index = self })
    end
    local proto = base:clone { x = 0 }
    function proto:add(n)
      self.x = self.x + n
      return self
    end
    function proto:get()
      return self.x
    end
    return {
      new = function(x)
        local object = proto:clone {}
        object.x = x
        return object
      end,
      is = function(object)
        return getmetatable(object).__index == proto
      end,
    }
  end,
  ["classic's extend and copied metamethods"] = function()
    local Object = {}
    Object.__index = Object
    function Object:extend()
      local cls = {}
      for key, value in pairs(self) do
        if key:find "__" == 1 then cls[key] = value end
      end
      cls.__index = cls
      cls.super = self
      return setmetatable(cls, self)
    end
    function Object:is(T)
      local mt = getmetatable(self)
      while mt do
        if mt == T then return true end
        mt = getmetatable(mt)
      end
      return false
    end
    function Object:__call(...)
      local object = setmetatable({}, self)
      object:new(...)
      return object
    end
    function Object.__tostring()
      return "Object"
    end
    local Base = Object:extend()
    function Base:add(n)
      self.x = self.x + n
      return self
    end
    local Point = Base:extend()
    function Point:new(x)
      self.x = x
    end
    function Point:get()
      assert(tostring(self) == "Object")
      return self.x
    end
    return {
      new = function(x)
        return Point(x)
      end,
      is = function(object)
        return object:is(Point) and object:is(Base) and object:is(Object) and not Base.is(Base, Point)
      end,
    }
  end,
  ["30log's instances that know their class"] = function()
    local instances = setmetatable({}, { __mode = "k" })
    local function extend(base, name)
      local cls = { name = name, super = base, __instances = {} }
      cls.__index = cls
      for key, value in pairs(base or {}) do
        if cls[key] == nil and type(value) == "function" then cls[key] = value end
      end
      return setmetatable(cls, {
        __call = function(self, ...)
          local object = setmetatable({ class = self }, self)
          instances[object] = self
          self.__instances[object] = true
          object:init(...)
          return object
        end,
        __tostring = function()
          return "class '" .. name .. "'"
        end,
      })
    end
    local Base = extend(nil, "Base")
    function Base:init(x)
      self.x = x
    end
    function Base:add(n)
      self.x = self.x + n
      return self
    end
    local Point = extend(Base, "Point")
    function Point:get()
      return self.x
    end
    return {
      new = function(x)
        return Point(x)
      end,
      is = function(object)
        return instances[object] == Point
          and Point.__instances[object] == true
          and object.class == Point
          and object.class.super == Base
          and tostring(Point) == "class 'Point'"
      end,
    }
  end,
  ["proxies with private state"] = function()
    local state = setmetatable({}, { __mode = "k" })
    local methods = {}
    local meta = { __metatable = false }
    function meta.__index(self, name)
      return methods[name] or state[self][name]
    end
    function meta.__newindex()
      error "read only"
    end
    function methods:add(n)
      state[self].x = state[self].x + n
      return self
    end
    function methods:get()
      return self.x
    end
    return {
      new = function(x)
        local object = setmetatable({}, meta)
        state[object] = { x = x }
        return object
      end,
      is = function(object)
        return state[object] ~= nil
          and getmetatable(object) == false
          and not pcall(function()
            object.x = 1
          end)
      end,
    }
  end,
  ["multiple inheritance by an __index function that caches"] = function()
    local A, B = {}, {}
    function A:add(n)
      self.x = self.x + n
      return self
    end
    function B:get()
      return self.x
    end
    local parents = { A, B }
    local Both = {}
    Both.__index = Both
    setmetatable(Both, {
      __index = function(cls, name)
        for _, parent in ipairs(parents) do
          if parent[name] then
            cls[name] = parent[name]
            return parent[name]
          end
        end
      end,
    })
    return {
      new = function(x)
        return setmetatable({ x = x }, Both)
      end,
      is = function(object)
        return getmetatable(object) == Both and object.get == B.get and object.nothing == nil
      end,
    }
  end,
}

describe("objects of", function()
  after_each(helper.clean)

  for what, system in pairs(systems) do
    setfenv(system, _G)

    it(("%s work in a job, beside those that it makes"):format(what), function()
      local cls = system()
      local object = cls.new(1)
      assert.same({ true, true, 6, 12 }, {
        run(function()
          local made = cls.new(10)
          return cls.is(object), cls.is(made), object:add(5):get(), made:add(2):get()
        end),
      })
      assert.equal(1, object:get())
    end)

    it(("%s work on the way back"):format(what), function()
      local cls = system()
      local object, is, made = run(function(arg)
        return arg:add(1), cls.is, cls.new(10)
      end, cls.new(1))
      assert.same({ true, true, 2, 10 }, { is(object), is(made), object:get(), made:get() })
      assert.equal(9, object:add(7):get())
      assert.is_false((select(2, pcall(cls.is, object))) == true)
    end)

    it(("%s are the caller's own, as in place"):format(what), function()
      local cls = system()
      local object = cls.new(1)
      local ok, back, made = msys.runInPool("CPU", function()
        return object:add(5), cls.new(10)
      end)
      assert.is_true(ok, tostring(back))
      assert.equal(object, back)
      assert.same({ true, true, 6, 10 }, { cls.is(object), cls.is(made), object:get(), made:get() })
    end)
  end

  it("one class share one metatable: 10,000 of them", function()
    local Point = {}
    Point.__index = Point
    function Point:get()
      return self.x
    end
    local function count(objects)
      local metas, kinds, sum = {}, 0, 0
      for _, object in ipairs(objects) do
        local meta = getmetatable(object)
        kinds = kinds + (metas[meta] and 0 or 1)
        metas[meta] = true
        sum = sum + object:get()
      end
      return #objects, kinds, sum
    end
    local objects = {}
    for i = 1, 10000 do
      objects[i] = setmetatable({ x = i }, Point)
    end
    assert.same({ 10000, 1, 50005000, true }, {
      run(function(arg)
        local n, kinds, sum = count(arg)
        return n, kinds, sum, getmetatable(arg[1]) == Point
      end, objects),
    })
    assert.same({ 10000, 1, 50005000 }, { count(echo(objects)) })
    local ok, made = msys.runInPool("CPU", function()
      local list = {}
      for i = 1, 10000 do
        list[i] = setmetatable({ x = i }, Point)
      end
      return list
    end)
    assert.is_true(ok, tostring(made))
    assert.same({ 10000, 1, 50005000 }, { count(made) })
    assert.equal(Point, getmetatable(made[1]))
  end)
end)

local CLASS_MODULE = [[
local Account = { opened = 0 }
Account.__index = Account
local bank = "the bank of " .. (_OSTLS and "a worker" or "the host")
function Account.new(balance)
  Account.opened = Account.opened + 1
  return setmetatable({ balance = balance }, Account)
end
function Account:deposit(n) self.balance = self.balance + n return self end
function Account.bank() return bank end
function Account.isInstance(object) return getmetatable(object) == Account end
Account.__eq = function(a, b) return a.balance == b.balance end
return Account
]]

describe("a class that is a module", function()
  after_each(helper.clean)

  --- Calls `fn` with the class, its module's name, and a pool.
  local function with_class(fn)
    local name = "spec_account"
    local path = package.path
    package.path = helper.folder { [name .. ".lua"] = CLASS_MODULE } .. "/?.lua;" .. path
    local ok, err = pcall(helper.with_pool, nil, function(pool)
      fn(require(name), name, pool)
    end)
    package.path = path
    package.loaded[name] = nil
    if not ok then error(err, 0) end
  end

  it("is the worker's own there, and its methods are", function()
    with_class(function(Account, name, pool)
      local account = Account.new(5)
      assert.same({ true, true, true, "the bank of a worker", 7, 0 }, {
        helper.must(pool, function()
          local own = require(name)
          return own == Account,
            getmetatable(account) == own,
            own.isInstance(account),
            account.bank(),
            account:deposit(2).balance,
            own.opened
        end),
      })
      assert.same({ "the bank of the host", 7, 1 }, { account.bank(), account.balance, Account.opened })
    end)
  end)

  it("knows objects that a job made", function()
    with_class(function(Account, name, pool)
      local made, list = helper.must(pool, function()
        local own = require(name)
        return own.new(3), { own.new(4), own.new(4) }
      end)
      assert.is_true(Account.isInstance(made))
      assert.is_true(Account.isInstance(list[2]))
      assert.is_true(list[1] == list[2])
      assert.equal(4, made:deposit(1).balance)
      assert.equal(0, Account.opened)
    end)
  end)

  it("may be the class of a class that is the script's", function()
    with_class(function(Account, _, pool)
      local Savings = setmetatable({}, { __index = Account })
      Savings.__index = Savings
      function Savings:interest()
        return self:deposit(self.balance)
      end
      local account = setmetatable({ balance = 8 }, Savings)
      local same, balance, bank = helper.must(pool, function()
        return account:interest(), account.balance, account.bank()
      end)
      assert.equal(account, same)
      assert.same({ 16, "the bank of a worker" }, { balance, bank })
      assert.equal(16, account.balance)
    end)
  end)
end)

describe("functions as objects", function()
  after_each(helper.clean)

  it("may have 250 constants of each kind", function()
    local numbers, texts = {}, {}
    for i = 1, 250 do
      numbers[i], texts[i] = i + 0.5, ("%q"):format("text " .. i)
    end
    local text = ("local n, t = { %s }, { %s } return function() return #n, n[250], #t, t[250], { %s } end"):format(
      table.concat(numbers, ", "),
      table.concat(texts, ", "),
      table.concat(numbers, " + 0 * x, ") .. " + 0 * x"
    )
    text = "local x = 1 " .. text
    local fn = assert(loadstring(text))()
    local function check(n, last, t, last_text, list)
      return n, last, t, last_text, #list, list[1], list[250]
    end
    assert.same({ 250, 250.5, 250, "text 250", 250, 1.5, 250.5 }, { check(run(fn)) })
    assert.same({ 250, 250.5, 250, "text 250", 250, 1.5, 250.5 }, { check(echo(fn)()) })
  end)

  it("may be made by hand: partial application, composition, memoizing", function()
    local function partial(fn, ...)
      local n, bound = select("#", ...), { ... }
      return function(...)
        local args = { unpack(bound, 1, n) }
        for i = 1, select("#", ...) do
          args[n + i] = (select(i, ...))
        end
        return fn(unpack(args, 1, n + select("#", ...)))
      end
    end
    local function compose(f, g)
      return function(...)
        return f(g(...))
      end
    end
    local function memoize(fn)
      local known, calls = {}, 0
      return function(x)
        if known[x] == nil then
          calls = calls + 1
          known[x] = fn(x)
        end
        return known[x], calls
      end
    end
    local function join(...)
      return table.concat({ ... }, "-")
    end
    local job = compose(string.upper, partial(partial(join, "a", "b"), "c"))
    local square = memoize(function(x)
      return x * x
    end)
    square(3)
    assert.same({ "A-B-C-D", 9, 1, 16, 2 }, {
      run(function()
        local nine, one = square(3)
        return job "d", nine, one, square(4)
      end),
    })
    assert.equal("A-B-C-E", echo(job) "e")
  end)

  it("may be iterators, which go on where they were", function()
    local function counter(n)
      local i = 0
      return function()
        if i < n then
          i = i + 1
          return i
        end
      end
    end
    local each = counter(5)
    each()
    each()
    local function rest(iterator)
      local sum = 0
      for i in iterator do
        sum = sum + i
      end
      return sum
    end
    assert.equal(12, (run(rest, each)))
    assert.equal(12, (run(function()
      return rest(each)
    end)))
    assert.equal(12, rest(echo(each)))
    -- As in place, it has been used up here.
    local ok, sum = msys.runInPool("CPU", function()
      return rest(each)
    end)
    assert.same({ true, 12, 0 }, { ok, sum, rest(each) })
  end)

  it("may be a generator's coroutine that a job makes, not one that the script has made", function()
    local function generator(n)
      return coroutine.wrap(function()
        for i = 1, n do
          coroutine.yield(i)
        end
      end)
    end
    assert.equal(6, (run(function()
      local sum = 0
      for i in generator(3) do
        sum = sum + i
      end
      return sum
    end)))
    local made = generator(3)
    local ok, text = pcall(run, function()
      return made()
    end)
    assert.is_false(ok)
    assert.matches("cannot send upvalue 'made' (C function found in no module)", text, 1, true)
    ok, text = pcall(run, function()
      return generator(3)
    end)
    assert.is_false(ok)
    -- There it is a Lua function of msys's around the coroutine.
    assert.equal("msys.runInPool: cannot send result 1 (coroutine)", text)
  end)

  it("may be visited in an event emitter that holds itself", function()
    local emitter = { handlers = {}, log = {} }
    function emitter.on(name, fn)
      local list = emitter.handlers[name] or {}
      emitter.handlers[name] = list
      list[#list + 1] = fn
      return emitter
    end
    function emitter.emit(name, ...)
      for _, fn in ipairs(emitter.handlers[name] or {}) do
        fn(emitter, ...)
      end
      return emitter
    end
    for i = 1, 50 do
      emitter.on("event", function(self, x)
        self.log[#self.log + 1] = i * x
      end)
    end
    assert.same({ 50, 100 }, {
      run(function(arg)
        assert(arg == emitter)
        emitter.on("event", function()
          emitter.last = true
        end)
        emitter.emit("event", 2)
        return emitter.last and #arg.log, arg.log[50]
      end, emitter),
    })
    local back = echo(emitter)
    back.emit("event", 3)
    assert.same({ 50, 0 }, { #back.log, #emitter.log })
  end)
end)
