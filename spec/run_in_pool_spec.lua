-- `msys.runInPool`: what it takes, what a synchronous call gives back, how it describes a failure. What does not wait
-- is in async_spec.lua, what is refused in misuse_spec.lua.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"

local runInPool, core = msys.runInPool, msys.core
local SOURCE = debug.getinfo(1, "S").short_src

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- The line of the code that calls this.
local function here()
  return debug.getinfo(2, "l").currentline
end

--- What the function gives, with the count; for comparing with `assert.same`.
local function outcome(fn, ...)
  return pack(runInPool("CPU", fn, ...))
end

describe("msys.runInPool", function()
  after_each(helper.clean)

  describe("takes as pool", function()
    it("a name in any case", function()
      for _, name in ipairs { "CPU", "cpu", "Cpu", "IO", "io", "iO" } do
        assert.same({ true, name }, {
          runInPool(name, function()
            return name
          end),
        })
      end
    end)

    it("an id", function()
      for id, name in pairs { [0] = "CPU", [1] = "IO" } do
        local _, _, info = runInPool(id, function()
          error()
        end)
        assert.equal(name, info.pool)
      end
    end)

    it("a pool object, and a created pool's name and id", function()
      helper.with_pool({ name = "Pool of the Spec" }, function(pool)
        for _, given in ipairs { pool, pool.name, pool.id, "POOL OF THE SPEC" } do
          local ok, err, info = runInPool(given, function()
            error "here"
          end)
          assert.is_false(ok)
          assert.matches("here$", err)
          assert.equal("Pool of the Spec", info.pool)
        end
      end)
    end)
  end)

  describe("without a third argument", function()
    it("gives true and the results, nils and their count kept", function()
      local cases = {
        pack(),
        pack(nil),
        pack(1),
        pack(nil, nil, 3),
        pack(false),
        pack("a", nil, nil),
        pack(1, nil, {}, nil),
      }
      for _, case in ipairs(cases) do
        local got = outcome(function()
          return unpack(case, 1, case.n)
        end)
        assert.same(pack(true, unpack(case, 1, case.n)), got)
      end
    end)

    it("is the same with false and with nil", function()
      local function fn()
        return 1, nil
      end
      for _, got in ipairs {
        outcome(fn),
        outcome(fn, nil),
        outcome(fn, false),
        outcome(fn, {}),
        outcome(fn, { async = false }),
      } do
        assert.same(pack(true, 1, nil), got)
      end
    end)

    for _, count in ipairs { 200, 5000 } do
      it(("gives %d results"):format(count), function()
        local got = outcome(function()
          local list = {}
          for i = 1, count do
            list[i] = i
          end
          return unpack(list)
        end)
        assert.equal(count + 1, got.n)
        for i = 1, count do
          assert.equal(i, got[i + 1])
        end
      end)
    end

    it("runs the closure in another VM", function()
      msys._OSTLS.marker = "the host's"
      local got = outcome(function()
        return _OSTLS.marker
      end)
      msys._OSTLS.marker = nil
      assert.same(pack(true, nil), got)
    end)
  end)

  describe("hands the error of a job on unchanged:", function()
    it("a string with its position", function()
      local line = here() + 2
      local got = outcome(function()
        error "boom"
      end)
      assert.same({ false, ("%s:%d: boom"):format(SOURCE, line) }, { got[1], got[2] })
    end)

    it("a string without one", function()
      local got = outcome(function()
        error("boom", 0)
      end)
      assert.equal("boom", got[2])
    end)

    it("of the VM's own", function()
      local line = here() + 2
      local got = outcome(function(x)
        return x.field
      end)
      assert.equal(("%s:%d: attempt to index local 'x' (a nil value)"):format(SOURCE, line), got[2])
    end)

    it("a table, with what it refers to", function()
      local got = outcome(function()
        local err = { code = 42, list = { 1, 2 } }
        err.self = err
        error(err)
      end)
      local err = got[2]
      assert.same({ 42, { 1, 2 } }, { err.code, err.list })
      assert.equal(err, err.self)
    end)

    it("an object with __tostring", function()
      local got = outcome(function()
        error(setmetatable({ code = 42 }, {
          __tostring = function(self)
            return "code " .. self.code
          end,
        }))
      end)
      assert.equal("code 42", tostring(got[2]))
    end)

    it("nil, booleans and numbers", function()
      for _, err in ipairs { pack(nil), pack(false), pack(true), pack(42) } do
        local got = outcome(function()
          error(err[1], 0)
        end)
        assert.equal(3, got.n)
        assert.is_false(got[1])
        assert.equal(err[1], got[2])
        assert.equal("error", got[3].kind)
      end
    end)

    it("a function that can be called", function()
      local got = outcome(function()
        local n = 41
        error(function()
          n = n + 1
          return n
        end)
      end)
      assert.equal(42, got[2]())
    end)
  end)

  describe("describes a failure:", function()
    it("its kind, its pool and the number of the job", function()
      local _, _, info = runInPool("io", function()
        error "x"
      end)
      assert.same({ "error", "IO", "number" }, { info.kind, info.pool, type(info.job) })
      assert.is_nil(info.name)
    end)

    it("numbers that differ from job to job", function()
      local seen = {}
      for _ = 1, 20 do
        local _, _, info = runInPool("CPU", function()
          error()
        end)
        assert.is_nil(seen[info.job])
        seen[info.job] = true
      end
    end)

    it("the name from the options", function()
      local got = outcome(function()
        error "x"
      end, { name = "a name" })
      assert.equal("a name", got[3].name)
    end)

    it("a traceback from the raise to the closure, with nothing of msys", function()
      local function inner()
        error "deep"
      end
      local function middle()
        inner()
        return 1
      end
      local top = here() + 2
      local got = outcome(function()
        local x = middle()
        return x
      end)
      local trace = got[3].traceback
      assert.matches("^[^\n]*run_in_pool_spec.lua:%d+: deep\nstack traceback:\n", trace)
      assert.matches("run_in_pool_spec.lua:%d+: in function 'inner'\n", trace)
      assert.matches("run_in_pool_spec.lua:%d+: in function 'middle'\n", trace)
      assert.matches(("run_in_pool_spec.lua:%d: in function [^\n]*$"):format(top), trace)
      assert.is_nil(trace:find("msys", 1, true))
    end)

    it("a traceback for an error that is no string, too", function()
      local line = here() + 2
      local got = outcome(function()
        error {}
      end)
      assert.matches(("run_in_pool_spec.lua:%d: in function [^\n]*$"):format(line), got[3].traceback)
    end)

    it("a result that cannot be sent, as unsendable", function()
      local got = outcome(function()
        return 1, { list = { 2, coroutine.create(function() end) } }
      end)
      assert.same(
        { false, "msys.runInPool: cannot send result 2.list[2] (coroutine)", "unsendable", "CPU" },
        { got[1], got[2], got[3].kind, got[3].pool }
      )
    end)

    it("an error value that cannot be sent, as unsendable", function()
      local got = outcome(function()
        error { io.stdout }
      end)
      assert.is_false(got[1])
      assert.matches("cannot send the error value", got[2], 1, true)
      assert.matches("userdata 'file'", got[2], 1, true)
      assert.equal("unsendable", got[3].kind)
    end)

    it("a sound pool afterwards", function()
      helper.with_pool({}, function(pool)
        for _ = 1, 50 do
          assert.is_false((runInPool(pool, function()
            error {}
          end)))
          assert.is_true((runInPool(pool, function() end)))
        end
      end)
    end)
  end)

  describe("with options", function()
    it("passes arguments, with their holes and their count", function()
      local cases =
        { { pack(), pack() }, { { 1, 2 }, pack(1, 2) }, { pack(nil, 2, nil, nil), pack(nil, 2, nil, nil) } }
      for _, case in ipairs(cases) do
        local got = outcome(function(...)
          return select("#", ...), ...
        end, { args = case[1] })
        assert.same(pack(true, case[2].n, unpack(case[2], 1, case[2].n)), got)
      end
    end)

    it("passes 5,000 arguments", function()
      local got = outcome(function(...)
        return select("#", ...), (select(5000, ...))
      end, { args = { n = 5000, [5000] = "last" } })
      assert.same(pack(true, 5000, "last"), got)
    end)

    it("refuses too many arguments at the caller's line, whether 'n' counts them or their length", function()
      local list = {}
      for i = 1, 100000 do
        list[i] = i
      end
      for _, n in ipairs { #list, false } do
        list.n = n or nil
        local line
        local ok, err = pcall(function()
          line = here() + 1
          local got = runInPool("CPU", function() end, { args = list })
          return got
        end)
        local expected = ("spec/run_in_pool_spec.lua:%d: msys.runInPool: option 'args' "):format(line)
        assert.is_false(ok)
        assert.equal(expected, err:sub(1, #expected))
      end
    end)

    it("sees one object in an argument and in an upvalue", function()
      local shared = {}
      local got = outcome(function(a, b)
        return a == b, a == shared
      end, { args = { shared, shared } })
      assert.same(pack(true, true, true), got)
    end)

    it("takes a completion and its mode", function()
      local got
      runInPool("CPU", function(x)
        return x + 1
      end, {
        args = { 41 },
        completion = function(...)
          got = pack(...)
        end,
        mode = core.ECTP_COMPLETE_CALLBACK_SCHED,
      })
      msys.run()
      assert.same(pack(true, 42), got)
    end)

    it("gives nothing back with async or a completion", function()
      local function fn() end
      assert.equal(0, outcome(fn, { async = true }).n)
      assert.equal(0, outcome(fn, { completion = fn }).n)
      assert.equal(
        0,
        outcome(fn, { completion = fn, async = true, mode = core.ECTP_COMPLETE_CALLBACK_SCHED }).n
      )
      msys.run()
    end)
  end)

  it("gives nothing back when it does not wait", function()
    local function fn()
      return 1
    end
    assert.equal(0, outcome(fn, true).n)
    assert.equal(0, outcome(fn, fn).n)
    assert.equal(0, outcome(fn, fn, core.ECTP_COMPLETE_CALLBACK_SCHED).n)
    msys.run()
  end)

  it("raises in a job, too, at the job's line", function()
    local line = here() + 3
    local got = outcome(function()
      return pcall(function()
        local ok = msys.runInPool("nowhere", function() end)
        return ok
      end)
    end)
    local expected = "%s:%d: msys.runInPool: unknown pool 'nowhere', known are: CPU, IO"
    assert.same(pack(true, false, expected:format(SOURCE, line)), got)
  end)
end)
