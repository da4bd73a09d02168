--- FFI objects wherever they may stand in a message, there and back. Which of them cross: values_cdata_spec.lua

local helper = require "spec.helper"
local msys = require "msys"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local run, echo = values.run, values.echo

local ffi = require "ffi"

local DECLARATIONS = [[
  struct msys_places_point { int x; double y; };
  struct msys_places_line { struct msys_places_point from, to; int64_t tag[2]; };
  union msys_places_word { uint32_t all; uint8_t bytes[4]; };
  enum msys_places_colour { MSYS_PLACES_RED, MSYS_PLACES_BLUE = 7 };
]]
ffi.cdef(DECLARATIONS)

--- Calls `fn` with a pool whose workers know the types.
local function with_types(fn)
  helper.with_pool({
    init = function()
      require("ffi").cdef(DECLARATIONS)
    end,
  }, fn)
end

--- FFI objects by name: what makes one, in any VM, and what tells whether it still is what was made.
---@type table<string, { make: (fun(): any), is_right: fun(object: any): boolean }>
local objects = {
  ["an int64_t"] = {
    make = function()
      return -9007199254740993LL
    end,
    is_right = function(object)
      return object == -9007199254740993LL and tostring(object) == "-9007199254740993LL"
    end,
  },
  ["a uint64_t"] = {
    make = function()
      return 0xfffffffffffffff5ULL
    end,
    is_right = function(object)
      return tostring(object) == "18446744073709551605ULL"
    end,
  },
  ["a complex number"] = {
    make = function()
      return require("ffi").new("complex", 0.5, 2)
    end,
    is_right = function(object)
      return tostring(object) == "0.5+2i"
    end,
  },
  ["a complex number of floats"] = {
    make = function()
      return require("ffi").new("complex float", 1, -2)
    end,
    is_right = function(object)
      return object.re == 1 and object.im == -2
    end,
  },
  ["a boxed short"] = {
    make = function()
      return require("ffi").new("short", -3)
    end,
    is_right = function(object)
      return tonumber(object) == -3 and require("ffi").istype("short", object)
    end,
  },
  ["an array of bytes"] = {
    make = function()
      return require("ffi").new("uint8_t[5]", { 1, 2, 0, 255, 5 })
    end,
    is_right = function(object)
      return require("ffi").string(object, 5) == "\1\2\0\255\5"
    end,
  },
  ["an array of its own length"] = {
    make = function()
      return require("ffi").new("double[?]", 3, { 0.5, -1, 1 / 0 })
    end,
    is_right = function(object)
      return require("ffi").sizeof(object) == 24
        and object[0] == 0.5
        and object[1] == -1
        and object[2] == 1 / 0
    end,
  },
  ["an array without items"] = {
    make = function()
      return require("ffi").new("int[?]", 0)
    end,
    is_right = function(object)
      return require("ffi").sizeof(object) == 0
    end,
  },
  ["an array of 1 MiB"] = {
    make = function()
      local object = require("ffi").new "int32_t[262144]"
      for i = 0, 262143 do
        object[i] = i * 3
      end
      return object
    end,
    is_right = function(object)
      return object[0] == 0 and object[131071] == 393213 and object[262143] == 786429
    end,
  },
  ["a struct"] = {
    make = function()
      return require("ffi").new("struct msys_places_point", 3, 0.25)
    end,
    is_right = function(object)
      return object.x == 3 and object.y == 0.25 and require("ffi").istype("struct msys_places_point", object)
    end,
  },
  ["a struct of structs and arrays"] = {
    make = function()
      return require("ffi").new("struct msys_places_line", { { 1, 2 }, { 3, 4 }, { 5, 2 ^ 60 } })
    end,
    is_right = function(object)
      return object.from.x == 1 and object.to.y == 4 and object.tag[1] == 1152921504606846976LL
    end,
  },
  ["an array of structs"] = {
    make = function()
      return require("ffi").new("struct msys_places_point[2]", { { 1, 2 }, { 3, 4 } })
    end,
    is_right = function(object)
      return object[0].x == 1 and object[1].y == 4
    end,
  },
  ["a union"] = {
    make = function()
      return require("ffi").new("union msys_places_word", { all = 0x01020304 })
    end,
    is_right = function(object)
      return object.all == 0x01020304 and object.bytes[3] + object.bytes[0] == 5
    end,
  },
  ["an enum"] = {
    make = function()
      return require("ffi").new("enum msys_places_colour", "MSYS_PLACES_BLUE")
    end,
    is_right = function(object)
      return object == "MSYS_PLACES_BLUE" and tonumber(object) == 7
    end,
  },
}
for _, object in pairs(objects) do
  setfenv(object.make, _G)
  setfenv(object.is_right, _G)
