-- Weak tables, and objects that collect garbage while they are packed: what is sent may go in the middle of it. And
-- packed values, which are the message's alone.

local helper = require "spec.helper"
local msys = require "msys"
local thread = require "thread"

local describe, it, _, after_each, assert = helper.busted()

--- `spec_weak_object` makes objects that pack what their hook gives, and are unpacked as that.
local MODULES = {
  ["spec_weak_object.lua"] = [[
    local meta = {}
    function meta.__msys_pack(object) return object.hook(object), "spec_weak_object" end
    return {
      new = function(hook, n) return setmetatable({ hook = hook, n = n }, meta) end,
      __msys_unpack = function(value) return value end,
    }
  ]],
  -- Its methods refer to what cannot be sent.
  ["spec_weak_file.lua"] = [[
    local module, out = {}, io.stdout
    local meta = { __index = { say = function() return tostring(out) end } }
    function meta.__msys_pack(object) return { x = object.x }, "spec_weak_file" end
    function module.__msys_unpack(value) return setmetatable(value, meta) end
    function module.new(x) return setmetatable({ x = x }, meta) end
    return module
  ]],
  -- What it packs is the very table that it has here.
  ["spec_weak_state.lua"] = [[
    local module, meta = {}, {}
    function meta.__msys_pack(object) return object.state, "spec_weak_state" end
    function module.__msys_unpack(state)
      state.opened = true
      return setmetatable({ state = setmetatable(state, { __name = "opened" }) }, meta)
    end
    function module.new(state) return setmetatable({ state = state }, meta) end
    return module
  ]],
}

--- Calls `fn(pool, module)` with a pool whose workers find that module.
local function with_module(name, fn)
  local path = package.path
  package.path = helper.folder(MODULES) .. "/?.lua;" .. path
  local ok, err = pcall(helper.with_pool, nil, function(pool)
    fn(pool, require(name))
  end)
  package.path = path
  for file in pairs(MODULES) do
    package.loaded[file:match "^[%l_]+"] = nil
  end
  if not ok then error(err, 0) end
end

--- How a value gets to another VM, or back from it: what `check` gives for it there.
---@type table<string, fun(pool: any, value: any, check: function): any>
local ways = {
  ["in place"] = function(pool, value, check)
    return helper.must(pool, function()
      return check(value)
    end)
  end,
  ["as a copy"] = function(pool, value, check)
    local function finish(ok, ...)
      assert.is_true(ok, tostring((...)))
      return ...
    end
    return finish(msys.runInPool(pool, check, { args = { value }, in_place = false }))
  end,
  ["through a channel"] = function(pool, value, check)
    local channel = thread.channel(1)
    channel:send(value)
    return helper.must(pool, function()
      local _, received = channel:receive()
      return check(received)
    end)
  end,
  ["through a shared table"] = function(pool, value, check)
    local shared = thread.shared {}
    shared.value = function()
      return value
    end
    return helper.must(pool, function()
      return check(shared.value())
    end)
  end,
}
for _, way in pairs(ways) do
  setfenv(way, _G)
end

--- How many of `value[2]`'s objects have not their own fresh tables, or entries of `value[1]` are not what they were.
local function wrong_ones(value)
  local wrong, first = 0, nil
  for i = 1, value.count do
    local tables = value[2][i]
    local is_right = type(tables) == "table" and #tables == value.per
    for place = 1, is_right and value.per or 0 do
      is_right = is_right and tables[place].fresh == i and not tables[place].cached
    end
    if not is_right then
      wrong, first = wrong + 1, first or ("object %d"):format(i)
    end
  end
  for key, entry in pairs(value[1]) do
    local own = type(key) == "table" and key or entry
    if own.cached ~= (type(key) == "table" and entry or key) or own.fresh then
      wrong, first = wrong + 1, first or ("entry %s"):format(tostring(key))
    end
  end
  return wrong, first
end
setfenv(wrong_ones, _G)

--- A weak table whose entries nobody else has, and objects which make `per` new tables each as they are packed. Where
--- `collect`, the first of them collects the entries, which have been written by then.
local function cache_and_objects(module, mode, count, per, collect)
  local cache = setmetatable({}, { __mode = mode })
  for i = 1, count do
    if mode == "k" then
      cache[{ cached = i }] = i
    else
      cache[i] = { cached = i }
    end
  end
  local function hook(object)
    if collect and object.n == 1 then collectgarbage() end
    local tables = {}
    for place = 1, per do
      tables[place] = { fresh = object.n }
    end
    return tables
  end
  local objects = {}
  for i = 1, count do
    objects[i] = module.new(hook, i)
  end
  return { cache, objects, count = count, per = per }
