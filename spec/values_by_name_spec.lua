-- What crosses as a name: the standard library, and what of msys itself. Modules: values_modules_spec.lua

local helper = require "spec.helper"
local msys = require "msys"
local values = require "spec.values"

local describe, it, _, after_each, assert = helper.busted()
local with_pool = helper.with_pool
local run, echo = values.run, values.echo

describe("the standard library", function()
  after_each(helper.clean)

  local LIBRARIES = "string table math io os coroutine debug package bit jit jit.opt ffi _G"
  for library in LIBRARIES:gmatch "%S+" do
    it(("crosses as what it is there: %s"):format(library), function()
      local tbl = require(library)
      local c_functions = {}
      for name, value in pairs(tbl) do
        local is_c = type(value) == "function" and debug.getinfo(value, "S").what == "C"
        -- `table.new` and its like are modules, which busted has opened again, as new functions, for each file.
        if is_c and not package.preload[library .. "." .. name] then c_functions[name] = value end
      end
      local wrong = run(function()
        for name, value in pairs(c_functions) do
          -- penlight, which busted uses, puts some of the globals into `table`.
          if value ~= require(library)[name] and value ~= _G[name] then return name end
        end
        return tbl ~= require(library)
      end)
      assert.is_false(wrong)
      local back, functions = echo(tbl, c_functions)
      assert.equal(tbl, back)
      for name, value in pairs(c_functions) do
        assert.equal(value, functions[name], name)
      end
    end)
  end

  for _, field in ipairs { "loaded", "preload", "loaders" } do
    it(("crosses as that of the other VM: package.%s"):format(field), function()
      local tbl = package[field]
      assert.is_true((run(function(given)
        return tbl == package[field] and given[1] == tbl
      end, { tbl })))
      assert.equal(tbl, (echo(tbl)))
    end)
  end

  it("crosses in any place of a message", function()
    local rep, lib, globals = string.rep, string, _G
    local function is_right(tbl, key_of)
      return tbl.rep == string.rep
        and tbl[1][1] == string
        and tbl[1][2] == _G
        and getmetatable(tbl).__index == string
        and tbl.upper == string.upper
        and key_of[print] == "print"
        and key_of[string] == "string"
        and rep("ab", 2) == "abab"
        and lib.rep == rep
        and globals == _G
        and globals.print == print
    end
    local tbl = setmetatable({ rep = rep, { lib, globals } }, { __index = string })
    local key_of = { [print] = "print", [string] = "string" }
    assert.is_true((run(is_right, tbl, key_of)))
    assert.is_true(is_right(echo(tbl, key_of)))
  end)

  it("lets the metatable of strings cross as a copy that refers to it", function()
    assert.same({ __index = string }, (echo(getmetatable "")))
  end)

  it("crosses without the script's own additions, which cross as code", function()
    -- luacheck: push ignore
    string.msys_spec_shout = function(text)
      return text:upper() .. "!"
    end
    local ok, shouted, unknown = msys.runInPool("CPU", function(shout)
      return shout "hey", string.msys_spec_shout == nil
    end, { args = { string.msys_spec_shout } })
    string.msys_spec_shout = nil
    -- luacheck: pop
    assert.same({ true, "HEY!", true }, { ok, shouted, unknown })
  end)

  it("includes LuaJIT's own modules that are functions", function()
    local new, clear = require "table.new", require "table.clear"
    assert.is_true((run(function()
      return new == require "table.new" and clear == require "table.clear"
    end)))
    assert.same({ new, clear }, { echo(new, clear) })
  end)

  it("does not lend its name to a C function of another module that the script put into it", function()
    -- luacheck: push ignore
    local sizeof = require("ffi").sizeof
    string.msys_spec_sizeof = sizeof
    local ok, size = msys.runInPool("CPU", function()
      return sizeof "int64_t"
    end)
    string.msys_spec_sizeof = nil
    -- Whatever is sent next must not use the name either.
    local again, same_size = msys.runInPool("CPU", function()
      return (sizeof "int64_t")
    end)
    -- luacheck: pop
    assert.same({ true, 8, true, 8 }, { ok, size, again, same_size })
  end)

  it("includes the FFI, with which a job makes its own objects", function()
    local ffi, bit = require "ffi", require "bit"
    assert.same({ 8, 6 }, {
      run(function()
        local box = ffi.new "int64_t[1]"
        return ffi.sizeof(box), bit.bxor(5, 3)
      end),
    })
  end)
end)

describe("of msys itself", function()
  after_each(helper.clean)

  it("the module and its functions cross by name", function()
    local runInPool, sleep, threadpool = msys.runInPool, msys.sleep, msys.threadpool
    assert.is_true((run(function()
      local own = require "msys"
      return msys == own
        and runInPool == own.runInPool
        and sleep == own.sleep
        and threadpool == own.threadpool
        and threadpool.find == require("msys.threadpool").find
    end)))
    assert.same({ msys, runInPool, threadpool }, { echo(msys, runInPool, threadpool) })
  end)

  it("a captured runInPool works there", function()
    local runInPool = msys.runInPool
    assert.same({ true, "inner" }, {
      run(function()
        return runInPool("CPU", function()
          return "inner"
        end)
      end),
    })
  end)

  it("a pool crosses as the same pool", function()
    with_pool({ name = "Spec of handles" }, function(pool)
      local function is_right(tbl, key_of)
        return tbl[1] == pool
          and key_of[pool] == "key"
          and pool.name == "Spec of handles"
          and pool.id == tbl.id
      end
      local tbl, key_of = { pool, id = pool.id }, { [pool] = "key" }
      assert.is_true((run(is_right, tbl, key_of)))
      assert.is_true(is_right(echo(tbl, key_of)))
      assert.equal("Spec of handles", (run(function()
        local _, _, info = msys.runInPool(pool, function()
          error "here"
        end)
        return info.pool
      end)))
      assert.equal(tostring(pool), (run(function()
        return tostring(pool)
      end)))
    end)
  end)

  it("a pool that was shut down crosses, and takes no jobs", function()
    local closed
    with_pool(nil, function(pool)
      closed = pool
    end)
    assert.equal(closed, (echo(closed)))
    local ok, err, info = run(function()
      return msys.runInPool(closed, function() end)
    end)
    assert.is_false(ok)
    assert.is_string(err)
    assert.equal("shutdown", info.kind)
  end)
end)