end

--- Where an object may stand: what is sent, which takes it out again there, as often as it is there.
---@type table<string, fun(object: any): any, fun(sent: any): any>
local places = {
  ["alone"] = function(object)
    return object, function(sent)
      return { sent }
    end
  end,
  ["in tables"] = function(object)
    return { { object }, field = { deep = { object } }, object }, function(sent)
      return { sent[1][1], sent.field.deep[1], sent[2] }
    end
  end,
  ["200 tables deep"] = function(object)
    local tbl = { bottom = object }
    for _ = 1, 200 do
      tbl = { tbl, object }
    end
    return tbl,
      function(sent)
        local found = {}
        while sent[1] do
          found[#found + 1] = sent[2]
          sent = sent[1]
        end
        found[#found + 1] = sent.bottom
        return found
      end
  end,
  ["as a key"] = function(object)
    return { [object] = "here", [1] = object }, function(sent)
      local found = { sent[1] }
      for key, value in pairs(sent) do
        if value == "here" then found[#found + 1] = key end
      end
      assert(#found == 2 and sent[found[1]] == "here")
      return found
    end
  end,
  ["as the key and the value of an entry"] = function(object)
    return { [object] = object }, function(sent)
      local key, value = next(sent)
      return { key, value }
    end
  end,
  ["as an upvalue"] = function(object)
    local function one()
      return object
    end
    local function other()
      return { object }
    end
    return { one, other }, function(sent)
      return { sent[1](), sent[2]()[1] }
    end
  end,
  ["in a metatable"] = function(object)
    local meta = { field = object, __index = { object } }
    return setmetatable({}, meta), function(sent)
      return { getmetatable(sent).field, sent[1] }
    end
  end,
  ["as what a table is indexed with in vain"] = function(object)
    return setmetatable({}, { __index = object, __metatable = object }),
      function(sent)
        return { getmetatable(sent), debug.getmetatable(sent).__index }
      end
  end,
  ["in a function's environment"] = function(object)
    return setfenv(function()
      return object_of_environment -- luacheck: ignore
    end, { object_of_environment = object }),
      function(sent)
        return { sent(), getfenv(sent).object_of_environment }
      end
  end,
}

describe("an FFI object of a message is what it was, and one:", function()
  after_each(helper.clean)

  for what, object in pairs(objects) do
    for where, place in pairs(places) do
      setfenv(place, _G)

      it(("%s %s"):format(what, where), function()
        with_types(function(pool)
          local sent, take = place(object.make())
          setfenv(take, _G)
          local is_right = object.is_right
          --- How many are right, and how many are not the first one.
          local function check(value)
            local found, right, others = take(value), 0, 0
            for _, one in ipairs(found) do
              right = right + (is_right(one) and 1 or 0)
              others = others + (rawequal(one, found[1]) and 0 or 1)
            end
            return #found == right and "all" or right, others
          end
          local function job(value)
            local right, others = check(value)
            return value, right, others
          end
          for _, in_place in ipairs { true, false } do
            local ok, back, right, others =
              msys.runInPool(pool, job, { args = { sent }, in_place = in_place })
            assert.same({ true, "all", 0 }, { ok, right or back, others })
            assert.same({ "all", 0 }, { check(back) })
            if in_place and type(sent) ~= "cdata" then assert.equal(sent, back) end
          end
        end)
      end)
    end

    it(("%s as an error value, and in one"):format(what), function()
      with_types(function(pool)
        local make, is_right = object.make, object.is_right
        local ok, err, info = msys.runInPool(pool, function()
          error(make())
        end)
        assert.same({ false, true, "error" }, { ok, is_right(err), info.kind })
        ok, err = msys.runInPool(pool, function()
          local value = make()
          error { value, deep = { value } }
        end)
        assert.same({ false, true, true }, { ok, is_right(err[1]), rawequal(err[1], err.deep[1]) })
      end)
    end)

    it(("%s as a result, and among others"):format(what), function()
      with_types(function(pool)
        local make, is_right = object.make, object.is_right
        local ok, a, none, b, c = msys.runInPool(pool, function()
          local value = make()
          return value, nil, value, { value }
        end)
        assert.is_true(ok, tostring(a))
        assert.is_nil(none)
        assert.same({ true, true, true }, { is_right(a), rawequal(a, b), rawequal(a, c[1]) })
      end)
    end)

    it(("%s as a global that comes along"):format(what), function()
      with_types(function(pool)
        local is_right = object.is_right
        rawset(_G, "spec_cdata", object.make())
        local ok, right = msys.runInPool(pool, function()
          return is_right(spec_cdata) -- luacheck: ignore
        end)
        rawset(_G, "spec_cdata", nil)
        assert.same({ true, true }, { ok, right })
      end)
    end)

    it(("%s that nobody has touched is the caller's own again"):format(what), function()
      with_types(function(pool)
        local own = object.make()
        local ok, back, list = msys.runInPool(pool, function()
          return own, { own }
        end)
        assert.is_true(ok, tostring(back))
        assert.same({ true, true }, { rawequal(back, own), rawequal(list[1], own) })
        assert.is_true(object.is_right(own))
      end)
    end)
  end

  it("equal ones stay apart", function()
    local a, b, tbl = 1LL, 1LL, {}
    tbl[a], tbl[b] = "a", "b"
    local function is_right(one, two, keyed)
      return one == two and not rawequal(one, two) and keyed[one] == "a" and keyed[two] == "b"
    end
    assert.is_true((run(is_right, a, b, tbl)))
    assert.is_true(is_right(echo(a, b, tbl)))
  end)

  it("5,000 of them as keys", function()
    local keyed, list = {}, {}
    for i = 1, 5000 do
      list[i] = 0LL + i
      keyed[list[i]] = i
    end
    local function wrong(keys, numbers)
      local count = 0
      for i, key in ipairs(keys) do
        count = count + ((key == 0LL + i and numbers[key] == i) and 0 or 1)
      end
      return #keys, count
    end
    assert.same({ 5000, 0 }, { run(wrong, list, keyed) })
    assert.same({ 5000, 0 }, { wrong(echo(list, keyed)) })
    assert.same({ true, 5000, 0 }, { msys.runInPool("CPU", wrong, { args = { list, keyed } }) })
  end)

  it("a cell that is assigned another one", function()
    local sum = 0LL
    local function add(n)
      sum = sum + n
    end
    local ok, there = msys.runInPool("CPU", function()
      for i = 1, 10 do
        add(i)
      end
      return sum
    end)
    assert.same({ true, "55LL", "55LL" }, { ok, tostring(there), tostring(sum) })
  end)

  it("constants of the code, beside captured ones", function()
    local captured = 5LL
    assert.same({ "6LL", "18446744073709551615ULL", "0+1i" }, {
      run(function()
        return tostring(captured + 1LL), tostring(0ULL - 1ULL), tostring(1i)
      end),
    })
  end)
end)

describe("what a job changes in an FFI object is seen by the caller that waits:", function()
  after_each(helper.clean)

  --- What is sent, what changes it, and whether it has been changed.
  ---@type table<string, { make: (fun(): any), change: fun(object: any), is_changed: fun(object: any): boolean }>
  local changes = {
    ["an item of an array"] = {
      make = function()
        return ffi.new("int[3]", 1, 2, 3)
      end,
      change = function(object)
        object[1] = 20
      end,
      is_changed = function(object)
        return object[0] == 1 and object[1] == 20 and object[2] == 3
      end,
    },
    ["an array of its own length"] = {
      make = function()
        return ffi.new("uint8_t[?]", 100)
      end,
      change = function(object)
        ffi.copy(object, ("x"):rep(100), 100)
      end,
      is_changed = function(object)
        return ffi.string(object, 100) == ("x"):rep(100)
      end,
    },
    ["a struct's field"] = {
      make = function()
        return ffi.new("struct msys_places_line", { { 1, 2 }, { 3, 4 } })
      end,
      change = function(object)
        object.to.x, object.tag[1] = 30, 2LL
      end,
      is_changed = function(object)
        return object.from.x == 1 and object.to.x == 30 and object.tag[1] == 2
      end,
    },
    ["a struct in an array"] = {
      make = function()
        return ffi.new "struct msys_places_point[3]"
      end,
      change = function(object)
        object[2] = object[1]
        object[2].y = 5
      end,
      is_changed = function(object)
        return object[1].y == 0 and object[2].y == 5
      end,
    },
    ["a union's byte"] = {
      make = function()
        return ffi.new("union msys_places_word", { all = 0 })
      end,
      change = function(object)
        object.bytes[0] = 9
      end,
      is_changed = function(object)
        return object.all == 9
      end,
    },
  }
  for what, case in pairs(changes) do
    for _, in_place in ipairs { true, false } do
      it(("%s, %s"):format(what, in_place and "in place" or "but not where it is copied"), function()
        with_types(function(pool)
          local own, change, is_changed = case.make(), case.change, case.is_changed
          local tbl = { deep = { own }, [own] = "key" }
          local ok, there, back = msys.runInPool(pool, function(arg)
            change(own)
            return is_changed(arg.deep[1]) and arg[own] == "key", own
          end, { args = { tbl }, in_place = in_place })
          assert.same({ true, true }, { ok, there })
          assert.equal(in_place, case.is_changed(own))
          assert.equal(in_place, rawequal(back, own))
          assert.is_true(case.is_changed(back))
          assert.equal("key", tbl[own])
          assert.is_true(rawequal(own, tbl.deep[1]))
        end)
      end)
    end

    it(("%s, after an error too"):format(what), function()
      with_types(function(pool)
        local own, change = case.make(), case.change
        local ok, err = msys.runInPool(pool, function()
          change(own)
          error("behind it", 0)
        end)
        assert.same({ false, "behind it", true }, { ok, err, case.is_changed(own) })
      end)
    end)
  end

  it("a number in a table is replaced by another one", function()
    local tbl = { n = 1LL, list = { 2ULL } }
    local ok = msys.runInPool("CPU", function()
      tbl.n = tbl.n + 1
      tbl.list[1], tbl.list[2] = nil, tbl.n
      tbl[3i] = "new key"
    end)
    assert.is_true(ok)
    assert.same({ "2LL", "2LL" }, { tostring(tbl.n), tostring(tbl.list[2]) })
    assert.is_nil(tbl.list[1])
    assert.is_true(rawequal(tbl.n, tbl.list[2]))
    local found
    for key in pairs(tbl) do
      if type(key) == "cdata" then found = tostring(key) end
    end
    assert.equal("0+3i", found)
  end)

  it("a key that is removed is the caller's own", function()
    local a, b = 1LL, 1LL
    local tbl = { [a] = "a", [b] = "b" }
    local ok = msys.runInPool("CPU", function()
      tbl[b] = nil
    end)
    assert.same({ true, "a" }, { ok, tbl[a] })
    assert.is_nil(tbl[b])
    assert.equal(a, next(tbl))
  end)
end)

describe("an FFI object with a metatype", function()
  after_each(helper.clean)

  it("has what the receiver's VM has declared for it", function()
    ffi.cdef "struct msys_places_counted { int count; };"
    local mt = {
      __index = {
        where = function()
          return "host"
        end,
      },
    }
    ffi.metatype("struct msys_places_counted", mt)
    helper.with_pool({
      init = function()
        local there = require "ffi"
        there.cdef "struct msys_places_counted { int count; };"
        there.metatype("struct msys_places_counted", {
          __index = {
            where = function(self)
              return "worker " .. self.count
            end,
          },
          __add = function(a, b)
            return a.count + b
          end,
        })
      end,
    }, function(pool)
      local object = ffi.new("struct msys_places_counted", 5)
      local ok, where, sum, made = msys.runInPool(pool, function()
        return object:where(), object + 1, require("ffi").new("struct msys_places_counted", 7)
      end)
      assert.same({ true, "worker 5", 6 }, { ok, where, sum })
      assert.same({ "host", 7 }, { made:where(), made.count })
    end)
  end)
end)
