-- Objects that cross in their own way: those whose metatable has `__msys_pack`.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

--- Boxes cross as their contents, and know whether they were made or unpacked; vaults are the same as userdata, whose
--- contents stand in a table with weak keys.
local MODULE = [[
local box = { unpacked = 0 }

local contents = setmetatable({}, { __mode = "k" })
local vaults = newproxy(true)
getmetatable(vaults).__name = "spec.vault"
getmetatable(vaults).__index = function(vault, key) return contents[vault][key] end
getmetatable(vaults).__msys_pack = function(vault)
  return { vault = true, of = contents[vault] }, "spec_box"
end

local meta = { __index = {} }
function meta.__index:get() return self.of end
function meta.__msys_pack(object) return { of = object.of }, "spec_box" end
box.meta = meta

function box.box(of) return setmetatable({ of = of, where = "made" }, meta) end
function box.vault(of)
  local vault = newproxy(vaults)
  contents[vault] = { of = of, where = "made" }
  return vault
end

function box.__msys_unpack(value)
  box.unpacked = box.unpacked + 1
  local made
  if value.vault then
    made = box.vault(value.of.of)
    contents[made].where = "unpacked"
  else
    made = box.box(value.of)
    made.where = "unpacked"
  end
  return made
end

return box
]]

local OTHERS = {
  ["spec_pack_plain.lua"] = "return { __msys_unpack = function(value) return value end }",
  ["spec_pack_raises.lua"] = [[
    return { __msys_unpack = function(value) error("no way to unpack " .. value.name, 0) end }
  ]],
  ["spec_pack_missing.lua"] = "return {}",
  ["spec_pack_broken.lua"] = "error 'this module does not load'",
  ["spec_pack_nothing.lua"] = "return { __msys_unpack = function() end }",
  ["spec_pack_runs.lua"] = [[
    local msys = require "msys"
    return {
      __msys_unpack = function(value)
        return select(2, msys.runInPool("CPU", function() return { of = value, answer = 42 } end))
      end,
    }
  ]],
}

--- Calls `fn` with the module and a pool whose workers have not loaded it.
local function with_box(fn)
  local files = { ["spec_box.lua"] = MODULE }
  for name, text in pairs(OTHERS) do
    files[name] = text
  end
  local path = package.path
  package.path = helper.folder(files) .. "/?.lua;" .. path
  local ok, err = pcall(helper.with_pool, nil, function(pool)
    fn(require "spec_box", pool)
  end)
  package.path = path
  package.loaded.spec_box = nil
  for name in pairs(OTHERS) do
    package.loaded[name:match "^[^.]+"] = nil
  end
  if not ok then error(err, 0) end
end