end
setfenv(cache_and_objects, _G)

describe("addresses that are used again while a message is made do not mix up", function()
  after_each(helper.clean)

  for what, way in pairs(ways) do
    for _, mode in ipairs { "k", "v", "kv" } do
      it(("a weak table's entries (%s) and packed tables, %s"):format(mode, what), function()
        with_module("spec_weak_object", function(pool, module)
          for _ = 1, helper.times(20) do
            local wrong, first = way(pool, cache_and_objects(module, mode, 100, 4, true), wrong_ones)
            assert.same({ 0, nil }, { wrong, first })
          end
        end)
      end)
    end
  end

  for _, mode in ipairs { "k", "v", "kv" } do
    it(("a weak table's entries (%s) and packed tables, in a result"):format(mode), function()
      with_module("spec_weak_object", function(pool)
        for _ = 1, helper.times(20) do
          -- Garbage is collected when it is, too.
          local value = helper.must(pool, function()
            return cache_and_objects(require "spec_weak_object", mode, 300, 10, mode == "kv")
          end)
          assert.same({ 0, nil }, { wrong_ones(value) })
        end
      end)
    end)
  end

  it("keys that were written and dropped, and new ones", function()
    with_module("spec_weak_object", function(pool, module)
      for round = 1, helper.times(60) do
        local old = {}
        for i = 1, 40 do
          old["old " .. round .. " " .. i] = i
        end
        local object = module.new(function()
          for key in pairs(old) do
            old[key] = nil
          end
          collectgarbage()
          collectgarbage()
          local new = {}
          for i = 1, 40 do
            new["new " .. round .. " " .. i] = i
          end
          return new
        end)
        local list = { old, object }
        local count, wrong = helper.must(pool, function()
          local count, wrong = 0, nil
          for key, i in pairs(list[2]) do
            count = count + 1
            if key ~= "new " .. round .. " " .. i then wrong = key end
          end
          return count, wrong
        end)
        assert.same({ 40, nil }, { count, wrong })
      end
    end)
  end)

  it("functions that were written and dropped, and new ones", function()
    with_module("spec_weak_object", function(pool, module)
      for _ = 1, helper.times(50) do
        local cache = setmetatable({}, { __mode = "v" })
        for i = 1, 50 do
          cache[i] = function()
            return -i
          end
        end
        local object = module.new(function()
          collectgarbage()
          local functions = {}
          for i = 1, 50 do
            functions[i] = function()
              return i
            end
          end
          return functions
        end)
        local wrong = ways["as a copy"](pool, { cache, object }, function(list)
          for i = 1, 50 do
            if list[2][i]() ~= i or list[1][i] and list[1][i]() ~= -i then return i end
          end
        end)
        assert.is_nil(wrong)
      end
    end)
  end)
end)

