-- What crosses as a name, second part: modules that the script has required.

local helper = require "spec.helper"
local msys = require "msys"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local with_pool = helper.with_pool
local run_in, run = helper.must, values.run

local made = 0

--- Calls `fn` with the name of a new module that has this text, in a pool whose workers have not loaded it.
---@param text string
---@param fn fun(name: string, pool: msys.Pool, file: string)
local function with_module(text, fn)
  made = made + 1
  local name = ("msys_spec_module_%d_%d"):format(helper.pid(), made)
  local folder = helper.folder { [name .. ".lua"] = text }
  local path = package.path
  package.path = folder .. "/?.lua;" .. path
  local ok, err = pcall(with_pool, nil, function(pool)
    fn(name, pool, folder .. "/" .. name .. ".lua")
  end)
  package.path = path
  package.loaded[name] = nil
  if not ok then error(err, 0) end
end

local COUNTER = [[
local counter = { name = ... , options = {} }
local count = 0
function counter.add() count = count + 1 return count end
local function hidden() return counter, count end
counter.closures = { hidden }
counter.__index = counter
return counter
]]

describe("a required module", function()
  after_each(helper.clean)

  it("crosses as what `require` finds there", function()
    with_module(COUNTER, function(name, pool)
      local counter = require(name)
      local add = counter.add
      local function is_right(arg)
        return counter == require(name)
          and add == counter.add
          and arg[counter] == add
          and counter.name == name
      end
      assert.is_true((run_in(pool, is_right, { [counter] = add })))
      local back, back_add = run_in(pool, function(...)
        return ...
      end, counter, add)
      assert.equal(counter, back)
      assert.equal(add, back_add)
    end)
  end)

  it("has a state of its own in each VM", function()
    with_module(COUNTER, function(name, pool)
      local add = require(name).add
      assert.equal(1, add())
      assert.equal(2, add())
      local function job()
        return add()
      end
      assert.equal(1, (run_in(pool, job)))
      assert.equal(2, (run_in(pool, job)))
      assert.equal(3, add())
    end)
  end)

  it("is found too when messages with the same code were sent before it was loaded", function()
    with_module(COUNTER, function(name, pool)
      local module
      local function job()
        return module and module == require(name)
      end
      assert.is_nil((run_in(pool, job)))
      module = require(name)
      assert.is_true((run_in(pool, job)))
    end)
  end)

  it("is found too as an argument of code that was sent before it was loaded", function()
    with_module(COUNTER, function(name, pool)
      local function job(module, add)
        return module and module == require(name) and add == module.add
      end
      assert.is_nil((run_in(pool, job)))
      local module = require(name)
      assert.is_true((run_in(pool, job, module, module.add)))
    end)
  end)

  for what, text in pairs { data = "return { limit = 5 }", userdata = "return { file = io.stdout }" } do
    it(("of %s alone is found too after other messages"):format(what), function()
      with_module(text, function(name, pool)
        local function job(module)
          return module == require(name)
        end
        assert.is_false((run_in(pool, job)))
        assert.is_true((run_in(pool, job, require(name))))
        local function give()
          return require(name)
        end
        assert.equal(require(name), (run_in(pool, give)))
      end)
    end)
  end

  it("is loaded by the host when it is a job's result", function()
    with_module(COUNTER, function(name, pool)
      local module, add = run_in(pool, function()
        local module = require(name)
        module.add()
        return module, module.add
      end)
      assert.equal(package.loaded[name], module)
      assert.equal(module.add, add)
      assert.equal(1, add())
    end)
  end)

  it("may be a function", function()
    with_module("return function(x) return x * 2 end", function(name, pool)
      local double = require(name)
      assert.same({ 42, true }, {
        run_in(pool, function()
          return double(21), double == require(name)
        end),
      })
    end)
  end)

  it("may be the metatable of objects that cross", function()
    with_module(COUNTER, function(name, pool)
      local class = require(name)
      local function is_right(object)
        return getmetatable(object) == require(name) and object.add == require(name).add
      end
      assert.is_true((run_in(pool, is_right, setmetatable({}, class))))
      assert.is_true(is_right(run_in(pool, function()
        return setmetatable({}, class)
      end)))
    end)
  end)

  it("may be the environment of its functions, as `module` makes it", function()
    with_module(
      "module(..., package.seeall) local function of() return value end value = 1 inner = { of }",
      function(name, pool)
        local module = require(name)
        local of = module.inner[1]
        assert.same({ 1, true }, {
          run_in(pool, function()
            return of(), getfenv(of) == require(name)
          end),
        })
        _G[name] = nil
      end
    )
  end)

  it("keeps its inner tables and functions to itself: they cross as copies", function()
    with_module(COUNTER, function(name, pool)
      local counter = require(name)
      local options, hidden = counter.options, counter.closures[1]
      counter.add()
      assert.same({ true, true, 1 }, {
        run_in(pool, function()
          local module, count = hidden()
          return module == require(name), options ~= module.options, count
        end),
      })
    end)
  end)

  it("that cannot be loaded there is named by the outcome, and the pool goes on", function()
    with_module(
      "if _OSTLS then error('not on my watch') end return { f = function() end }",
      function(name, pool)
        local module = require(name)
        for _, value in ipairs { module, module.f } do
          local ok, err, info = msys.runInPool(pool, function()
            return value
          end)
          assert.is_false(ok)
          assert.matches(("module '%s' cannot be loaded in the worker: "):format(name), err, 1, true)
          assert.matches("not on my watch", err, 1, true)
          assert.equal("error", info.kind)
        end
        assert.equal("fine", (run_in(pool, function()
          return "fine"
        end)))
      end
    )
  end)

  it("that cannot be found there is named by the outcome", function()
    with_module(COUNTER, function(name, pool, file)
      local module = require(name)
      local function job()
        return module.name
      end
      run(job)
      assert(os.remove(file))
      local ok, err = msys.runInPool(pool, job)
      assert.is_false(ok)
      assert.matches(("module '%s' cannot be loaded in the worker: "):format(name), err, 1, true)
    end)
  end)

  it("that cannot be loaded here is named by the outcome that gives it", function()
    with_module(
      "if not _OSTLS then error('workers only') end return { f = function() end }",
      function(name, pool)
        local ok, err = msys.runInPool(pool, function()
          return require(name)
        end)
        assert.is_false(ok)
        assert.matches(("module '%s'"):format(name), tostring(err), 1, true)
      end
    )
  end)

  it("whose function is not there any more is named by the outcome", function()
    with_module("return { f = not _OSTLS and function() end or nil }", function(name, pool)
      local ok, err = msys.runInPool(pool, require(name).f)
      assert.is_false(ok)
      assert.matches(("'%s.f' does not exist in this VM"):format(name), err, 1, true)
    end)
  end)

  it("of which no file is found crosses as a copy", function()
    local name = "msys_spec_fileless"
    package.loaded[name] = { value = 5 }
    local module = package.loaded[name]
    local ok, value, unknown = msys.runInPool("CPU", function()
      return module.value, package.loaded[name] == nil
    end)
    package.loaded[name] = nil
    assert.same({ true, 5, true }, { ok, value, unknown })
  end)
end)