--- What a job gives, whose objects are copies.
local function copied(pool, fn, ...)
  local function checked(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return checked(msys.runInPool(pool, fn, { args = { n = select("#", ...), ... }, in_place = false }))
end

local function echo(pool, ...)
  return copied(pool, function(...)
    return ...
  end, ...)
end

describe("an object that packs itself", function()
  after_each(helper.clean)

  for _, kind in ipairs { "box", "vault" } do
    it(("is made by its module there: a %s"):format(kind), function()
      with_box(function(box, pool)
        local object = box[kind](5)
        local there, of, is_its = copied(pool, function(arg)
          local own = require "spec_box"
          return arg.where, arg.of, getmetatable(arg) == getmetatable(own[kind](1)) or kind == "vault"
        end, object)
        assert.same({ "unpacked", 5, true }, { there, of, is_its })
        assert.same({ "made", 5 }, { object.where, object.of })
      end)
    end)

    it(("crosses as an argument, an upvalue, a result: a %s"):format(kind), function()
      with_box(function(box, pool)
        local object = box[kind] "contents"
        local a, b, c = copied(pool, function(arg)
          return arg.of, object.of, arg == object and object
        end, object)
        assert.same({ "contents", "contents" }, { a, b })
        assert.same({ "unpacked", "contents" }, { c.where, c.of })
        assert.not_equal(object, c)
      end)
    end)

    it(("is one object wherever it stands: a %s"):format(kind), function()
      with_box(function(box, pool)
        local object = box[kind](1)
        local function is_right(tbl, arg, key_of, fn)
          return tbl[1] == arg
            and tbl.deep[1][1] == arg
            and tbl[2] == arg
            and key_of[arg] == "key"
            and next(key_of) == arg
            and fn() == arg
            and getmetatable(tbl).__index == arg
            and arg.where == "unpacked"
        end
        local function fn()
          return object
        end
        local tbl = setmetatable({ object, object, deep = { { object } } }, { __index = object })
        assert.is_true((copied(pool, is_right, tbl, object, { [object] = "key" }, fn)))
        assert.is_true(is_right(echo(pool, tbl, object, { [object] = "key" }, fn)))
        assert.equal(2, (copied(pool, function()
          return require("spec_box").unpacked
        end)))
      end)
    end)

    it(("crosses as an error value: a %s"):format(kind), function()
      with_box(function(_, pool)
        local ok, err, info = msys.runInPool(pool, function()
          error(require("spec_box")[kind] "why")
        end)
        assert.same({ false, "why", "unpacked", "error" }, { ok, err.of, err.where, info.kind })
      end)
    end)

    it(("crosses in an error value and in results that nobody waits for: a %s"):format(kind), function()
      with_box(function(_, pool)
        local errors = helper.catching(function(errors)
          msys.runInPool(pool, function()
            error { inner = require("spec_box")[kind] "why" }
          end, true)
          helper.eventually(function()
            return errors[1]
          end, "the report")
        end)
        assert.equal("why", errors[1].err.inner.of)
        local got
        msys.runInPool(pool, function()
          return require("spec_box")[kind] "result"
        end, function(_, value)
          got = value
        end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
        helper.eventually(function()
          return got
        end, "the completion")
        assert.equal("result", got.of)
      end)
    end)

    it(("crosses 200 tables deep: a %s"):format(kind), function()
      with_box(function(box, pool)
        local object = box[kind] "deep"
        local tbl = object
        for _ = 1, 200 do
          tbl = { tbl }
        end
        local function bottom(at)
          while type(at) == "table" and at[1] ~= nil do
            at = at[1]
          end
          return at
        end
        assert.equal("deep", (copied(pool, function(at)
          return bottom(at).of
        end, tbl)))
        assert.equal("deep", bottom(echo(pool, tbl)).of)
      end)
    end)

    it(("may be packed with others of its kind in it: a %s"):format(kind), function()
      with_box(function(box, pool)
        local inner = box[kind] "innermost"
        local outer = box[kind] { box.box(inner), inner }
        local back = echo(pool, { outer, inner })
        assert.equal("innermost", back[1].of[1].of.of)
        assert.equal(back[2], back[1].of[1].of)
        assert.equal(back[2], back[1].of[2])
      end)
    end)

    it(("is the caller's own again as a job's result, and after changes of it: a %s"):format(kind), function()
      with_box(function(box, pool)
        local object = box[kind](1)
        local ok, back, inner = msys.runInPool(pool, function(arg)
          return arg, { arg }
        end, { args = { object } })
        assert.is_true(ok)
        assert.equal(object, back)
        assert.equal(object, inner[1])
      end)
    end)
  end

  it("may pack any value that can cross", function()
    with_box(function(box, pool)
      local function fn()
        return "function"
      end
      local values = { false, 0, "", 2LL, print, msys, pool, fn, { 1 } }
      for _, value in ipairs(values) do
        local back = echo(pool, box.box(value)).of
        if type(value) == "table" and value ~= msys then
          assert.same(value, back)
        elseif value == fn then
          assert.equal("function", back())
        else
          assert.is_true(value == back)
        end
      end
      assert.is_nil(echo(pool, box.box(nil)).of)
    end)
  end)

  it("may refer to what is sent beside it", function()
    with_box(function(box, pool)
      local shared = { 1 }
      local count = 0
      local function add()
        count = count + 1
        return count
      end
      local function read()
        return count
      end
      local object = box.box { shared, add }
      assert.same({ true, 2, true }, {
        copied(pool, function(arg)
          object.of[2]()
          add()
          return object.of[1] == shared and arg == shared, read(), object.of[2] == add
        end, shared),
      })
      local back, also = echo(pool, object, shared)
      assert.equal(also, back.of[1])
    end)
  end)

  it("is packed anew for each message, and once in one", function()
    with_box(function(_, pool)
      local calls = 0
      local object = setmetatable({}, {
        __msys_pack = function()
          calls = calls + 1
          return calls, "spec_pack_plain"
        end,
      })
      local function job(a, b)
        return a, b == a
      end
      -- A message may be begun anew; from then on its code is known.
      copied(pool, job, object, object)
      for i = calls + 1, calls + 3 do
        assert.same({ i, true }, { copied(pool, job, object, object) })
      end
    end)
  end)

  it("may be a global that comes along", function()
    with_box(function(box, pool)
      rawset(_G, "spec_packed", box.box "global")
      local ok, of, where = pcall(copied, pool, function()
        return spec_packed.of, spec_packed.where -- luacheck: ignore
      end)
      rawset(_G, "spec_packed", nil)
      assert.same({ true, "global", "unpacked" }, { ok, of, where })
    end)
  end)

  it("of which the packed value is nil is what the module makes of that", function()
    with_box(function(_, pool)
      local object = setmetatable({}, {
        __msys_pack = function()
          return nil, "spec_pack_plain"
        end,
      })
      assert.same({ n = 3, 1, nil, 3 }, { n = 3, echo(pool, 1, object, 3) })
    end)
  end)

  it("may be unpacked as nothing", function()
    with_box(function(_, pool)
      local object = setmetatable({}, {
        __msys_pack = function()
          return 1, "spec_pack_nothing"
        end,
      })
      assert.same({ n = 3, 1, nil, 3 }, { n = 3, echo(pool, 1, object, 3) })
      assert.same({ n = 4, 1, nil, nil, 3 }, { n = 4, echo(pool, 1, object, object, 3) })
    end)
  end)

  it("may be packed by a function that is an upvalue's and sees its own state", function()
    with_box(function(_, pool)
      local hidden = setmetatable({}, { __mode = "k" })
      local object = setmetatable({}, {
        __msys_pack = function(self)
          return hidden[self], "spec_pack_plain"
        end,
      })
      hidden[object] = "state"
      assert.equal("state", (echo(pool, object)))
    end)
  end)

  it("whose `__msys_pack` is no function is a table like others", function()
    with_box(function(_, pool)
      local object = setmetatable({ 7 }, { __msys_pack = "by hand" })
      assert.equal(7, echo(pool, object)[1])
      assert.equal("by hand", getmetatable(echo(pool, object)).__msys_pack)
    end)
  end)

  it("may run jobs while it is packed and unpacked", function()
    with_box(function(_, pool)
      local object = setmetatable({}, {
        __msys_pack = function()
          local ok, answer = msys.runInPool("CPU", function()
            return { 41 }
          end)
          return ok and answer[1] + 1, "spec_pack_runs"
        end,
      })
      local back = copied(pool, function(arg, more)
        return { arg.of, arg.answer, more }
      end, object, "more")
      assert.same({ 42, 42, "more" }, back)
    end)
  end)

  --- How objects may be in each other: `wrap` gives one around another.
  ---@type table<string, fun(box: any, inner: any): any>
  local nestings = {
    ["in tables"] = function(box, inner)
      return box.box { inner }
    end,
    ["in fields"] = function(box, inner)
      return box.box(inner)
    end,
    ["immediately around a table"] = function(_, inner)
      return setmetatable({}, {
        __msys_pack = function()
          return inner, "spec_pack_plain"
        end,
      })
    end,
  }
  nestings["immediately around a string"] = nestings["immediately around a table"]
  for how, wrap in pairs(nestings) do
    setfenv(wrap, _G)
    for _, depth in ipairs { 10, 20, 30, 47, 48, 49, 95, 96, 97, 98, 150, 1000 } do
      local what = depth <= 30 and "may be" or "may be, or is refused where it is sent, if it is"
      it(("%s nested %d deep %s"):format(what, depth, how), function()
        with_box(function(box, pool)
          local object = how == "immediately around a string" and "innermost" or { "innermost" }
          for _ = 1, depth do
            object = wrap(box, object)
          end
          local ok, back = pcall(echo, pool, object)
          if not ok then
            assert.is_true(depth > 30)
            -- Not at the receiver, which takes what has been sent.
            assert.matches("__msys_pack", back, 1, true)
            assert.matches("nested too deeply", back, 1, true)
            return
          end
          local places = how == "in tables" and 2 * depth or how == "in fields" and depth or 0
          for _ = 1, places do
            back = back.of or back[1]
          end
          assert.equal("innermost", type(back) == "table" and back[1] or back)
        end)
      end)
    end
  end
end)

describe(
  "many objects whose packed values are made for the message, and collected while it is encoded,",
  function()
    after_each(helper.clean)

    local COUNT = helper.times(1000)

    --- Objects that each pack what `make(i)` gives.
    local function objects_of(count, make)
      local meta = {
        __msys_pack = function(object)
          if object.i % 100 == 0 then
            collectgarbage()
            collectgarbage()
          end
          return make(object.i), "spec_pack_plain"
        end,
      }
      local objects = {}
      for i = 1, count do
        objects[i] = setmetatable({ i = i }, meta)
      end
      return objects
    end
    setfenv(objects_of, _G)

    --- What makes a packed value, and what tells whether it came out as its own.
    ---@type table<string, { make: function, is_right: function, count?: integer }>
    local contents = {
      ["tables"] = {
        make = function(i)
          return { i = i }
        end,
        is_right = function(value, i)
          return value.i == i
        end,
      },
      ["tables in tables"] = {
        make = function(i)
          return { { { i } }, { i } }
        end,
        is_right = function(value, i)
          return value[1][1][1] == i and value[2][1] == i and value[1] ~= value[2]
        end,
      },
      ["functions"] = {
        make = function(i)
          return function()
            return i
          end
        end,
        is_right = function(value, i)
          return value() == i
        end,
      },
      ["functions that share a cell"] = {
        make = function(i)
          local count = i
          return {
            function()
              count = count + 1
            end,
            function()
              return count
            end,
          }
        end,
        is_right = function(value, i)
          value[1]()
          return value[2]() == i + 1
        end,
      },
      ["64-bit numbers"] = {
        make = function(i)
          return 0LL + i
        end,
        is_right = function(value, i)
          return value == 0LL + i
        end,
      },
      ["tables with metatables"] = {
        make = function(i)
          return setmetatable({}, { __index = { i = i } })
        end,
        is_right = function(value, i)
          return value.i == i
        end,
      },
      ["tables with a key of their own"] = {
        make = function(i)
          return { ["key number " .. i] = i }
        end,
        is_right = function(value, i)
          return value["key number " .. i] == i and next(value) == "key number " .. i
        end,
      },
      ["strings"] = {
        make = function(i)
          return "text number " .. i
        end,
        is_right = function(value, i)
          return value == "text number " .. i
        end,
      },
      ["other objects that pack themselves"] = {
        make = function(i)
          return setmetatable({}, {
            __msys_pack = function()
              return { i = i }, "spec_pack_plain"
            end,
          })
        end,
        is_right = function(value, i)
          return value.i == i
        end,
      },
      ["functions of code of their own, which name globals"] = {
        count = helper.times(500),
        make = function(i)
          rawset(_G, "spec_packed_" .. i, i)
          return assert(loadstring(("return spec_packed_%d"):format(i)))
        end,
        is_right = function(value, i)
          return value() == i
        end,
      },
    }
    for what, case in pairs(contents) do
      setfenv(case.make, _G)
      setfenv(case.is_right, _G)

      local is_right = case.is_right
      --- The number of objects, how many are wrong, and the first of them.
      local function check(objects)
        local wrong, first = 0, nil
        for i = 1, #objects do
          local ok, right = pcall(is_right, objects[i], i)
          if not (ok and right) then
            wrong, first = wrong + 1, first or i
          end
        end
        return #objects, wrong, first
      end
      local count = case.count or COUNT
      local function clear()
        for i = 1, case.count or 0 do
          rawset(_G, "spec_packed_" .. i, nil)
        end
      end

      for _, in_place in ipairs { true, false } do
        it(("keep their own: %s, %s"):format(what, in_place and "in place" or "as copies"), function()
          with_box(function(_, pool)
            local objects = objects_of(count, case.make)
            local results =
              { pcall(msys.runInPool, pool, check, { args = { objects }, in_place = in_place }) }
            clear()
            assert.same({ true, true, count, 0 }, results)
          end)
        end)
      end

      if not case.count then
        it(("keep their own: %s, in results"):format(what), function()
          with_box(function(_, pool)
            local make = case.make
            local ok, back = msys.runInPool(pool, function()
              return objects_of(count, make)
            end)
            assert.is_true(ok, tostring(back))
            assert.same({ count, 0 }, { check(back) })
          end)
        end)
      end
    end
  end
)

--- What `__msys_pack` may do wrong, and what the error says.
---@type { what: string, pack: fun(object: any): any, string, text: string }[]
local refused = {
  {
    what = "raises",
    pack = function()
      error("the box is locked", 0)
    end,
    text = "the box is locked",
  },
  {
    what = "raises a table",
    pack = function()
      error { reason = "locked" }
    end,
    text = "__msys_pack",
  },
  {
    what = "gives nothing",
    pack = function() end,
    text = "__msys_pack must give a value and the name of the module that unpacks it",
  },
  {
    what = "gives no module",
    pack = function()
      return {}
    end,
    text = "__msys_pack must give a value and the name of the module that unpacks it",
  },
  {
    what = "gives a module's table for its name",
    pack = function()
      return {}, {}
    end,
    text = "__msys_pack must give a value and the name of the module that unpacks it",
  },
  {
    what = "gives an empty name",
    pack = function()
      return {}, ""
    end,
    text = "__msys_pack must give a value and the name of the module that unpacks it",
  },
  {
    what = "gives a name that is no text",
    pack = function()
      return {}, "\255\254"
    end,
    text = "__msys_pack must give a value and the name of the module that unpacks it",
  },
  {
    what = "gives a coroutine",
    pack = function()
      return coroutine.create(print), "spec_pack_plain"
    end,
    text = "coroutine",
  },
  {
    what = "gives a table with a file in it",
    pack = function()
      return { file = io.stdout }, "spec_pack_plain"
    end,
    text = "userdata 'file'",
  },
  {
    what = "gives the object itself",
    pack = function(object)
      return object, "spec_pack_plain"
    end,
    text = "refers to the object itself",
  },
  {
    what = "gives what refers to the object itself",
    pack = function(object)
      return {
        function()
          return object
        end,
      }, "spec_pack_plain"
    end,
    text = "refers to the object itself",
  },
  {
    what = "gives an endless chain of such objects",
    pack = function(object)
      return setmetatable({}, getmetatable(object)), "spec_pack_plain"
    end,
    text = "nested too deeply",
  },
  {
    what = "yields",
    pack = function()
      coroutine.yield()
      return 1, "spec_pack_plain"
    end,
    text = "attempt to yield across C-call boundary",
  },
}

describe("an object is refused if its __msys_pack", function()
  after_each(helper.clean)

  --- Calls `fn` with a pool, and the text with which an object of the case is refused as an argument's part.
  local function with_refusal(case, fn)
    with_box(function(_, pool)
      local object = setmetatable({}, { __msys_pack = case.pack })
      local ok, text = pcall(function()
        msys.runInPool(pool, function() end, { args = { 1, { inner = object } } })
      end)
      assert.is_false(ok)
      fn(text, pool)
    end)
  end

  --- The same for one that is a result's part.
  local function with_outcome(case, fn)
    with_box(function(_, pool)
      local pack = case.pack
      local ok, text, info = msys.runInPool(pool, function()
        return 1, { inner = setmetatable({}, { __msys_pack = pack }) }
      end)
      assert.is_false(ok)
      fn(text, info, pool)
    end)
  end

  for _, case in ipairs(refused) do
    setfenv(case.pack, _G)

    it(case.what, function()
      with_refusal(case, function(text, pool)
        assert.matches("^[^\n]*pack_spec%.lua:%d+: msys%.runInPool: ", text)
        assert.matches(case.text, text, 1, true)
        -- The pool and the next message are as before.
        assert.equal(5, (echo(pool, 5)))
      end)
    end)

    it(case.what .. ": as a result", function()
      with_outcome(case, function(text, info, pool)
        assert.equal("unsendable", info.kind)
        assert.matches(case.text, text, 1, true)
        assert.equal(5, (echo(pool, 5)))
      end)
    end)

    it(case.what .. ": with the path to it", function()
      with_refusal(case, function(text)
        assert.matches("argument 2.inner", text, 1, true)
      end)
    end)

    it(case.what .. ": with the path to it in a result", function()
      with_outcome(case, function(text)
        assert.matches("^msys%.runInPool: ", text)
        assert.matches("result 2.inner", text, 1, true)
      end)
    end)

    it(case.what .. ": as a global, then that one is left behind", function()
      with_box(function(_, pool)
        rawset(_G, "spec_packed", setmetatable({}, { __msys_pack = case.pack }))
        local ok, done, text = pcall(msys.runInPool, pool, function(use)
          if use then return spec_packed end -- luacheck: ignore
          return "not read"
        end)
        rawset(_G, "spec_packed", nil)
        assert.same({ true, true, "not read" }, { ok, done, text })
      end)
    end)
  end
end)

--- What may be wrong with the module that unpacks, and what the error says.
---@type { what: string, module: string, text: string }[]
local lost = {
  {
    what = "is not found",
    module = "spec_pack_no_such_module",
    text = "module 'spec_pack_no_such_module' cannot be loaded in the worker: ",
  },
  {
    what = "does not load",
    module = "spec_pack_broken",
    text = "module 'spec_pack_broken' cannot be loaded in the worker: ",
  },
  { what = "has no __msys_unpack", module = "spec_pack_missing", text = "spec_pack_missing.__msys_unpack" },
  { what = "raises in its __msys_unpack", module = "spec_pack_raises", text = "no way to unpack me" },
}

describe("an object fails its job's outcome, with the reason, if the module that unpacks it", function()
  after_each(helper.clean)

  for _, case in ipairs(lost) do
    it(case.what, function()
      with_box(function(_, pool)
        local object = setmetatable({}, {
          __msys_pack = function()
            return { name = "me" }, case.module
          end,
        })
        local ok, text, info = msys.runInPool(pool, function()
          return "ran"
        end, { args = { object } })
        assert.same({ false, "error" }, { ok, info.kind })
        assert.matches(case.text, text, 1, true)
        local errors = helper.catching(function(errors)
          msys.runInPool(pool, function() end, { args = { object }, async = true })
          helper.eventually(function()
            return errors[1]
          end, "the report")
        end)
        assert.matches(case.text, errors[1].err, 1, true)
        assert.equal(5, (echo(pool, 5)))
      end)
    end)

    it(case.what .. ", here, where it is a result", function()
      with_box(function(_, pool)
        local module = case.module
        local ok, text = msys.runInPool(pool, function()
          return setmetatable({}, {
            __msys_pack = function()
              return { name = "me" }, module
            end,
          })
        end)
        assert.is_false(ok)
        local here = case.text:gsub("cannot be loaded in the worker: ", "")
        assert.matches(here, tostring(text), 1, true)
        assert.equal(5, (echo(pool, 5)))
      end)
    end)
  end
end)
