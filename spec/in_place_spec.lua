-- What a job that somebody waits for leaves behind: what `pcall(closure)` would have left, in the caller's variables
-- and objects. Random programs are in in_place_property_spec.lua.

-- luacheck: globals msys_spec_a msys_spec_b msys_spec_fn msys_spec_list gcinfo

local ffi = require "ffi"
local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

--- Runs `fn` in a job with these arguments, and gives what it gives.
local function run(fn, ...)
  return helper.must("CPU", fn, ...)
end

--- What a failed job gives.
local function failed(fn)
  local ok, err, info = msys.runInPool("CPU", fn)
  assert.is_false(ok)
  return err, info
end

--- Runs `fn` in a job, and `meanwhile` here before its outcome is known.
local function with_meanwhile(fn, meanwhile)
  gate.holding(nil, function(pool, hold, open)
    gate.run(open, function()
      msys.spawn(function()
        gate.until_stat(pool, { job_num_running = 1 })
        meanwhile()
        open()
      end)
      helper.must(pool, function()
        hold()
        fn()
      end)
    end)
  end)
end

local made = 0

--- Calls `fn` with the name of a new module that has this text, which is found meanwhile, and with a pool whose workers
--- have not loaded it.
local function with_module(text, fn)
  made = made + 1
  local name = ("msys_spec_in_place_%d_%d"):format(helper.pid(), made)
  local path = package.path
  package.path = helper.folder { [name .. ".lua"] = text } .. "/?.lua;" .. path
  local ok, err = pcall(helper.with_pool, nil, function(pool)
    fn(name, pool)
  end)
  package.path = path
  package.loaded[name] = nil
  if not ok then error(err, 0) end
end

local function forget_globals()
  for _, name in ipairs { "msys_spec_a", "msys_spec_b", "msys_spec_fn", "msys_spec_list" } do
    _G[name] = nil
  end
end

describe("an upvalue that a job assigns", function()
  after_each(helper.clean)

  local values = {
    ["a number"] = 42.5,
    ["minus zero"] = -1 / math.huge,
    ["a string"] = "a\0b",
    ["a boolean"] = true,
    ["a library's function"] = string.rep,
    ["a module"] = msys,
    ["the globals"] = _G,
  }
  for name, value in pairs(values) do
    it("may become " .. name, function()
      local variable = "before"
      run(function()
        variable = value
      end)
      assert.equal(value, variable)
      assert.equal(1 / (tonumber(value) or 1), 1 / (tonumber(variable) or 1))
    end)
  end

  it("may become nil", function()
    local variable = "before"
    run(function()
      variable = nil
    end)
    assert.is_nil(variable)
  end)

  it("may become NaN", function()
    local variable = 1
    run(function()
      variable = 0 / 0
    end)
    assert.is_true(variable ~= variable)
  end)

  it("may change its sign at zero", function()
    local variable = 0
    run(function()
      variable = -variable
    end)
    assert.equal(-math.huge, 1 / variable)
  end)

  it("may become a table of the job's", function()
    local variable
    run(function()
      variable = { 1, { 2 } }
    end)
    assert.same({ 1, { 2 } }, variable)
  end)

  it("may become a table of the caller's", function()
    local list, variable = {}, nil
    run(function()
      variable = list
    end)
    assert.equal(list, variable)
  end)

  it("may become a function of the job's", function()
    local variable
    run(function()
      variable = function(x)
        return x + 1
      end
    end)
    assert.equal(3, variable(2))
  end)

  it("may become a function of the caller's", function()
    local function fn() end
    local variable
    run(function()
      variable = fn
    end)
    assert.equal(fn, variable)
  end)

  it("may be assigned by a function that the job's code makes", function()
    local a, b = 1, 1
    run(function()
      local function outer()
        a = 2
        return function()
          b = 2
        end
      end
      outer()()
    end)
    assert.same({ 2, 2 }, { a, b })
  end)

  it("may be assigned by another function that was sent", function()
    local count = 0
    local function add(n)
      count = count + n
    end
    local object = { add = add }
    run(function()
      add(1)
      object.add(10)
    end)
    assert.equal(11, count)
  end)

  it("may be assigned by a function that nothing else is sent with", function()
    local count = 0
    local function job()
      count = count + 1
    end
    run(job)
    assert.equal(1, count)
  end)

  it("may be assigned in a coroutine of the job's", function()
    local sum = 0
    run(function()
      for n in
        coroutine.wrap(function()
          for n = 1, 3 do
            sum = sum + n
            coroutine.yield(n)
          end
        end)
      do
        sum = sum + n * 10
      end
    end)
    assert.equal(66, sum)
  end)

  it("is seen by all functions of the caller's, those too that stay there", function()
    local value = 1
    local function sent()
      return value
    end
    local function sent_too(new)
      if new then value = new end
      return value
    end
    local function stays()
      return value
    end
    run(function()
      sent_too(2)
      return sent()
    end)
    assert.same({ 2, 2, 2, 2 }, { value, sent(), sent_too(), stays() })
    value = 3
    assert.same({ 3, 3, 3 }, { sent(), sent_too(), stays() })
  end)

  it("may belong to a function that has returned", function()
    local function counter()
      local n = 0
      return function()
        n = n + 1
        return n
      end
    end
    local one, two = counter(), counter()
    two()
    assert.same({ 1, 2 }, { run(one), run(two) })
    run(one)
    assert.same({ 3, 3 }, { one(), two() })
  end)

  it("may be local to a loop, one for each turn", function()
    local functions = {}
    for i = 1, 3 do
      local n = i
      functions[i] = function()
        n = n * 10
        return n
      end
    end
    run(functions[2])
    assert.same({ 10, 200, 30 }, { functions[1](), functions[2](), functions[3]() })
  end)

  it("has its value in a loop that is compiled here", function()
    local n = 0
    for i = 1, 200 do
      run(function()
        n = n + 1
      end)
      if n ~= i then error(("%d after %d"):format(n, i)) end
    end
    assert.equal(200, n)
  end)

  it("may belong to a coroutine that is not a session", function()
    local got = coroutine.wrap(function()
      local n = 1
      run(function()
        n = n + 1
      end)
      return n
    end)()
    assert.equal(2, got)
  end)

  it("stays as it is if the job assigns a local variable of that name", function()
    local value = 1
    run(function()
      local function fn(value) -- luacheck: ignore 431
        value = value + 1
        return value
      end
      return fn(value)
    end)
    assert.equal(1, value)
  end)

  it("may be set by debug.setupvalue", function()
    local value = 1
    local function fn(new)
      if new then value = new end
      return value
    end
    run(function()
      debug.setupvalue(fn, 1, 2)
    end)
    assert.equal(2, value)
  end)
end)

--- Fills the table, in order: so that the keys from 1 on lie in its array.
local function list_of(...)
  return { ... }
end

