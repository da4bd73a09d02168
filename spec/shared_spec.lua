-- `thread.shared`, `thread.update`, `msys.shareSet` and its kin, `thread.counter`, `thread.buffer`: what all VMs see.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local ffi = require "ffi"
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local must, in_sessions = helper.must, helper.in_sessions

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- What `t` has, as a plain table, with shared tables in it as they are.
local function contents(t)
  local all = {}
  for key, value in thread.pairs(t) do
    all[key] = value
  end
  return all
end

--- Runs `fn(i)` in the host's sessions, and in jobs of two pools.
local function everywhere(count, fn)
  helper.with_two({ concurrency = 2 }, function(a, b)
    in_sessions(count, function(i)
      local pool = ({ [0] = false, a, b })[i % 3]
      if pool then
        must(pool, fn, i)
      else
        fn(i)
      end
    end)
  end)
end

describe("thread.shared", function()
  after_each(helper.clean)

  it("gives an empty table, or one with what is given", function()
    assert.same({}, contents(thread.shared()))
    assert.same({}, contents(thread.shared {}))
    local given = { 1, "two", true, a = "b", [true] = false, [2.5] = 1e300 }
    assert.same(given, contents(thread.shared(given)))
  end)

  it("leaves the given table as it is, and apart", function()
    local given = { 1, { 2 } }
    local inner = given[2]
    local t = thread.shared(given)
    t[1], t[2][1] = 10, 20
    assert.same({ 1, { 2 } }, given)
    assert.equal(inner, given[2])
  end)

  local KEYS = {
    ["a string"] = "key",
    ["an empty string"] = "",
    ["a string with zeros and high bytes"] = "\0\255\0",
    ["a name of a method"] = "__index",
    ["a whole number"] = 3,
    ["zero"] = 0,
    ["a negative number"] = -1,
    ["a fraction"] = 0.5,
    ["a large number"] = 2 ^ 60,
    ["infinity"] = math.huge,
    ["minus infinity"] = -math.huge,
    ["true"] = true,
    ["false"] = false,
  }
  for what, key in pairs(KEYS) do
    it("has a value under " .. what .. ", in every VM, until nil is set", function()
      local t = thread.shared()
      assert.same(pack(nil), pack(t[key]))
      for _, value in ipairs { false, 1, "text", true } do
        t[key] = value
        assert.equal(value, t[key])
        assert.equal(
          value,
          must("CPU", function()
            return t[key]
          end)
        )
        assert.same({ [key] = value }, contents(t))
      end
      must("CPU", function()
        t[key] = "set there"
      end)
      assert.equal("set there", t[key])
      t[key] = nil
      assert.is_nil(t[key])
      assert.same({}, contents(t))
      must("CPU", function()
        t[key] = nil
      end)
    end)
  end

  it("tells keys of different types apart, and not 0 from -0", function()
    local t = thread.shared { [1] = "number", ["1"] = "string", [true] = "boolean", ["true"] = "word" }
    assert.same({ "number", "string", "boolean", "word" }, { t[1], t["1"], t[true], t["true"] })
    t[0] = "zero"
    assert.equal("zero", t[-0])
    assert.is_nil(t[1.5])
  end)

  it("has no value under what cannot be a key", function()
    local t = thread.shared { 1 }
    for _, key in ipairs { {}, print, coroutine.create(print), t, 0 / 0 } do
      assert.is_nil(t[key])
    end
    assert.is_nil(t[nil])
  end)

  local VALUES = {
    ["a number"] = 1.5,
    ["a string"] = "text",
    ["a string of a megabyte"] = ("0123456789abcdef"):rep(65536),
    ["an int64"] = 2LL ^ 62,
    ["a library function"] = string.rep,
    ["a library"] = math,
    ["a module"] = thread,
    ["a mutex"] = thread.mutex(),
    ["a channel"] = thread.channel(),
    ["a counter"] = thread.counter(),
    ["a buffer"] = thread.buffer("int", 1),
    ["another shared table"] = thread.shared { 1 },
  }
  for what, value in pairs(VALUES) do
    it("holds " .. what .. ", which is the same everywhere", function()
      local t = thread.shared { value, a = { value } }
      assert.is_true(value == t[1])
      assert.is_true(value == t.a[1])
      assert.is_true(must("CPU", function(arg)
        t.back = arg
        return arg == t[1] and t[1] == t.a[1]
      end, value))
      assert.is_true(value == t.back)
    end)
  end

  it("holds functions, which are copies with their upvalues each time", function()
    local count = 0
    local t = thread.shared {
      fn = function(n)
        count = count + n
        return count
      end,
    }
    assert.equal(2, t.fn(2))
    assert.equal(
      3,
      must("CPU", function()
        return t.fn(3)
      end)
    )
    assert.equal(0, count)
  end)

  it("holds functions that have it as an upvalue", function()
    local t = thread.shared { count = 0 }
    t.add = function()
      return thread.update(t, "count", function(n)
        return n + 1
      end)
    end
    t.add()
    must("CPU", function()
      t.add()
    end)
    assert.equal(2, t.count)
  end)

  it("holds tables with a metatable as copies", function()
    local t = thread.shared()
    t.object = setmetatable({ 1 }, {
      __index = function()
        return "found"
      end,
    })
    assert.equal("found", t.object.x)
    t.object[1] = 2
    assert.equal(1, t.object[1])
  end)

  it("makes shared tables of the plain tables in it", function()
    local t = thread.shared { list = { 1, { 2 } } }
    t.later = { a = {} }
    assert.equal("thread.shared", getmetatable(t.list))
    assert.equal("thread.shared", getmetatable(t.list[2]))
    assert.equal("thread.shared", getmetatable(t.later.a))
    assert.equal(t.list, t.list)
    must("CPU", function()
      t.list[2][1] = "changed"
      t.later.a.b = { "new" }
    end)
    assert.equal("changed", t.list[2][1])
    assert.equal("new", t.later.a.b[1])
  end)

  it("keeps which tables of it are the same, and cycles", function()
    local inner = {}
    local given = { inner, inner, { inner } }
    given.self, inner.outer = given, given
    local t = thread.shared(given)
    assert.equal(t[1], t[2])
    assert.equal(t[1], t[3][1])
    assert.equal(t, t.self)
    assert.equal(t, t[1].outer)
    assert.is_true(must("CPU", function()
      return t.self == t and t[1].outer == t and t[1] == t[3][1]
    end))
  end)

  it("takes plain tables of any depth", function()
    local given = {}
    for _ = 1, 20000 do
      given = { given }
    end
    local t, depth = thread.shared(given), 0
    while t[1] do
      t, depth = t[1], depth + 1
    end
    assert.equal(20000, depth)
  end)

  it("lets go of a long chain of tables", function()
    local out, err, status = helper.script [[
      local thread = require "thread"
      local t = thread.shared()
      for _ = 1, 300000 do
        local outer = thread.shared()
        outer.inner = t
        t = outer
      end
      t = nil
      collectgarbage()
      collectgarbage()
      print "done"
    ]]
    assert.same({ "done\n", "", 0 }, { out, err, status })
  end)

  it("is the same object in every VM, wherever it crosses", function()
    local t = thread.shared()
    local back = must("CPU", function(arg)
      return { arg, { [t] = t } }, t
    end, t)
    assert.equal(t, back[1])
    assert.equal(t, back[2][t])
    assert.not_equal(t, thread.shared())
    assert.matches("^thread.shared: 0x%x+$", tostring(t))
    assert.equal(
      tostring(t),
      must("CPU", function()
        return tostring(t)
      end)
    )
  end)

  it("keeps what it has when the VM that set it has ended", function()
    local t = thread.shared()
    helper.with_pool({ concurrency = 1 }, function(pool)
      must(pool, function()
        local long = ("x"):rep(2 ^ 20)
        t.long, t.nested = long, { long }
        t.fn = function()
          return #long
        end
        t.object = setmetatable({ long }, {})
      end)
    end)
    collectgarbage()
    assert.same({ 2 ^ 20, 2 ^ 20, 2 ^ 20, 2 ^ 20 }, { #t.long, #t.nested[1], t.fn(), #t.object[1] })
  end)

  it("is not sent back by a job that has changed it: it is changed already", function()
    local t = thread.shared { 1 }
    local plain = { t }
    assert.is_false((msys.runInPool("CPU", function()
      t[1], plain.x = 2, t
      error "failed"
    end)))
    assert.equal(2, t[1])
    assert.equal(t, plain.x)
  end)
end)

describe("the length of a shared table", function()
  after_each(helper.clean)

  it("is that of its list", function()
    local t = thread.shared { 1, 2, 3, a = 4, [0] = 0, [-1] = 0, [1.5] = 0 }
    assert.equal(3, #t)
    t[#t + 1] = "more"
    assert.equal(4, #t)
    assert.equal(
      4,
      must("CPU", function()
        return #t
      end)
    )
    t[#t] = nil
    assert.equal(3, #t)
    assert.equal(0, #thread.shared())
  end)

  it("is a border, whatever is set and removed", function()
    local t, model = thread.shared(), {}
    local state = 1
    for _ = 1, 5000 do
      state = (state * 1103515245 + 12345) % 2 ^ 31
      local key = math.floor(state / 65536) % 20 - 2
      local value = math.floor(state / 4194304) % 3 > 0 and state or nil
      t[key], model[key] = value, value
      local length = #t
      assert.is_true(length == 0 or model[length] ~= nil)
      assert.is_nil(model[length + 1])
    end
    assert.same(model, contents(t))
  end)

  it("covers what was set from behind", function()
    local t = thread.shared()
    for i = 100, 1, -1 do
      t[i] = i
    end
    assert.equal(100, #t)
    for i = 1, 100 do
      assert.equal(i, t[i])
    end
  end)
end)

describe("thread.pairs", function()
  after_each(helper.clean)

  it("goes through the list in order, and then all others once", function()
    local t = thread.shared { 1, 2, 3, a = 1, b = 2, [true] = 3, [false] = 4, [2.5] = 5, [-1] = 6 }
    local keys, seen = {}, {}
    for key, value in thread.pairs(t) do
      keys[#keys + 1] = key
      assert.is_nil(seen[key])
      assert.equal(t[key], value)
      seen[key] = true
    end
    assert.same({ 1, 2, 3 }, { keys[1], keys[2], keys[3] })
    assert.equal(9, #keys)
  end)

  it("passes false values and holes", function()
    local t = thread.shared { false, nil, false }
    assert.same({ [1] = false, [3] = false }, contents(t))
  end)

  it("may remove and set what it goes through", function()
    local t = thread.shared {}
    for i = 1, 50 do
      t[i], t["k" .. i] = i, i
    end
    local count = 0
    for key in thread.pairs(t) do
      count = count + 1
      t[key] = nil
      t["new" .. count] = true
    end
    assert.equal(100, count)
    assert.equal(0, #t)
  end)

  it("goes through while others set and remove", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local t, stop = thread.shared { fixed = 1 }, thread.counter()
      msys.spawn(must, pool, function()
        local i = 0
        while stop:get() == 0 do
          i = i % 100 + 1
          t[i] = i
          t[101 - i] = nil
        end
      end)
      msys.yield()
      for _ = 1, 200 do
        local fixed = 0
        for key, value in thread.pairs(t) do
          if key == "fixed" then
            fixed = fixed + 1
          else
            assert.equal(key, value)
          end
        end
        assert.equal(1, fixed)
      end
      stop:set(1)
      msys.run()
    end)
  end)

  it("is pairs for any other table", function()
    local seen = {}
    for key, value in thread.pairs { 1, a = 2 } do
      seen[key] = value
    end
    assert.same({ 1, a = 2 }, seen)
    for key, value in thread.ipairs { 1, 2, nil, 4 } do
      seen[key] = value
    end
    assert.same({ 1, 2, a = 2 }, seen)
  end)
end)

describe("thread.ipairs", function()
  after_each(helper.clean)

  it("goes through the list up to the first nil", function()
    local t = thread.shared { "a", "b", false, nil, "e", x = 1 }
    local seen = {}
    for i, value in thread.ipairs(t) do
      seen[#seen + 1] = { i, value }
    end
    assert.same({ { 1, "a" }, { 2, "b" }, { 3, false } }, seen)
    for _ in thread.ipairs(thread.shared()) do
      error "it is empty"
    end
  end)
end)

describe("thread.update", function()
  after_each(helper.clean)

  it("sets what the function gives for what there is, and gives that", function()
    local t = thread.shared { n = 1 }
    assert.same(
      pack(2),
      pack(thread.update(t, "n", function(n)
        return n + 1
      end))
    )
    assert.equal(2, t.n)
    assert.same(pack(nil), pack(thread.update(t, "n", function() end)))
    assert.is_nil(t.n)
    assert.equal(
      "new",
      thread.update(t, "n", function(n)
        return n == nil and "new"
      end)
    )
    assert.equal(
      false,
      thread.update(t, false, function()
        return false
      end)
    )
    assert.equal(false, t[false])
  end)

  it("makes a shared table of a plain one", function()
    local t = thread.shared()
    local got = thread.update(t, "list", function()
      return { 1, { 2 } }
    end)
    assert.equal(t.list, got)
    assert.equal(2, got[2][1])
    assert.equal(
      got,
      thread.update(t, "list", function(list)
        list[1] = "changed"
        return list
      end)
    )
    assert.equal("changed", t.list[1])
  end)

  it("leaves the value when the function fails, and raises what it raised", function()
    local t, err = thread.shared { n = 1 }, {}
    local got = pack(pcall(thread.update, t, "n", function()
      error(err)
    end))
    assert.same({ false, err }, { got[1], got[2] })
    assert.is_true(rawequal(err, got[2]))
    assert.equal(1, t.n)
  end)

  it("calls the function again when somebody else was faster, with what there is then", function()
    for _, case in ipairs { { 1, 10 }, { 1, nil }, { nil, 10 }, { nil, false } } do
      local t, seen = thread.shared { n = case[1] }, {}
      local function count()
        return #seen
      end
      thread.update(t, "n", function(n)
        seen[count() + 1] = { n }
        if #seen == 1 then t.n = case[2] end
        return "mine"
      end)
      assert.same({ { case[1] }, { case[2] } }, seen)
      assert.equal("mine", t.n)
    end
  end)

  it("sees a value that was changed and set back", function()
    local t, calls = thread.shared { n = 1 }, 0
    thread.update(t, "n", function(n)
      calls = calls + 1
      if calls == 1 then
        t.n = 2
        t.n = 1
      end
      return n + 1
    end)
    assert.equal(2, calls)
    assert.equal(2, t.n)
  end)

  it("may wait in its function", function()
    local t = thread.shared { n = 0 }
    in_sessions(5, function()
      thread.update(t, "n", function(n)
        msys.yield()
        return n + must("CPU", function()
          return 1
        end)
      end)
    end)
    assert.equal(5, t.n)
  end)

  for what, start in pairs { ["numbers"] = { 0 }, ["nothing"] = {}, ["strings"] = { "" } } do
    it("loses no change of sessions in all VMs, beginning with " .. what, function()
      local t = thread.shared { n = start[1] }
      local function add(n)
        return type(n) == "string" and n .. "x" or (n or 0) + 1
      end
      everywhere(9, function()
        for i = 1, 100 do
          thread.update(t, "n", add)
          if i % 10 == 0 then msys.yield() end
        end
      end)
      assert.equal(900, type(t.n) == "string" and #t.n or t.n)
    end)
  end

  it("loses no append of sessions in all VMs", function()
    local t = thread.shared { list = {} }
    everywhere(6, function(i)
      for j = 1, 50 do
        local item = i * 100 + j
        while true do
          local place = #t.list + 1
          if
            thread.update(t.list, place, function(old)
              return old or item
            end) == item
          then
            break
          end
        end
      end
    end)
    local seen = {}
    for _, item in thread.ipairs(t.list) do
      assert.is_nil(seen[item])
      seen[item] = true
    end
    assert.equal(300, #t.list)
  end)
end)

describe("msys.shareSet, shareGet and shareUnset", function()
  after_each(helper.clean)

  it("keep values by key, for all VMs", function()
    local keys = { "spec", 1.5, -7, true }
    for _, key in ipairs(keys) do
      assert.is_nil(msys.shareGet(key))
      assert.same(pack(), pack(msys.shareSet(key, "value")))
      assert.equal("value", msys.shareGet(key))
      local got = must("CPU", function()
        local found = msys.shareGet(key)
        msys.shareSet(key, { "from there" })
        return found
      end)
      assert.equal("value", got)
      assert.equal("from there", msys.shareGet(key)[1])
      assert.equal("from there", msys.shareUnset(key)[1])
      assert.is_nil(msys.shareGet(key))
      assert.same(pack(nil), pack(msys.shareUnset(key)))
    end
  end)

  it("keep false, and remove with nil", function()
    msys.shareSet("spec", false)
    assert.equal(false, msys.shareGet "spec")
    msys.shareSet("spec", nil)
    assert.is_nil(msys.shareGet "spec")
    msys.shareSet "spec"
    assert.is_nil(must("CPU", function()
      return msys.shareGet "spec"
    end))
  end)

  it("give a removed value to one session alone", function()
    local got, meet = thread.counter(), threads.barrier(6)
    local go = {}
    for round = 1, 200 do
      go[round] = "spec of removing " .. round
      msys.shareSet(go[round], round)
    end
    everywhere(6, function()
      meet()
      for round = 1, 200 do
        if msys.shareUnset(go[round]) then got:add() end
      end
    end)
    assert.equal(200, got:get())
  end)

  it("share tables", function()
    msys.shareSet("spec", { n = 0 })
    everywhere(6, function()
      for _ = 1, 20 do
        thread.update(msys.shareGet "spec", "n", function(n)
          return n + 1
        end)
      end
    end)
    assert.equal(120, msys.shareUnset("spec").n)
  end)
end)

describe("a counter", function()
  after_each(helper.clean)

  it("begins with 0, or what is given", function()
    assert.equal(0, thread.counter():get())
    for _, value in ipairs { 0, 1, -1, 2 ^ 53, -2 ^ 53 } do
      assert.same(pack(value), pack(thread.counter(value):get()))
    end
  end)

  it("adds and gives the sum", function()
    local c = thread.counter(5)
    assert.same(pack(6), pack(c:add()))
    assert.same(pack(16), pack(c:add(10)))
    assert.same(pack(-4), pack(c:add(-20)))
    assert.same(pack(-4), pack(c:add(0)))
    assert.equal(-4, c:get())
  end)

  it("is set and gives what it was", function()
    local c = thread.counter(5)
    assert.same(pack(5), pack(c:set(7)))
    assert.same(pack(7), pack(c:set(-1)))
    assert.equal(-1, c:get())
  end)

  it("is set by cas when it is as expected", function()
    local c = thread.counter(5)
    assert.same(pack(false), pack(c:cas(4, 9)))
    assert.equal(5, c:get())
    assert.same(pack(true), pack(c:cas(5, 9)))
    assert.equal(9, c:get())
  end)

  it("counts what sessions of all VMs add", function()
    local c = thread.counter()
    everywhere(9, function(i)
      for _ = 1, 2000 do
        c:add(i)
      end
    end)
    assert.equal(2000 * 45, c:get())
  end)

  it("loses nothing to cas, nor to set", function()
    local c, taken = thread.counter(), thread.counter()
    everywhere(6, function(i)
      for _ = 1, 300 do
        if i % 2 == 0 then
          taken:add(c:set(0))
        else
          repeat
            local now = c:get()
          until c:cas(now, now + 1)
        end
      end
    end)
    assert.equal(900, taken:get() + c:get())
  end)

  it("is the same in every VM, and says what it is", function()
    local c = thread.counter(7)
    local t = must("CPU", function(arg)
      arg:add()
      return { [c] = arg }
    end, c)
    assert.equal(c, t[c])
    assert.matches("^thread.counter: 0x%x+ %(8%)$", tostring(c))
    assert.equal("thread.counter", getmetatable(c))
  end)
end)

describe("thread.buffer", function()
  after_each(helper.clean)

  it("gives zeroed memory for so many items, as a pointer to the first", function()
    for ctype, size in pairs { char = 1, int32_t = 4, double = 8, int64_t = 8 } do
      for _, count in ipairs { 1, 3, 1000 } do
        local b = thread.buffer(ctype, count)
        assert.equal(size, ffi.sizeof(ctype))
        local bytes = ffi.cast("uint8_t *", b)
        for i = 0, count * size - 1 do
          assert.equal(0, bytes[i])
        end
        assert.equal(0, tonumber(ffi.cast("uintptr_t", b)) % 16)
      end
    end
  end)

  it("is seen in every VM, and never copied", function()
    local b = thread.buffer("int32_t", 100)
    for i = 0, 99 do
      b[i] = i
    end
    assert.equal(
      4950,
      must("CPU", function()
        local sum = 0
        for i = 0, 99 do
          sum = sum + b[i]
          b[i] = -i
        end
        return sum
      end)
    )
    assert.equal(-99, b[99])
    local channel = thread.channel()
    msys.runInPool("CPU", function()
      b[0] = 42
      channel:send(true)
    end, true)
    threads.take(channel)
    assert.equal(42, b[0])
  end)

  it("has arrays", function()
    local b = thread.buffer("uint8_t[16]", 3)
    b[2][15] = 255
    assert.equal(
      255,
      must("CPU", function()
        return b[2][15]
      end)
    )
    assert.equal(32, ffi.cast("char *", b[2]) - ffi.cast("char *", b))
  end)

  it("has structs that each VM declares", function()
    ffi.cdef "typedef struct { double x; int32_t n; uint8_t name[4]; } msys_spec_of_buffers;"
    local function init()
      require("ffi").cdef "typedef struct { double x; int32_t n; uint8_t name[4]; } msys_spec_of_buffers;"
    end
    helper.with_pool({ init = init }, function(pool)
      local b = thread.buffer("msys_spec_of_buffers", 10)
      b[9].x, b[9].n = 1.5, 3
      must(pool, function()
        b[9].x, b[0].name[3] = b[9].x * b[9].n, 255
      end)
      assert.same({ 4.5, 255 }, { b[9].x, b[0].name[3] })
    end)
  end)

  it("says which type a VM does not know, and what to do", function()
    ffi.cdef "struct msys_spec_undeclared { int n; };"
    local b = thread.buffer("struct msys_spec_undeclared", 1)
    local ok, err = msys.runInPool("CPU", function()
      return b[0].n
    end)
    assert.is_false(ok)
    assert.matches(
      "^msys: a thread.buffer has items of type 'struct msys_spec_undeclared', which this VM does not know",
      err
    )
  end)

  --- Each sends a buffer to a job, which sets its first item, and gives what comes back.
  local PLACES = {
    ["as an upvalue and a result"] = function(b)
      return must("CPU", function()
        b[0] = 1
        return b
      end)
    end,
    ["as an argument, in a table and as a key"] = function(b)
      local t = must("CPU", function(arg)
        arg.list[1][0] = 1
        return { [arg.list[1]] = { arg.list[1] } }
      end, { list = { b } })
      return next(t)
    end,
    ["through a channel"] = function(b)
      local there, back = thread.channel(), thread.channel()
      there:send(b)
      must("CPU", function()
        local got = threads.take(there)
        got[0] = 1
        back:send { got }
      end)
      return threads.take(back)[1]
    end,
    ["in a shared table"] = function(b)
      local t = thread.shared { b }
      must("CPU", function()
        t[1][0] = 1
        t.back = { t[1] }
      end)
      return t.back[1]
    end,
    ["as an error value"] = function(b)
      local _, err = msys.runInPool("CPU", function()
        b[0] = 1
        error(b)
      end)
      return err
    end,
    ["changed in place"] = function(b)
      local t = {}
      must("CPU", function()
        b[0] = 1
        t.back = b
      end)
      return t.back
    end,
  }
  for place, cross in pairs(PLACES) do
    it("crosses as the same cdata " .. place, function()
      local b = thread.buffer("int", 4)
      local back = cross(b)
      assert.is_true(rawequal(b, back))
      assert.equal("here", ({ [b] = "here" })[back])
      assert.equal(1, b[0])
    end)
  end

  it("lives as long as any VM has it", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local b = thread.buffer("int32_t", 250000)
      for i = 0, 249999 do
        b[i] = i
      end
      must(pool, function()
        _OSTLS.b = b
      end)
      local weak = setmetatable({ b }, { __mode = "v" })
      b = nil
      for _ = 1, 3 do
        collectgarbage()
      end
      assert.is_nil(weak[1])
      -- Memory that is asked for now is other memory.
      local others = {}
      for i = 1, 20 do
        others[i] = thread.buffer("int32_t", 250000)
        ffi.fill(others[i], 1000000, 255)
      end
      assert.is_true(must(pool, function()
        for i = 0, 249999 do
          if _OSTLS.b[i] ~= i then return i end
        end
        return true
      end))
    end)
  end)

  it("lives as long as a channel or a shared table has it", function()
    local ch, t = thread.channel(), thread.shared()
    do
      local b = thread.buffer("int32_t", 250000)
      b[249999] = 7
      ch:send(b)
      t.b = thread.buffer("int32_t", 250000)
      t.b[249999] = 8
    end
    for _ = 1, 3 do
      collectgarbage()
    end
    assert.same({ 7, 8 }, { threads.take(ch)[249999], t.b[249999] })
  end)

  it("is freed when no VM has it", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local function resident()
        local file = assert(io.open "/proc/self/statm")
        local _, pages = file:read("*n", "*n")
        file:close()
        return pages * 4096
      end
      local function collect()
        collectgarbage()
        collectgarbage()
      end
      local before = resident()
      for _ = 1, 20 do
        local b = thread.buffer("char", 2 ^ 25)
        ffi.fill(b, 2 ^ 25, 1)
        must(pool, function()
          b[0] = 2
        end)
        must(pool, collect)
        collect()
      end
      assert.is_true(resident() - before < 2 ^ 27)
    end)
  end)

  it("is filled by sessions of all VMs, each its part", function()
    local b = thread.buffer("double", 9 * 1000)
    everywhere(9, function(part)
      for i = (part - 1) * 1000, part * 1000 - 1 do
        b[i] = i
      end
    end)
    for i = 0, 8999 do
      assert.equal(i, b[i])
    end
  end)
end)

describe("raises at the caller's line:", function()
  after_each(helper.clean)

  local KEY = "keys are strings, numbers and booleans, got "
  local IN_KEY = "cannot share a table with a key of type "
  local NOT_THAT = ": keys are strings, numbers and booleans"
  local NUMBER = "needs a whole number, got "
  local CASES = {
    ["a key that is a table"] = { "t[{}] = 1", "thread.shared: " .. KEY .. "table" },
    ["a key that is a function"] = { "t[print] = 1", "thread.shared: " .. KEY .. "function" },
    ["a key that is a handle"] = { "t[t] = 1", "thread.shared: " .. KEY .. "userdata" },
    ["a key that is nil"] = { "t[nil] = 1", "thread.shared: " .. KEY .. "nil" },
    ["a key that is NaN"] = { "t[0/0] = 1", "thread.shared: " .. KEY .. "number" },
    ["such a key for nil"] = { "t[{}] = nil", "thread.shared: " .. KEY .. "table" },
    ["a key of a given table"] = {
      "thread.shared { [print] = 1 }",
      "thread.shared: " .. IN_KEY .. "function" .. NOT_THAT,
    },
    ["a key of a nested table"] = {
      "t.x = { { [t] = 1 } }",
      "thread.shared: " .. IN_KEY .. "userdata" .. NOT_THAT,
    },
    ["a value that is a coroutine"] = {
      "t.x = co",
      "thread.shared: cannot send the value of key x %(coroutine%)",
    },
    ["a value that is a pointer"] = {
      "t.x = pointer",
      "thread.shared: cannot send the value of key x %(cdata 'int %*'%)",
    },
    ["a value that is a file"] = {
      "t[1] = io.stdout",
      "thread.shared: cannot send the value of key 1 %(userdata 'file'%)",
    },
    ["a function with such an upvalue"] = {
      "local co = co t.x = function() return co end",
      "thread.shared: cannot send .+ of function at case:3, the value of key x",
    },
    ["a nested one, with the path to it"] = {
      "t.x = { a = { b = co } }",
      "thread.shared: cannot send the value of key x%.a%.b %(coroutine%)",
    },
    ["sharing no table"] = { "thread.shared(1)", "thread.shared: needs a table, got number" },
    ["sharing a table with a metatable"] = {
      "thread.shared(setmetatable({}, {}))",
      "thread.shared: a table with a metatable cannot be shared",
    },
    ["sharing one with a value that cannot be sent"] = {
      "thread.shared { co }",
      "thread.shared: cannot send the value of key 1 %(coroutine%)",
    },
    ["updating a plain table"] = {
      "thread.update({}, 1, print)",
      "thread.update: needs a shared table, got table",
    },
    ["updating under what is no key"] = { "thread.update(t, {}, print)", "thread.update: " .. KEY .. "table" },
    ["updating with no function"] = {
      "thread.update(t, 1, 2)",
      "thread.update: fn must be a function, got number",
    },
    ["updating to what cannot be sent"] = {
      "thread.update(t, 1, function() return co end)",
      "thread.update: cannot send the new value %(coroutine%)",
    },
    ["updating to a pointer"] = {
      "thread.update(t, 1, function() return pointer end)",
      "thread.update: cannot send the new value %(cdata 'int %*'%)",
    },
    ["shareSet without a key"] = { "msys.shareSet()", "msys.shareSet: " .. KEY .. "nil" },
    ["shareSet with a table for a key"] = { "msys.shareSet({}, 1)", "msys.shareSet: " .. KEY .. "table" },
    ["shareSet of what cannot be sent"] = {
      "msys.shareSet('spec', co)",
      "msys.shareSet: cannot send the value of key spec %(coroutine%)",
    },
    ["shareUnset with a table for a key"] = { "msys.shareUnset {}", "msys.shareUnset: " .. KEY .. "table" },
    ["shareUnset without a key"] = { "msys.shareUnset()", "msys.shareUnset: " .. KEY .. "nil" },
    ["a counter of a string"] = {
      "thread.counter '1'",
      "thread.counter: the value must be a whole number, got string",
    },
    ["a counter of a fraction"] = {
      "thread.counter(1.5)",
      "thread.counter: the value must be a whole number, got 1%.5",
    },
    ["adding a string"] = { "c:add '1'", "thread.counter:add: " .. NUMBER .. "string" },
    ["adding a fraction"] = { "c:add(0.5)", "thread.counter:add: " .. NUMBER .. "0%.5" },
    ["adding infinity"] = { "c:add(1/0)", "thread.counter:add: " .. NUMBER .. "inf" },
    ["setting nothing"] = { "c:set()", "thread.counter:set: " .. NUMBER .. "nil" },
    ["setting a fraction"] = { "c:set(-0.5)", "thread.counter:set: " .. NUMBER .. "%-0%.5" },
    ["cas without a new value"] = { "c:cas(1)", "thread.counter:cas: " .. NUMBER .. "nil" },
    ["cas that expects a fraction"] = { "c:cas(0.5, 1)", "thread.counter:cas: " .. NUMBER .. "0%.5" },
    ["cas that sets one"] = { "c:cas(1, 0.5)", "thread.counter:cas: " .. NUMBER .. "0%.5" },
    ["cas that expects what is too large"] = { "c:cas(2^60, 1)", "thread.counter:cas: .*1%.1529[%d]*e%+18.*" },
    ["add without a colon"] = { "c.add(1)", "thread.counter:add: called on number %(call it with a colon%)" },
    ["get without a colon"] = { "c.get()", "thread.counter:get: called on nil %(call it with a colon%)" },
    ["a buffer of no type"] = { "thread.buffer()", "thread.buffer: ctype must be a string, got nil" },
    ["a buffer of no length"] = {
      "thread.buffer 'int'",
      "thread.buffer: n must be a whole number from 1, got nil",
    },
    ["a buffer of length 0"] = {
      "thread.buffer('int', 0)",
      "thread.buffer: n must be a whole number from 1, got 0",
    },
    ["a buffer of half an item"] = {
      "thread.buffer('int', 0.5)",
      "thread.buffer: n must be a whole number from 1, got 0%.5",
    },
    ["a buffer of an unknown type"] = { "thread.buffer('msys_nope', 1)", "thread.buffer: .*msys_nope.*" },
    ["a buffer of void"] = { "thread.buffer('void', 1)", "thread.buffer: .*void.*" },
    ["a buffer that no memory can hold"] = {
      "thread.buffer('double', 2^60)",
      "thread.buffer: no memory for 1152921504606846976 items of type 'double'",
    },
  }

  for what, case in pairs(CASES) do
    it(what, function()
      local names = { t = thread.shared { x = "old" }, c = thread.counter(3), co = coroutine.create(print) }
      names.pointer = ffi.new "int *"
      assert.matches("^case:3: " .. case[2] .. "$", threads.error_of(case[1], names))
      assert.same({ x = "old" }, contents(names.t))
      assert.equal(3, names.c:get())
      assert.is_nil(msys.shareGet "spec")
    end)
  end
end)
