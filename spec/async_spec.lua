-- Jobs that nobody waits for, their completions, and `msys.onError`, where the failures of both go.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"

local runInPool, core = msys.runInPool, msys.core
local SCHED = core.ECTP_COMPLETE_CALLBACK_SCHED

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- Waits until so many failures have been reported.
local function reported(errors, count)
  helper.eventually(function()
    return #errors >= count
  end, "reports")
end

--- What a completion in the pool gives to `tell`, which sends it here.
---@param fn function
---@param complete fun(...): ...
---@param options? table
---@return any ...
local function told_by_completion(fn, complete, options)
  -- The completion's own words come back as the error of a completion.
  local errors = helper.catching(function(errors)
    local all = {
      completion = function(...)
        error { told = { n = select("#", complete(...)), complete(...) } }
      end,
    }
    for key, value in pairs(options or {}) do
      all[key] = value
    end
    runInPool("CPU", fn, all)
    reported(errors, 1)
  end)
  local told = errors[1].err.told
  return unpack(told, 1, told.n)
end

describe("an asynchronous job", function()
  after_each(helper.clean)

  it("works on its own copy of the upvalues", function()
    local n, list = 1, {}
    local seen
    runInPool("CPU", function()
      n = n + 1
      list[1] = n
      return n, list[1]
    end, function(...)
      seen = pack(...)
    end, SCHED)
    msys.run()
    assert.same(pack(true, 2, 2), seen)
    assert.same({ 1, nil }, { n, list[1] })
  end)

  it("takes its values when it is sent, not when it runs", function()
    helper.with_pool({}, function(pool)
      local got, value = {}, 0
      for i = 1, 20 do
        value = value + 1
        runInPool(pool, function()
          return value
        end, function(_, x)
          got[x] = i
        end, SCHED)
      end
      msys.run()
      assert.equal(20, #got)
    end)
  end)

  it("is not waited for by msys.run", function()
    helper.with_pool({}, function(pool)
      runInPool(pool, function()
        msys.sleep(0.05)
      end, true)
      msys.run()
      assert.equal(1, pool:stat().job_num_queued + pool:stat().job_num_running)
    end)
  end)
end)

describe("a completion in the pool", function()
  after_each(helper.clean)

  it("gets the outcome of the job", function()
    local cases = { pack(), pack(nil, nil, 3), pack("a", nil) }
    for _, case in ipairs(cases) do
      local got = pack(told_by_completion(function()
        return unpack(case, 1, case.n)
      end, function(...)
        return ...
      end))
      assert.same(pack(true, unpack(case, 1, case.n)), got)
    end
  end)

  it("gets false, the error and the info of a job that failed", function()
    local ok, code, kind, pool, name, job, trace = told_by_completion(function()
      error { code = 42 }
    end, function(ok, err, info)
      return ok, err.code, info.kind, info.pool, info.name, type(info.job), info.traceback
    end, { name = "j" })
    assert.same({ false, 42, "error", "CPU", "j", "number" }, { ok, code, kind, pool, name, job })
    assert.matches("async_spec.lua:%d+: in function", trace)
  end)

  it("shares the job's upvalue cells", function()
    local counter = 0
    local value = told_by_completion(function()
      counter = counter + 10
    end, function()
      counter = counter + 1
      return counter
    end)
    -- `complete` is called twice by told_by_completion, and its last word counts.
    assert.equal(12, value)
    assert.equal(0, counter)
  end)

  it("gets the very objects that the job returned, also ones that cannot be sent", function()
    local kind, same = told_by_completion(function()
      _TLS.co = coroutine.create(function() end)
      return _TLS.co
    end, function(_, co)
      return type(co), co == _TLS.co
    end)
    assert.same({ "thread", true }, { kind, same })
  end)

  it("runs on the job's own VM", function()
    helper.with_pool({ concurrency = 4 }, function(pool)
      local errors = helper.catching(function(errors)
        for i = 1, 40 do
          runInPool(pool, function()
            _OSTLS.last = i
          end, function()
            error { i, _OSTLS.last }
          end)
        end
        reported(errors, 40)
      end)
      for _, failure in ipairs(errors) do
        assert.equal(failure.err[1], failure.err[2])
      end
    end)
  end)

  it("is what every mode but SCHED means", function()
    for _, mode in ipairs { core.ECTP_COMPLETE_CALLBACK, 0, 7, "SCHED", {}, false } do
      local errors = helper.catching(function(errors)
        runInPool("CPU", function() end, function()
          -- msys.onError raises in a worker, and works in the host.
          error { in_host = pcall(msys.onError, print) }
        end, mode)
        reported(errors, 1)
      end)
      assert.same({ in_host = false }, errors[1].err)
    end
  end)

  it("can wait, and call runInPool", function()
    local ok, value = told_by_completion(function()
      return 1
    end, function(_, value)
      msys.sleep(0)
      return msys.runInPool("IO", function()
        return value + 1
      end)
    end)
    assert.same({ true, 2 }, { ok, value })
  end)
end)

describe("a completion on the scheduler", function()
  after_each(helper.clean)

  it("is the original function: it changes the host's upvalues", function()
    local count, seen = 0, nil
    local function complete()
      count = count + 1
      seen = complete
    end
    local first = complete
    runInPool("CPU", function() end, complete, SCHED)
    msys.run()
    assert.equal(1, count)
    assert.equal(first, seen)
  end)

  it("may hold what cannot be sent", function()
    local file = io.tmpfile()
    runInPool("CPU", function()
      return "from the job"
    end, function(_, text)
      file:write(text)
    end, SCHED)
    msys.run()
    file:seek "set"
    assert.equal("from the job", file:read "*a")
    file:close()
  end)

  it("gets the outcome: results with their count, or the failure", function()
    local got = {}
    local function complete(...)
      got[#got + 1] = pack(...)
    end
    runInPool("CPU", function()
      return nil, nil, 3, nil
    end, complete, SCHED)
    msys.run()
    runInPool("CPU", function()
      error { code = 42 }
    end, complete, SCHED)
    msys.run()
    assert.same(pack(true, nil, nil, 3, nil), got[1])
    assert.same({ 3, false, 42, "error" }, { got[2].n, got[2][1], got[2][2].code, got[2][3].kind })
  end)

  it("gets a result that cannot be sent as a failure of kind unsendable", function()
    local kind
    runInPool("CPU", function()
      return coroutine.create(function() end)
    end, function(_, _, info)
      kind = info.kind
    end, SCHED)
    msys.run()
    assert.equal("unsendable", kind)
  end)

  it("runs as a session, which can wait", function()
    local got
    runInPool("CPU", function()
      return 1
    end, function(_, value)
      assert(msys.asyncOk())
      msys.sleep(0)
      got = pack(msys.runInPool("IO", function()
        return value + 1
      end))
    end, SCHED)
    msys.run()
    assert.same(pack(true, 2), got)
  end)

  it("runs also while plain code waits for another job", function()
    local done = false
    runInPool("CPU", function() end, function()
      done = true
    end, SCHED)
    helper.eventually(function()
      runInPool("CPU", function() end)
      return done
    end)
  end)
end)

describe("msys.onError", function()
  after_each(helper.clean)

  local function fail()
    error "the job's"
  end

  it("gets the failure of an asynchronous job", function()
    local errors = helper.catching(function(errors)
      runInPool("CPU", fail, { async = true, name = "a name" })
      reported(errors, 1)
    end)
    assert.matches("^[^\n]*async_spec.lua:%d+: the job's$", errors[1].err)
    local info = errors[1].info
    assert.same({ "error", "CPU", "number", "a name" }, { info.kind, info.pool, type(info.job), info.name })
    assert.matches("async_spec.lua:%d+: in function", info.traceback)
  end)

  it("does not get what a completion was told", function()
    local errors = helper.catching(function()
      local told = 0
      runInPool("CPU", fail, function(ok)
        told = told + (ok and 0 or 1)
      end, SCHED)
      msys.run()
      assert.equal(1, told)
      runInPool("CPU", fail, function() end)
      helper.clean()
    end)
    assert.same({}, errors)
  end)

  it("gets the error value unchanged", function()
    for _, err in ipairs { pack(nil), pack(false), pack { code = 42 } } do
      local errors = helper.catching(function(errors)
        runInPool("CPU", function()
          error(err[1])
        end, true)
        reported(errors, 1)
      end)
      assert.same(err[1], errors[1].err)
      assert.equal("error", errors[1].info.kind)
    end
  end)

  it("gets the failure of a completion, in either mode", function()
    for _, mode in ipairs { SCHED, core.ECTP_COMPLETE_CALLBACK } do
      local errors = helper.catching(function(errors)
        runInPool("CPU", function() end, function()
          error "the completion's"
        end, mode)
        reported(errors, 1)
        msys.run()
      end)
      assert.equal(1, #errors)
      assert.matches("async_spec.lua:%d+: the completion's$", errors[1].err)
      assert.matches("async_spec.lua:%d+: in function", errors[1].info.traceback)
    end
  end)

  it("gets the failure of a session", function()
    local errors = helper.catching(function()
      msys.spawn(error, { code = 42 })
      msys.run()
    end)
    assert.same({ code = 42 }, errors[1].err)
    assert.equal("error", errors[1].info.kind)
  end)

  it("gets the failure of a session that a job spawned", function()
    local errors = helper.catching(function(errors)
      runInPool("CPU", function()
        msys.spawn(function()
          error "the session's"
        end)
      end)
      reported(errors, 1)
    end)
    assert.matches("the session's$", errors[1].err)
  end)

  it("gives the handler that it replaces", function()
    local function one() end
    local old = msys.onError(one)
    assert.equal(one, msys.onError(old))
  end)

  it("prints, when none is set, what failed with its traceback to stderr", function()
    local out, err, status = helper.script [[
local msys = require "msys"
msys.runInPool("IO", function()
  error "plain" -- line 3
end, true)
msys.runInPool("IO", function() error(setmetatable({}, { __tostring = function() return "an object" end })) end, true)
msys.runInPool("IO", function() error "named" end, { async = true, name = "a name" })
msys.spawn(function() error "session" end)
msys.run()
print "goes on"
]]
    assert.same({ "goes on\n", 0 }, { out, status })
    assert.matches(
      "msys: error in job %d+ of pool IO: [^\n]*:3: plain\nstack traceback:\n[^\n]*\n[^\n]*:3: in function",
      err
    )
    assert.matches("msys: error in job %d+ of pool IO: an object\nstack traceback:\n", err)
    assert.matches('msys: error in job %d+ "a name" of pool IO: [^\n]*: named\nstack traceback:\n', err)
    assert.matches("msys: error: [^\n]*: session\nstack traceback:\n", err)
  end)

  it("prints what fails in the handler, and what that was called with", function()
    local _, err, status = helper.script [[
local msys = require "msys"
msys.onError(function() error "the handler's" end)
msys.spawn(function() error "the session's" end)
msys.run()
]]
    assert.equal(0, status)
    assert.matches("the session's", err, 1, true)
    assert.matches("error in the handler of msys.onError: [^\n]*:2: the handler's", err)
  end)
end)