-- What a job does to a table of the caller's, and what is in it then.
local CHANGES = {
  ["has a new key"] = {
    { a = 1 },
    function(t)
      t.b = 2
    end,
    { a = 1, b = 2 },
  },
  ["has another value"] = {
    { a = 1, b = 1 },
    function(t)
      t.b = "other"
    end,
    { a = 1, b = "other" },
  },
  ["has another value of the same text"] = {
    { a = 1 },
    function(t)
      t.a = "1"
    end,
    { a = "1" },
  },
  ["has false for a key that had nil, and the other way round"] = {
    { b = false },
    function(t)
      t.a, t.b = false, nil
    end,
    { a = false },
  },
  ["has lost a key"] = {
    { a = 1, b = 2 },
    function(t)
      t.a = nil
    end,
    { b = 2 },
  },
  ["has lost all keys"] = {
    { 1, 2, a = 1, [true] = 2 },
    function(t)
      for key in pairs(t) do
        t[key] = nil
      end
    end,
    {},
  },
  ["has lost a key and got another"] = {
    { a = 1, b = 2 },
    function(t)
      t.a, t.c = nil, 3
    end,
    { b = 2, c = 3 },
  },
  ["has keys of all kinds"] = {
    {},
    function(t)
      t[1.5], t[-1], t[0], t[true], t[false], t[math.huge], t[2 ^ 53] = 1, 2, 3, 4, 5, 6, 7
      t[string.rep], t[string] = 8, 9
    end,
    {
      [1.5] = 1,
      [-1] = 2,
      [0] = 3,
      [true] = 4,
      [false] = 5,
      [math.huge] = 6,
      [2 ^ 53] = 7,
      [string.rep] = 8,
      [string] = 9,
    },
  },
  ["has lost keys of all kinds"] = {
    { [1.5] = 1, [-1] = 2, [0] = 3, [true] = 4, [math.huge] = 6, [string.rep] = 8, [string] = 9, a = 1 },
    function(t)
      t[1.5], t[-1], t[0], t[true], t[math.huge], t[string.rep], t[string] = nil, nil, nil, nil, nil, nil, nil
    end,
    { a = 1 },
  },
  ["has more items"] = {
    list_of(1, 2),
    function(t)
      for i = 1, 10 do
        t[#t + 1] = i
      end
    end,
    { 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 },
  },
  ["has items where none were"] = {
    {},
    function(t)
      for i = 10, 1, -1 do
        t[i] = i
      end
    end,
    { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 },
  },
  ["has an item before the others"] = {
    list_of(1, 2, 3),
    function(t)
      table.insert(t, 1, 0)
    end,
    { 0, 1, 2, 3 },
  },
  ["has lost its first item"] = {
    list_of(1, 2, 3),
    function(t)
      table.remove(t, 1)
    end,
    { 2, 3 },
  },
  ["has lost its last items"] = {
    list_of(1, 2, 3),
    function(t)
      table.remove(t)
      table.remove(t)
    end,
    { 1 },
  },
  ["has a hole"] = {
    list_of(1, 2, 3),
    function(t)
      t[2] = nil
    end,
    { 1, nil, 3 },
  },
  ["has a hole no more"] = {
    list_of(1, nil, 3),
    function(t)
      t[2] = 2
    end,
    { 1, 2, 3 },
  },
  ["has another order"] = {
    list_of(3, 1, 2),
    function(t)
      table.sort(t)
    end,
    { 1, 2, 3 },
  },
  ["has its texts joined"] = {
    list_of("a", "b"),
    function(t)
      t[1], t[2] = table.concat(t, "-"), nil
    end,
    { "a-b" },
  },
  ["has keys that were deleted while they were walked"] = {
    { a = 1, b = 2, c = 3, d = 4, e = 5, f = 6 },
    function(t)
      for key, value in pairs(t) do
        if value % 2 == 0 then
          t[key] = nil
        else
          t[key] = -value
        end
      end
    end,
    { a = -1, c = -3, e = -5 },
  },
  ["has what was removed and put back"] = {
    { a = 1, b = 2 },
    function(t)
      t.a = nil
      for i = 1, 100 do
        t[i] = i
      end
      for i = 1, 100 do
        t[i] = nil
      end
      t.a = 1
    end,
    { a = 1, b = 2 },
  },
  ["has more string keys than a message numbers"] = {
    {},
    function(t)
      for i = 1, 300 do
        t["key" .. i] = { ["key" .. i] = i }
      end
    end,
    (function()
      local t = {}
      for i = 1, 300 do
        t["key" .. i] = { ["key" .. i] = i }
      end
      return t
    end)(),
  },
}

describe("a table that a job was sent", function()
  after_each(helper.clean)

  for name, case in pairs(CHANGES) do
    it(name .. " if it was so changed", function()
      local start, change, expected = unpack(case)
      local function copied(tbl)
        local copy = {}
        for key, value in pairs(tbl) do
          copy[key] = value
        end
        return copy
      end
      local in_upvalue, in_args, in_place = copied(start), copied(start), copied(start)
      run(function(arg)
        change(in_upvalue)
        change(arg)
      end, in_args)
      change(in_place)
      assert.same(expected, in_place)
      assert.same(expected, in_upvalue)
      assert.same(expected, in_args)
      assert.equal(#in_place, #in_upvalue)
    end)
  end

  -- Where a table may be found, given it.
  local places = {
    ["in an upvalue"] = function(t)
      return function(fn)
        return fn(t)
      end
    end,
    ["in another table"] = function(t)
      local outer = { { inner = t } }
      return function(fn)
        return fn(outer[1].inner)
      end
    end,
    ["as a key"] = function(t)
      local outer = { [t] = true }
      return function(fn)
        return fn((next(outer)))
      end
    end,
    ["as a metatable"] = function(t)
      local object = setmetatable({}, t)
      return function(fn)
        return fn(getmetatable(object))
      end
    end,
    ["behind a metatable's __index"] = function(t)
      local object = setmetatable({}, { __index = { inner = t } })
      return function(fn)
        return fn(object.inner)
      end
    end,
    ["in an upvalue of a function"] = function(t)
      local function get()
        return t
      end
      local functions = { get }
      return function(fn)
        return fn(functions[1]())
      end
    end,
    ["as the environment of a function"] = function(t)
      local inner = setfenv(function() end, t)
      return function(fn)
        return fn(debug.getfenv(inner))
      end
    end,
    ["in a global"] = function(t)
      msys_spec_a = { t }
      return function(fn)
        return fn(msys_spec_a[1])
      end
    end,
    ["in an upvalue of a global function"] = function(t)
      function msys_spec_fn()
        return t
      end
      return function(fn)
        return fn(msys_spec_fn())
      end
    end,
    ["below 1,000 others"] = function(t)
      local outer = t
      for _ = 1, 1000 do
        outer = { outer }
      end
      return function(fn)
        local inner = outer
        for _ = 1, 1000 do
          inner = inner[1]
        end
        return fn(inner)
      end
    end,
    ["below 1,000 functions"] = function(t)
      local function get()
        return t
      end
      for _ = 1, 1000 do
        local inner = get
        get = function()
          return inner
        end
      end
      return function(fn)
        local inner = get
        while type(inner) == "function" do
          inner = inner()
        end
        return fn(inner)
      end
    end,
  }
  for name, place in pairs(places) do
    it("is changed where the job found it " .. name, function()
      local tbl = { old = 1, removed = 1, 1, 2 }
      local with = place(tbl)
      local got = run(function()
        return with(function(t)
          t.new, t.removed, t[3] = { t }, nil, 3
          return t
        end)
      end)
      forget_globals()
      assert.equal(tbl, got)
      assert.equal(tbl, tbl.new[1])
      tbl.new = nil
      assert.same({ 1, 2, 3, old = 1 }, tbl)
    end)
  end

  it("is one table, however many ways lead to it", function()
    local tbl = {}
    local a, b = { tbl }, { [tbl] = tbl }
    run(function(arg)
      a[1].one = 1
      b[tbl].two = 2
      arg.three = 3
    end, tbl)
    assert.same({ one = 1, two = 2, three = 3 }, tbl)
    assert.equal(tbl, a[1])
    assert.equal(tbl, b[tbl])
  end)

  it("is changed also where the job took it out of what held it", function()
    local outer = { inner = { 1 } }
    local inner = outer.inner
    run(function()
      local t = outer.inner
      outer.inner = nil
      t[2] = 2
    end)
    assert.is_nil(outer.inner)
    assert.same({ 1, 2 }, inner)
  end)

  it("is the caller's own where the job has put it", function()
    local a, b, c = { name = "a" }, { name = "b" }, { name = "c" }
    a.to = b
    run(function()
      b.to, a.to, c[a], c[1] = a, c, b, { a, b }
    end)
    assert.equal(a, b.to)
    assert.equal(c, a.to)
    assert.equal(b, c[a])
    assert.equal(a, c[1][1])
    assert.equal(b, c[1][2])
  end)

  it("may swap places with another", function()
    local a, b = { 1 }, { 2 }
    local pair = { a, b }
    run(function()
      pair[1], pair[2] = pair[2], pair[1]
    end)
    assert.equal(b, pair[1])
    assert.equal(a, pair[2])
    assert.same({ { 2 }, { 1 } }, pair)
  end)

  it("may be sorted with its tables", function()
    local objects, list = {}, {}
    for i = 1, 100 do
      objects[i] = { key = i * 37 % 101 }
      list[i] = objects[i]
    end
    run(function()
      table.sort(list, function(a, b)
        return a.key < b.key
      end)
    end)
    table.sort(objects, function(a, b)
      return a.key < b.key
    end)
    for i = 1, 100 do
      assert.equal(objects[i], list[i])
    end
  end)

  it("is replaced by another also if the two are equal to each other", function()
    local meta = {
      __eq = function()
        return true
      end,
    }
    local one, two = setmetatable({}, meta), setmetatable({}, meta)
    local list = { one }
    run(function()
      list[1] = two
    end)
    assert.is_true(rawequal(two, list[1]))
  end)

  it("may get a metatable, lose it, or have another", function()
    local first, second = { __index = { value = "first" } }, { __index = { value = "second" } }
    local gets, loses, changes = {}, setmetatable({}, first), setmetatable({}, first)
    run(function()
      setmetatable(gets, second)
      setmetatable(loses, nil)
      setmetatable(changes, second)
    end)
    assert.equal(second, getmetatable(gets))
    assert.is_nil(getmetatable(loses))
    assert.equal(second, getmetatable(changes))
    assert.equal("second", gets.value)
  end)

  it("may get a metatable of the job's", function()
    local one, two = {}, {}
    run(function()
      local meta = {
        __index = function(_, key)
          return key .. "!"
        end,
      }
      setmetatable(one, meta)
      setmetatable(two, meta)
    end)
    assert.equal("key!", one.key)
    assert.equal(getmetatable(one), getmetatable(two))
  end)

  it("may become its own metatable", function()
    local class = { value = 1 }
    run(function()
      class.__index = class
      setmetatable(class, class)
    end)
    assert.equal(class, getmetatable(class))
    assert.equal(class, class.__index)
  end)

  it("may have a metatable whose contents change", function()
    local meta = { __index = { value = 1 } }
    local object = setmetatable({}, meta)
    assert.is_nil(object.missing)
    run(function()
      meta.__index.value = 2
      meta.__call = function(_, x)
        return x * 2
      end
    end)
    assert.equal(meta, getmetatable(object))
    assert.equal(2, object.value)
    assert.equal(6, object(3))
  end)

  it("may have a metatable that is locked", function()
    local object = setmetatable({}, { __metatable = "locked" })
    run(function()
      object.value = 1
      debug.setmetatable(object, nil)
    end)
    assert.is_nil(getmetatable(object))
    assert.equal(1, object.value)
  end)

  it("has its changes without a call of metamethods", function()
    local calls = 0
    local meta = {}
    function meta.__newindex(t, key, value)
      calls = calls + 1
      rawset(t, key, value)
    end
    function meta.__index()
      calls = calls + 1
    end
    local object = setmetatable({ old = 1 }, meta)
    run(function()
      -- One call, in the job.
      object.new = 1
      rawset(object, "raw", 2)
      object.old = nil
    end)
    assert.same({ 1, 1, 2 }, { calls, rawget(object, "new"), rawget(object, "raw") })
    assert.is_nil(rawget(object, "old"))
  end)

  it("may be weak", function()
    local key, value = {}, {}
    local by_key, by_value = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "v" })
    by_key[key], by_value.old = 1, value
    run(function()
      by_key[key], by_key[value] = 2, { "new" }
      by_value.new = key
      by_value.lost, by_key[{}] = {}, true
      collectgarbage()
    end)
    collectgarbage()
    assert.equal(2, by_key[key])
    assert.same({ "new" }, by_key[value])
    assert.equal(value, by_value.old)
    assert.equal(key, by_value.new)
    assert.is_nil(by_value.lost)
    by_key[key], by_key[value] = nil, nil
    assert.is_nil((next(by_key)))
  end)

  it("may have 100,000 items of which one changes", function()
    local list = {}
    for i = 1, 100000 do
      list[i] = i
    end
    run(function()
      list[77777] = "changed"
    end)
    for i = 1, 100000 do
      if list[i] ~= (i == 77777 and "changed" or i) then
        error(("item %d is %s"):format(i, tostring(list[i])))
      end
    end
    assert.equal(100000, #list)
  end)

  it("may have 100,000 items that all change", function()
    local list = {}
    for i = 1, 100000 do
      list[i] = i
    end
    run(function()
      table.insert(list, 1, 0)
    end)
    local place = 0
    for i, value in ipairs(list) do
      place = i
      if value ~= i - 1 then error(("item %d is %s"):format(i, tostring(value))) end
    end
    assert.equal(100001, place)
  end)

  it("may have 100,000 string keys of which every second one is removed", function()
    local tbl = {}
    for i = 1, 100000 do
      tbl["key" .. i] = i
    end
    run(function()
      for key, value in pairs(tbl) do
        if value % 2 == 0 then tbl[key] = nil end
      end
    end)
    local count = 0
    for key, value in pairs(tbl) do
      count = count + 1
      if value % 2 == 0 then error(key) end
    end
    assert.equal(50000, count)
  end)

  it("may hold 100,000 others, nested in each other, of which the last changes", function()
    local top = {}
    local bottom = top
    for _ = 1, 100000 do
      bottom.next = {}
      bottom = bottom.next
    end
    run(function()
      local at = top
      while at.next do
        at = at.next
      end
      at.value, at.next = "bottom", { top }
    end)
    assert.equal("bottom", bottom.value)
    assert.equal(top, bottom.next[1])
  end)

  it("may get 100,000 others, nested in each other", function()
    local top = {}
    run(function()
      local at = top
      for _ = 1, 100000 do
        at.next = {}
        at = at.next
      end
      at.next = top
    end)
    local at, count = top.next, 0
    while at ~= top do
      at, count = at.next, count + 1
    end
    assert.equal(100000, count)
  end)

  it("keeps the order of its items, for ipairs and for next", function()
    local list = { "a", "b" }
    run(function()
      for i = 20, 3, -1 do
        list[i] = ("item %d"):format(i)
      end
      table.remove(list, 1)
      table.insert(list, "last")
    end)
    local expected = { "b" }
    for i = 2, 19 do
      expected[i] = ("item %d"):format(i + 1)
    end
    expected[20] = "last"
    local seen = {}
    for i, value in ipairs(list) do
      seen[i] = value
    end
    assert.same(expected, seen)
    assert.equal(20, #list)
  end)

  it("may lose the key at which the caller walks it", function()
    local tbl, seen = { a = 1, b = 2, c = 3, d = 4 }, 0
    for key, value in pairs(tbl) do
      run(function()
        tbl[key] = nil
      end)
      seen = seen + value
    end
    assert.equal(10, seen)
    assert.is_nil((next(tbl)))
  end)
end)

describe("what a job makes and leaves in the caller's objects", function()
  after_each(helper.clean)

  it("is one object wherever it stands", function()
    local a, b, variable = {}, {}, nil
    local meta = {}
    local object = setmetatable({}, meta)
    local result = run(function()
      local new = {}
      a.new, b[new], variable, meta.__index = new, true, new, new
      return new
    end)
    assert.equal(result, a.new)
    assert.is_true(b[result])
    assert.equal(result, variable)
    assert.equal(result, meta.__index)
    result.field = 1
    assert.equal(1, object.field)
  end)

  it("may be a cycle that goes through the caller's", function()
    local mine = {}
    run(function()
      local new = { back = mine }
      new.self = new
      mine.new = new
    end)
    assert.equal(mine, mine.new.back)
    assert.equal(mine.new, mine.new.self)
  end)

  it("may be functions that share a cell with each other", function()
    local object, list = {}, {}
    local read = run(function()
      local n = 0
      function object.add()
        n = n + 1
      end
      list[1] = function()
        n = n * 10
      end
      return function()
        return n
      end
    end)
    object.add()
    list[1]()
    object.add()
    assert.equal(11, read())
  end)

  it("may be a function that shares a cell with the caller", function()
    local count, object = 0, {}
    local function read()
      return count
    end
    run(function()
      count = 1
      function object.add()
        count = count + 1
      end
    end)
    assert.equal(1, count)
    object.add()
    assert.same({ 2, 2 }, { count, read() })
    count = 10
    object.add()
    assert.same({ 11, 11 }, { count, read() })
  end)

  it("may be a result that shares a cell which the job assigns", function()
    local count = 0
    local add, read = run(function()
      count = 1
      return function()
        count = count + 1
      end, function()
        return count
      end
    end)
    add()
    assert.same({ 2, 2 }, { count, read() })
    count = 5
    assert.equal(5, read())
  end)

  it("may be a result that shares a cell which only the caller assigns", function()
    local count = 0
    local read = run(function()
      return function()
        return count
      end
    end)
    count = 1
    assert.equal(1, read())
  end)

  it("may be a result that shares a cell which only it assigns", function()
    local count = 0
    local add = run(function()
      return function()
        count = count + 1
      end
    end)
    add()
    assert.equal(1, count)
  end)

  it("may be an error that shares a cell", function()
    local count = 0
    local add = failed(function()
      error(function()
        count = count + 1
      end)
    end)
    add()
    assert.equal(1, count)
  end)

  it("may be a function that shares a cell of another that was sent", function()
    local function counter()
      local n = 0
      local function add()
        n = n + 1
        return n
      end
      -- Makes functions of the cell `n`.
      return add,
        function()
          return function()
            n = n + 10
            return n
          end
        end
    end
    local add, make = counter()
    local object = {}
    run(function()
      add()
      object.fn = make()
    end)
    assert.equal(11, object.fn())
    assert.equal(12, add())
  end)

  it("may be a method that refers to the object it is in", function()
    local object = { n = 1 }
    run(function()
      function object.twice()
        object.n = object.n * 2
        return object
      end
    end)
    assert.equal(object, object.twice())
    assert.equal(2, object.n)
  end)

  it("may be a key", function()
    local set = {}
    local key = run(function()
      local new = { "a key" }
      set[new] = "value"
      return new
    end)
    assert.equal("value", set[key])
  end)

  it("may be a class with its objects", function()
    local objects = {}
    local class = run(function()
      local class = {}
      class.__index = class
      function class.value(self)
        return self[1]
      end
      for i = 1, 3 do
        objects[i] = setmetatable({ i }, class)
      end
      return class
    end)
    assert.equal(class, getmetatable(objects[3]))
    assert.equal(2, objects[2]:value())
  end)
end)

describe("a result that is the caller's own", function()
  after_each(helper.clean)

  it("is that table and no copy", function()
    local a, b = {}, {}
    local list = { a }
    local one, two, three = run(function(arg)
      return arg, list[1], { b }
    end, b)
    assert.equal(b, one)
    assert.equal(a, two)
    assert.equal(b, three[1])
  end)

  it("is that function and no copy", function()
    local function fn() end
    local function method() end
    local object = { method = method }
    local one, two, three = run(function(arg)
      return fn, object.method, arg
    end, method)
    assert.same({ fn, method, method }, { one, two, three })
  end)

  it("is the job's closure and no copy", function()
    local function fn()
      return fn
    end
    assert.equal(fn, (run(fn)))
  end)

  it("is the job's closure and no copy, where there is more", function()
    local list = {}
    local function fn()
      list[1] = fn
      return fn
    end
    assert.equal(fn, (run(fn)))
    assert.equal(fn, list[1])
  end)

  it("is that FFI array and no copy", function()
    local array = ffi.new("int[2]", 1, 2)
    assert.is_true(rawequal(array, (run(function()
      return array
    end))))
  end)

  it("is a copy with in_place = false", function()
    local list = {}
    local _, back = msys.runInPool("CPU", function()
      return list
    end, { in_place = false })
    assert.not_equal(list, back)
  end)
end)

describe("the environment of a function", function()
  after_each(helper.clean)

  it("is what the job has made it", function()
    local env = {}
    local function fn()
      return value -- luacheck: ignore
    end
    run(function()
      setfenv(fn, env)
      env.value = 1
    end)
    assert.equal(env, getfenv(fn))
    assert.equal(1, fn())
  end)

  it("is one of the job's for all that got it", function()
    local function set(x)
      value = x -- luacheck: ignore
    end
    local function get()
      return value -- luacheck: ignore
    end
    run(function()
      local env = {}
      setfenv(set, env)
      setfenv(get, env)
    end)
    set(5)
    assert.equal(5, get())
    assert.is_nil(rawget(_G, "value"))
  end)

  it("is the globals again if the job made it so", function()
    local fn = setfenv(function() end, {})
    run(function()
      setfenv(fn, _G)
    end)
    assert.equal(_G, getfenv(fn))
  end)

  it("may be that of the job's closure", function()
    local function job()
      setfenv(1, { value = 1 })
      value = value + 1 -- luacheck: ignore
    end
    run(job)
    assert.same({ value = 2 }, getfenv(job))
  end)

  it("has what functions assign in it", function()
    local env = {}
    local function fn()
      assigned = 1 -- luacheck: ignore
    end
    setfenv(fn, env)
    run(fn)
    assert.same({ assigned = 1 }, env)
    assert.is_nil(rawget(_G, "assigned"))
  end)
end)

describe("a global that a job assigns", function()
  after_each(function()
    forget_globals()
    helper.clean()
  end)

  it("is new here if it was not there", function()
    run(function()
      msys_spec_a = 1
    end)
    assert.equal(1, msys_spec_a)
  end)

  it("has another value if it was there", function()
    msys_spec_a, msys_spec_b = 1, false
    run(function()
      msys_spec_a = msys_spec_a + 1
      msys_spec_b = not msys_spec_b
    end)
    assert.same({ 2, true }, { msys_spec_a, msys_spec_b })
  end)

  it("is gone if it became nil", function()
    msys_spec_a = 1
    run(function()
      msys_spec_a = nil
    end)
    assert.is_nil(rawget(_G, "msys_spec_a"))
  end)

  it("is gone if it became nil and had not come along", function()
    msys_spec_a = io.stdout
    run(function()
      msys_spec_a = nil
    end)
    assert.is_nil(rawget(_G, "msys_spec_a"))
  end)

  it("is replaced also if it could not come along", function()
    msys_spec_a = io.stdout
    run(function()
      msys_spec_a = 1
    end)
    assert.equal(1, msys_spec_a)
  end)

  it("may be assigned by a global function that came along", function()
    function msys_spec_fn(n)
      msys_spec_a = (msys_spec_a or 0) + n
    end
    run(function()
      msys_spec_fn(1)
      msys_spec_fn(10)
    end)
    assert.equal(11, msys_spec_a)
    local fn = msys_spec_fn
    run(fn, 5)
    assert.equal(16, msys_spec_a)
  end)

  it("may be assigned by a function in a table", function()
    local object = {
      method = function()
        msys_spec_a = "by method"
      end,
    }
    run(function()
      object.method()
    end)
    assert.equal("by method", msys_spec_a)
  end)

  it("may become a function, which sees the globals here", function()
    run(function()
      function msys_spec_fn()
        msys_spec_a = msys_spec_b
      end
    end)
    msys_spec_b = "here"
    msys_spec_fn()
    assert.equal("here", msys_spec_a)
    assert.equal(_G, getfenv(msys_spec_fn))
  end)

  it("may become a function that shares a cell with the caller", function()
    local count = 0
    run(function()
      function msys_spec_fn()
        count = count + 1
      end
    end)
    msys_spec_fn()
    assert.equal(1, count)
  end)

  it("may become a table of the caller's", function()
    local list = {}
    msys_spec_a = { list }
    local outer = msys_spec_a
    run(function()
      msys_spec_b, msys_spec_a = msys_spec_a, msys_spec_a[1]
    end)
    assert.equal(list, msys_spec_a)
    assert.equal(outer, msys_spec_b)
  end)

  local ways = {
    ["as a field of _G"] = function()
      _G.msys_spec_a = 1
    end,
    ["by rawset"] = function()
      rawset(_G, "msys_spec_a", 1)
    end,
    ["by a name that it computes"] = function()
      _G["msys_spec_" .. "a"] = 1
    end,
    ["in the environment of its closure"] = function()
      getfenv(1).msys_spec_a = 1
    end,
    ["in code that it loads"] = function()
      assert(loadstring "msys_spec_a = 1")()
    end,
    ["in code that it loads from a function"] = function()
      local text = "msys_spec_a = 1"
      assert(load(function()
        local piece = text
        text = nil
        return piece
      end))()
    end,
  }
  for name, way in pairs(ways) do
    it("may be assigned " .. name, function()
      -- The job's `assert`.
      setfenv(way, _G)
      run(way)
      assert.equal(1, rawget(_G, "msys_spec_a"))
    end)
  end

  it("may be one that every VM has", function()
    local old = gcinfo
    local seen = run(function()
      gcinfo = "changed" -- luacheck: ignore
      return gcinfo
    end)
    local new = gcinfo
    gcinfo = old
    assert.same({ "changed", "changed" }, { seen, new })
    assert.equal(
      "function",
      run(function()
        return type(gcinfo)
      end)
    )
  end)

  it("may be one that every VM has, and become nil", function()
    local old = gcinfo
    local seen = run(function()
      gcinfo = nil -- luacheck: ignore
      return gcinfo
    end)
    local new = gcinfo
    gcinfo = old
    assert.is_nil(seen)
    assert.is_nil(new)
    assert.equal(
      "function",
      run(function()
        return type(gcinfo)
      end)
    )
  end)

  it("is not one of the worker's that it reads", function()
    helper.with_pool({
      init = function()
        msys_spec_a, msys_spec_b = "there", { "there" }
      end,
    }, function(pool)
      msys_spec_a, msys_spec_b = "here", { "here" }
      for name, job in pairs {
        ["by its name"] = function()
          return msys_spec_a, msys_spec_b[1]
        end,
        ["in _G"] = function()
          return _G.msys_spec_a, _G.msys_spec_b[1]
        end,
        ["by its name, where _G is named too"] = function()
          return _G and msys_spec_a, msys_spec_b[1]
        end,
      } do
        assert.same({ "there", "there" }, { helper.must(pool, job) }, name)
        assert.same({ "here", { "here" } }, { msys_spec_a, msys_spec_b }, name)
      end
    end)
  end)

  it("is the only one that changes here", function()
    local before = {}
    for name, value in pairs(_G) do
      before[name] = value
    end
    run(function()
      local names = {}
      for name in pairs(_G) do
        names[#names + 1] = name
      end
      msys.sleep(0)
      _TLS.x, _OSTLS.msys_spec = 1, nil
      _G.msys_spec_a = #names > 0
    end)
    before.msys_spec_a = true
    for name, value in pairs(_G) do
      assert.equal(before[name], value, name)
    end
    for name, value in pairs(before) do
      assert.equal(rawget(_G, name), value, name)
    end
  end)

  it("is assigned here without a call of metamethods", function()
    local calls = 0
    setmetatable(_G, {
      __newindex = function(t, name, value)
        calls = calls + 1
        rawset(t, name, value)
      end,
    })
    local ok, err = pcall(run, function()
      msys_spec_a = 1
    end)
    setmetatable(_G, nil)
    assert.is_true(ok, err)
    assert.same({ 0, 1 }, { calls, msys_spec_a })
  end)

  it("stays the job's own if the job is not waited for", function()
    msys_spec_a = 1
    msys.runInPool("CPU", function()
      msys_spec_a, msys_spec_b = 2, 2
    end, true)
    msys.run()
    assert.equal(1, msys_spec_a)
    assert.is_nil(msys_spec_b)
  end)
end)

describe("a global table", function()
  after_each(function()
    forget_globals()
    helper.clean()
  end)

  it("is changed in place", function()
    msys_spec_list = { 1, { 2 } }
    local list, inner = msys_spec_list, msys_spec_list[2]
    run(function()
      msys_spec_list[3] = 3
      table.insert(msys_spec_list[2], "new")
    end)
    assert.equal(list, msys_spec_list)
    assert.equal(inner, list[2])
    assert.same({ 1, { 2, "new" }, 3 }, list)
  end)

  it("is changed in place by a global function", function()
    msys_spec_list = {}
    local list = msys_spec_list
    function msys_spec_fn(value)
      msys_spec_list[#msys_spec_list + 1] = value
    end
    run(function()
      msys_spec_fn "a"
      msys_spec_fn "b"
    end)
    assert.equal(list, msys_spec_list)
    assert.same({ "a", "b" }, list)
  end)
end)

describe("an FFI object that a job was sent", function()
  after_each(helper.clean)

  ffi.cdef [[
    struct msys_spec_in_place { int x; double y[2]; struct { uint8_t a; } in; };
    union msys_spec_in_place_union { int i; float f; };
    typedef int msys_spec_in_place_array[3];
  ]]
  local function declare()
    require("ffi").cdef [[
      struct msys_spec_in_place { int x; double y[2]; struct { uint8_t a; } in; };
      union msys_spec_in_place_union { int i; float f; };
      typedef int msys_spec_in_place_array[3];
    ]]
  end

  local arrays = { "int[3]", "double[3]", "int64_t[3]", "msys_spec_in_place_array", "float[?]" }
  for _, name in ipairs(arrays) do
    it("is changed in place if it is an array " .. name, function()
      local array = name:find "?" and ffi.new(name, 3) or ffi.new(name)
      array[0], array[1], array[2] = 1, 2, 3
      local same = array
      local holder = { array }
      helper.with_pool({ init = declare }, function(pool)
        helper.must(pool, function()
          holder[1][1] = 7
        end)
      end)
      assert.is_true(rawequal(same, holder[1]))
      assert.same({ 1, 7, 3 }, { tonumber(array[0]), tonumber(array[1]), tonumber(array[2]) })
    end)
  end

  it("is changed in place if it is a struct, a union, or an array of them", function()
    local struct = ffi.new "struct msys_spec_in_place"
    local union = ffi.new "union msys_spec_in_place_union"
    local list = ffi.new "struct msys_spec_in_place[2]"
    helper.with_pool({ init = declare }, function(pool)
      helper.must(pool, function()
        struct.x, struct.y[1] = 1, 2.5
        struct["in"].a = 3
        union.f = 0.5
        list[1].x = 4
      end)
    end)
    assert.same({ 1, 2.5, 3, 0.5, 4 }, { struct.x, struct.y[1], struct["in"].a, union.f, list[1].x })
  end)

  it("is replaced in an upvalue if it is a number", function()
    local count = 1LL
    run(function()
      count = count + 1
    end)
    assert.equal("2LL", tostring(count))
  end)
end)

describe("after an error", function()
  after_each(helper.clean)

  it("the changes up to it stay", function()
    local n, list = 0, {}
    local err = failed(function()
      n, list[1] = 1, "before"
      error "here"
      n, list[1] = 2, "after" -- luacheck: ignore 511
    end)
    assert.matches("here$", err)
    assert.same({ 1, { "before" } }, { n, list })
  end)

  it("of the VM's own, the changes up to it stay", function()
    local n = 0
    failed(function(x)
      n = 1
      return x.field
    end)
    assert.equal(1, n)
  end)

  it("the error value is the caller's own table if it was that", function()
    local mine = { 1 }
    local err = failed(function()
      mine[2] = 2
      error(mine)
    end)
    assert.equal(mine, err)
    assert.same({ 1, 2 }, mine)
  end)

  it("the error value may hold what the job has left elsewhere", function()
    local list = {}
    local err = failed(function()
      list[1] = { "new" }
      error { list[1], list }
    end)
    assert.equal(list[1], err[1])
    assert.equal(list, err[2])
  end)

  it("globals have the values up to it", function()
    failed(function()
      msys_spec_a = 1
      error "here"
    end)
    local value = msys_spec_a
    forget_globals()
    assert.equal(1, value)
  end)

  it("that the job caught, all changes stay", function()
    local n = 0
    run(function()
      pcall(function()
        n = n + 1
        error "caught"
      end)
      n = n + 10
    end)
    assert.equal(11, n)
  end)

  it("whose value cannot cross, the changes stay", function()
    local list = {}
    local _, info = failed(function()
      list[1] = 1
      error(coroutine.create(print))
    end)
    assert.equal("unsendable", info.kind)
    assert.same({ 1 }, list)
  end)

  it("that is a result which cannot cross, the changes stay", function()
    local list = {}
    local _, info = failed(function()
      list[1] = 1
      return coroutine.create(print)
    end)
    assert.equal("unsendable", info.kind)
    assert.same({ 1 }, list)
  end)
end)

describe("a change that cannot cross", function()
  after_each(helper.clean)

  -- Each makes one such change.
  local cases = {
    ["of an upvalue"] = function()
      local variable
      return function()
        variable = coroutine.create(print)
        return variable
      end
    end,
    ["of a table's key"] = function()
      local list = {}
      return function()
        list[coroutine.create(print)] = 1
        return list
      end
    end,
    ["of a table's value"] = function()
      local list = {}
      return function()
        list.file = io.stdout
        return list
      end
    end,
    ["deep in a table of the job's"] = function()
      local list = {}
      return function()
        local deep = { coroutine.create(print) }
        for _ = 1, 100 do
          deep = { deep }
        end
        list[1] = deep
        return list
      end
    end,
    ["of a metatable"] = function()
      local list = {}
      return function()
        setmetatable(list, { io.stdout })
      end
    end,
    ["of an environment"] = function()
      local function fn() end
      return function()
        setfenv(fn, { io.stdout })
      end
    end,
    ["of a global"] = function()
      return function()
        msys_spec_b = io.stdout
      end
    end,
    ["of a function's upvalue"] = function()
      local list = {}
      return function()
        local file = io.stdout
        function list.fn()
          return file
        end
        return list
      end
    end,
  }
  for name, case in pairs(cases) do
    it(name .. " makes an outcome of kind unsendable, and then nothing is changed", function()
      local change = case()
      local n, list, array = 0, { 1, removed = true }, ffi.new "int[2]"
      local _, info = failed(function()
        n, list[1], list[2], list.removed, array[0], msys_spec_a = 1, 2, 3, nil, 4, 5
        change()
      end)
      local a, b = msys_spec_a, msys_spec_b
      forget_globals()
      assert.equal("unsendable", info.kind)
      assert.same({ 0, { 1, removed = true }, 0 }, { n, list, array[0] })
      assert.is_nil(a)
      assert.is_nil(b)
    end)
  end

  it("says what it is", function()
    local list = {}
    local err, info = failed(function()
      list[1] = coroutine.create(print)
      return list
    end)
    assert.matches("^msys.runInPool: cannot send ", err)
    assert.matches("coroutine", err)
    assert.equal("CPU", info.pool)
  end)

  it(
    "as its module cannot be loaded here makes one of kind unsendable, and then nothing is changed",
    function()
      local n, list = 0, { 1 }
      with_module("return { fn = function() end }", function(name)
        local text = package.path
        local here = text:gsub("^[^;]*;", "")
        helper.with_pool({
          init = function()
            package.path = text
          end,
        }, function(pool)
          package.path = here
          local ok, _, info = msys.runInPool(pool, function()
            package.path = text
            n, list[1] = 1, 2
            list[2], list.also = require(name), "changed"
          end)
          assert.is_false(ok)
          assert.same({ 0, { 1 } }, { n, list })
          assert.is_table(info)
          assert.equal("unsendable", info.kind)
        end)
      end)
    end
  )

  it("as it is too large makes one of kind unsendable, and then nothing is changed", function()
    local n, list = 0, { 1 }
    helper.with_pool({ max_message = 65536 }, function(pool)
      local ok, err, info = msys.runInPool(pool, function()
        n, list[1], list[2] = 1, 2, ("long"):rep(65536)
      end)
      assert.is_false(ok)
      assert.matches("max_message", err)
      assert.equal("unsendable", info.kind)
    end)
    assert.same({ 0, { 1 } }, { n, list })
  end)

  it("as its FFI type is unknown here makes one of kind unsendable, and then nothing is changed", function()
    local n, list = 0, { 1 }
    local _, info = failed(function()
      n, list[1] = 1, 2
      local there = require "ffi"
      pcall(there.cdef, "struct msys_spec_only_there { int a; };")
      list[2], list.also = there.new "struct msys_spec_only_there", "changed"
    end)
    assert.same({ 0, { 1 } }, { n, list })
    assert.is_table(info)
    assert.equal("unsendable", info.kind)
  end)
end)

describe("a module", function()
  after_each(helper.clean)

  it("that the job loads and leaves in the caller's table is the one that is loaded here", function()
    with_module("return { fn = function() end }", function(name, pool)
      local list = {}
      local result = helper.must(pool, function()
        local module = require(name)
        list[1], list[2] = module, module.fn
        return module
      end)
      local module = require(name)
      assert.equal(module, result)
      assert.equal(module, list[1])
      assert.equal(module.fn, list[2])
    end)
  end)

  it("that the job changes is the worker's", function()
    helper.with_pool(nil, function(pool)
      helper.must(pool, function()
        rawset(string, "msys_spec", 1)
      end)
    end)
    assert.is_nil(rawget(string, "msys_spec"))
  end)

  -- Objects that pack themselves: the data, or a new table of it.
  local PACKING = [[
    local packing = {}
    local name = ...
    function packing.new(data)
      return setmetatable({ data = data }, packing)
    end
    function packing.__msys_pack(self)
      return self.data, name
    end
    packing.__msys_unpack = packing.new
    return packing
  ]]

  it("whose objects pack themselves gets them back as the caller's own", function()
    with_module(PACKING, function(name, pool)
      local object, list = require(name).new { 1 }, {}
      local result = helper.must(pool, function()
        list[1], list[object] = object, "a key"
        return object
      end)
      assert.equal(object, result)
      assert.equal(object, list[1])
      assert.equal("a key", list[object])
    end)
  end)

  it("whose objects pack themselves leaves alone what else refers to what they pack", function()
    with_module(PACKING, function(name, pool)
      local data = {}
      local object = require(name).new(data)
      -- In both orders: in one of them the data is first met in the object.
      helper.must(pool, function(first, second)
        first.one, second.two = 1, 2
      end, object, data)
      helper.must(pool, function(first, second)
        first.three, second.four = 3, 4
      end, data, object)
      assert.same({ two = 2, three = 3 }, data)
    end)
  end)
end)

describe("when a job has ended", function()
  after_each(helper.clean)

  -- How it ends.
  local ends = {
    ["with results"] = function() end,
    ["with an error"] = function()
      error "here"
    end,
    ["with a change that cannot cross"] = function(list)
      list[1] = coroutine.create(print)
    end,
  }
  for name, fn in pairs(ends) do
    it(name .. ", neither VM keeps what it was sent", function()
      helper.with_pool(nil, function(pool)
        local here = setmetatable({}, { __mode = "k" })
        local function send()
          local list = {}
          here[list] = true
          msys.runInPool(pool, function()
            _OSTLS.seen = setmetatable({ [list] = true }, { __mode = "k" })
            list.changed = {}
            fn(list)
          end)
        end
        send()
        collectgarbage()
        assert.is_nil((next(here)))
        assert.is_nil((helper.must(pool, function()
          collectgarbage()
          return next(_OSTLS.seen) and "kept"
        end)))
      end)
    end)
  end
end)

describe("calls that nest", function()
  after_each(helper.clean)

  for _, inner in ipairs { "CPU", "IO" } do
    it("leave behind here what the inner job changed, in pool " .. inner, function()
      local n, list, object = 0, {}, { inner = {} }
      local kept = object.inner
      local function add()
        n = n + 1
      end
      run(function()
        add()
        list[#list + 1] = "outer"
        local ok, same = msys.runInPool(inner, function()
          add()
          list[#list + 1] = "inner"
          object.inner.value = list
          object.fn = function()
            n = n + 100
          end
          return list
        end)
        if not ok or same ~= list or n ~= 2 then error(same) end
        list[#list + 1] = "outer again"
      end)
      assert.equal(2, n)
      assert.same({ "outer", "inner", "outer again" }, list)
      assert.equal(list, kept.value)
      assert.equal(kept, object.inner)
      object.fn()
      assert.equal(102, n)
    end)
  end

  it("leave behind here the globals that the inner job changed", function()
    msys_spec_a, msys_spec_list = 1, {}
    local list = msys_spec_list
    function msys_spec_fn()
      msys_spec_a = msys_spec_a + 1
    end
    local ok, err = pcall(run, function()
      msys_spec_fn()
      helper.must("IO", function()
        msys_spec_fn()
        msys_spec_list[1], msys_spec_b = "inner", "new"
      end)
      if msys_spec_a ~= 3 or msys_spec_b ~= "new" or msys_spec_list[1] ~= "inner" then
        error "not in the job"
      end
    end)
    local a, b, same = msys_spec_a, msys_spec_b, msys_spec_list
    forget_globals()
    assert.is_true(ok, err)
    assert.same({ 3, "new", { "inner" } }, { a, b, list })
    assert.equal(list, same)
  end)

  it("leave behind what came before an error in the inner job", function()
    local list = {}
    run(function()
      local ok, err = msys.runInPool("CPU", function()
        list[1] = "inner"
        error(list)
      end)
      list[2], list[3] = ok, err
    end)
    assert.same({ "inner", false }, { list[1], list[2] })
    assert.equal(list, list[3])
  end)

  it("may go through five levels", function()
    local list, n = {}, 0
    local function go(level)
      n, list[#list + 1] = n + level, level
      if level < 5 then
        local ok, err = msys.runInPool("CPU", go, { args = { level + 1 } })
        if not ok then error(err, 0) end
      end
    end
    run(go, 1)
    assert.same({ 1, 2, 3, 4, 5 }, list)
    assert.equal(15, n)
  end)
end)

describe("what others change while a job runs", function()
  after_each(helper.clean)

  it("stays, where the job has changed other keys", function()
    local tbl = { theirs = 1, mine = 1, removed = 1, 1, 2, 3 }
    with_meanwhile(function()
      tbl.theirs, tbl.new, tbl[1] = 2, 2, "theirs"
    end, function()
      tbl.mine, tbl.own, tbl.removed, tbl[3], tbl[4] = 3, 3, nil, "mine", "mine"
    end)
    assert.same({ "theirs", 2, "mine", "mine", theirs = 2, new = 2, mine = 3, own = 3 }, tbl)
  end)

  it("stays, where the job has assigned other variables and globals", function()
    local mine, theirs = 1, 1
    msys_spec_a, msys_spec_b = 1, 1
    with_meanwhile(function()
      theirs, msys_spec_b = theirs + mine, msys_spec_b + msys_spec_a
    end, function()
      mine, msys_spec_a = 3, 3
    end)
    local a, b = msys_spec_a, msys_spec_b
    forget_globals()
    assert.same({ 3, 2, 3, 2 }, { mine, theirs, a, b })
  end)

  it("stays, where the job has changed what was inside", function()
    local outer = { inner = {} }
    local inner = outer.inner
    with_meanwhile(function()
      outer.inner.value = 1
    end, function()
      outer.inner = "another"
    end)
    assert.equal("another", outer.inner)
    assert.same({ value = 1 }, inner)
  end)

  it("is overwritten by the job, where that has changed the same key", function()
    local tbl = { key = 1 }
    with_meanwhile(function()
      tbl.key = "theirs"
    end, function()
      tbl.key = "mine"
    end)
    assert.equal("theirs", tbl.key)
  end)

  it("in two jobs at once adds up, if the keys differ", function()
    local tbl, list = { a = 1, b = 1 }, {}
    local pools = 2
    gate.holding({ concurrency = pools }, function(pool, hold, open)
      gate.run(open, function()
        msys.spawn(function()
          gate.until_stat(pool, { job_num_running = pools })
          open()
        end)
        helper.in_sessions(pools, function(i)
          local key = i == 1 and "a" or "b"
          helper.must(pool, function()
            hold()
            tbl[key] = tbl[key] + i
            tbl["new" .. i] = { i }
            list[i] = i
          end)
        end)
      end)
    end)
    assert.same({ a = 2, b = 3, new1 = { 1 }, new2 = { 2 } }, tbl)
    assert.same({ 1, 2 }, list)
  end)

  -- What a job was sent and did not change is not written over.
  local unchanged = {
    NaN = 0 / 0,
    ["minus zero"] = -1 / math.huge,
    zero = 0,
    ["an integer"] = -7,
    ["a fraction"] = 0.1,
    ["a large number"] = 2 ^ 53 + 2,
    infinity = math.huge,
    ["an empty string"] = "",
    ["a string with a zero byte"] = "a\0b",
    ["a long string"] = ("long"):rep(1000),
    ["true"] = true,
    ["false"] = false,
    ["a library's function"] = string.rep,
    ["a library"] = string,
    ["a module"] = msys,
    ["a module's function"] = msys.runInPool,
    ["coroutine.wrap"] = coroutine.wrap,
    require = require,
    ["the globals"] = _G,
    ["a table"] = { 1, 0 / 0, -1 / math.huge, {} },
    ["a table with a metatable"] = setmetatable({}, { __index = {} }),
    ["a weak table"] = setmetatable({ {} }, { __mode = "v" }),
    ["a function"] = function(x)
      return x
    end,
    ["a function with an environment"] = setfenv(function() end, {}),
    ["a 64-bit integer"] = 1LL,
    ["a complex number"] = 2i,
    ["an FFI array"] = ffi.new("int[2]", 1, 2),
    ["an array of NaN"] = ffi.new("double[2]", 0 / 0, 0 / 0),
    ["light userdata"] = debug.upvalueid(run, 1),
  }
  it("stays under all keys of a table whose values the job has not changed", function()
    local tbl, keys, upvalue = { ["a pool"] = msys.threadpool.create { name = "unchanged" } }, {}, 0 / 0
    local other_pool = tbl["a pool"]
    for name, value in pairs(unchanged) do
      tbl[name] = value
      -- The value as a key, where it can be one.
      if value == value then keys[value] = name end
    end
    with_meanwhile(function()
      tbl.done, keys.done, upvalue = true, true, upvalue
    end, function()
      for name in pairs(tbl) do
        tbl[name] = "mine"
      end
      for value in pairs(keys) do
        keys[value] = "mine"
      end
      upvalue = "mine"
    end)
    other_pool:shutdown()
    assert.is_true(tbl.done and keys.done)
    assert.equal("mine", upvalue)
    for name, value in pairs(tbl) do
      assert.equal(name == "done" or "mine", value, name)
    end
    for key, value in pairs(keys) do
      assert.equal(key == "done" or "mine", value, tostring(key))
    end
  end)
end)

describe("nothing of the caller's is changed", function()
  after_each(function()
    forget_globals()
    helper.clean()
  end)

  --- Runs a job that changes everything with `send(fn)`, and looks for changes once `msys.run` has returned.
  local function assert_unchanged(send)
    msys_spec_a, msys_spec_list = 1, { 1 }
    local n, list, array, meta = 0, { 1, removed = true }, ffi.new "int[2]", {}
    local function fn()
      return n
    end
    local object = setmetatable({}, meta)
    send(function()
      n, list[1], list[2], list.removed, array[0] = 1, 2, 3, nil, 4
      msys_spec_a, msys_spec_b, msys_spec_list[1] = 5, 6, 7
      setmetatable(object, nil)
      meta.changed = true
      setfenv(fn, {})
    end)
    msys.run()
    assert.same({ 0, { 1, removed = true }, 0, 1, { 1 } }, { n, list, array[0], msys_spec_a, msys_spec_list })
    assert.is_nil(msys_spec_b)
    assert.equal(meta, getmetatable(object))
    assert.same({}, meta)
    assert.equal(_G, getfenv(fn))
  end

  it("with in_place = false", function()
    assert_unchanged(function(fn)
      assert.is_true((msys.runInPool("CPU", fn, { in_place = false })))
    end)
  end)

  it("with in_place = false, after an error", function()
    assert_unchanged(function(fn)
      assert.is_false((msys.runInPool("CPU", function()
        fn()
        error "here"
      end, { in_place = false })))
    end)
  end)

  it("by a job that nobody waits for", function()
    assert_unchanged(function(fn)
      msys.runInPool("CPU", fn, true)
    end)
  end)

  it("by a job with a completion, nor by that", function()
    assert_unchanged(function(fn)
      msys.runInPool("CPU", fn, fn)
    end)
  end)

  it("by a job with a completion on the scheduler", function()
    local completed = 0
    assert_unchanged(function(fn)
      msys.runInPool("CPU", fn, function(ok)
        completed = completed + (ok and 1 or 0)
      end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
    end)
    assert.equal(1, completed)
  end)

  it("by a job that cannot be sent", function()
    assert_unchanged(function(fn)
      local co = coroutine.create(print)
      local ok, err = pcall(msys.runInPool, "CPU", function()
        fn()
        return co
      end)
      assert.is_false(ok)
      assert.matches("cannot send upvalue 'co'", err)
    end)
  end)
end)