describe("a weak table crosses with the entries that there are", function()
  after_each(helper.clean)

  for what, way in pairs(ways) do
    for _, mode in ipairs { "k", "v", "kv" } do
      it(("mode %s, %s"):format(mode, what), function()
        with_module("spec_weak_object", function(pool, module)
          --- Objects that collect all garbage, also of the table that they are in, while that is written.
          local function collect()
            collectgarbage()
            return { "object" }
          end
          for round = 1, helper.times(4) do
            local cache, kept = setmetatable({}, { __mode = mode }), {}
            for i = 1, 300 do
              local value = i % 50 == 0 and module.new(collect, i) or { i }
              -- Each second one is somebody's; the others are garbage, gone at some time.
              if i % 2 == 0 then kept[#kept + 1] = value end
              cache[i], cache["key " .. round .. " " .. i] = value, value
              if i % 50 ~= 0 then cache[value] = value end
            end
            local wrong, found = way(pool, { cache, kept }, function(value)
              local wrong, found = 0, 0
              for key, entry in pairs(value[1]) do
                local i = type(key) == "table" and key[1] or tonumber((tostring(key):match "(%d+)$"))
                if entry[1] ~= (i % 50 == 0 and "object" or i) then wrong = wrong + 1 end
              end
              for place, entry in ipairs(value[2]) do
                if value[1][2 * place] == entry then found = found + 1 end
              end
              return wrong, found
            end)
            assert.same({ 0, 150 }, { wrong, found })
          end
        end)
      end)
    end
  end
end)

describe("a weak table is no table that was changed while it was sent", function()
  after_each(helper.clean)

  for _, mode in ipairs { "v", "kv" } do
    for _, in_place in ipairs { true, false } do
      it(("mode %s, in_place = %s"):format(mode, tostring(in_place)), function()
        helper.with_pool(nil, function(pool)
          for round = 1, 20 do
            local cache, kept = setmetatable({}, { __mode = mode }), {}
            for i = 1, 3000 do
              local value = { i }
              cache["key " .. round .. " " .. i] = value
              if i % 100 == 0 then kept[i] = value end
            end
            -- Collections follow each other at once, so that some end in the middle of the message.
            local pause, speed = collectgarbage("setpause", 0), collectgarbage("setstepmul", 10000)
            local called, ok, wrong, found = pcall(msys.runInPool, pool, function()
              local wrong, found = 0, 0
              for key, entry in pairs(cache) do
                local i = tonumber((key:match "(%d+)$"))
                if entry[1] ~= i then wrong = wrong + 1 end
                if i % 100 == 0 and entry == kept[i] then found = found + 1 end
              end
              return wrong, found
            end, { in_place = in_place })
            collectgarbage("setpause", pause)
            collectgarbage("setstepmul", speed)
            assert.same({ true, true, 0, 30 }, { called, ok, wrong, found })
          end
        end)
      end)
    end
  end
end)

describe("a finalizer that changes what is sent", function()
  after_each(helper.clean)

  for _, in_place in ipairs { true, false } do
    it(("does not make a malformed message: in_place = %s"):format(tostring(in_place)), function()
      with_module("spec_weak_object", function(pool, module)
        local refused = 0
        -- At some depth, tables are put off until what is above them is written.
        for first = 40, 55 do
          local deep, levels = {}, {}
          local level = deep
          for i = 1, 60 do
            levels[i], level.v, level[1] = level, i, {}
            level = level[1]
          end
          local proxy = newproxy(true)
          getmetatable(proxy).__gc = function()
            for i = first, first + 4 do
              setmetatable(levels[i], nil)
            end
          end
          for i = first, first + 4 do
            setmetatable(levels[i], { tag = i })
          end
          proxy = nil -- luacheck: ignore
          local list = {
            deep,
            module.new(function()
              collectgarbage()
              return 1
            end),
            "tail",
          }
          local called, ok, wrong, tail = pcall(msys.runInPool, pool, function()
            local at = list[1]
            for i = 1, 60 do
              local meta = getmetatable(at)
              if at.v ~= i or meta and meta.tag ~= i then return i, list[3] end
              at = at[1]
            end
            return nil, list[3]
          end, { in_place = in_place })
          if called then
            assert.same({ true, nil, "tail" }, { ok, wrong, tail })
          else
            assert.matches("a table was changed while it was being sent", ok, 1, true)
            refused = refused + 1
          end
        end
        -- Or this is no test of that.
        assert.is_true(refused > 0)
      end)
    end)
  end
end)

describe("what is inside a packed value", function()
  after_each(helper.clean)

  it("is no change of the job's, though the object's methods cannot be sent", function()
    with_module("spec_weak_file", function(pool, module)
      local object = module.new(5)
      assert.equal(5, (helper.must(pool, function()
        return object.x
      end)))
      assert.equal(6, (helper.must(pool, function()
        object.x = 6
        return object.x
      end)))
      assert.equal(5, object.x)
    end)
  end)

  it("is no change of the job's, where the caller has the same table", function()
    with_module("spec_weak_state", function(pool, module)
      local state = { n = 1 }
      local object = module.new(state)
      assert.is_true((helper.must(pool, function()
        object.state.n, object.state.new = 2, {}
        return object.state.opened
      end)))
      assert.same({ n = 1 }, state)
      assert.is_nil(getmetatable(state))
    end)
  end)

  for _, first in ipairs { "table", "object" } do
    it("is one, where the table is captured too: the " .. first .. " first", function()
      with_module("spec_weak_state", function(pool, module)
        local state = { n = 1, inner = {} }
        local object = module.new(state)
        local list = first == "table" and { state, object } or { object, state }
        helper.must(pool, function()
          local plain = list[first == "table" and 1 or 2]
          plain.n, plain.new, plain.inner.x = 2, { 3 }, 4
        end)
        assert.same({ 2, 3, 4 }, { state.n, state.new and state.new[1], state.inner.x })
        assert.equal(state, object.state)
      end)
    end)
  end
end)
