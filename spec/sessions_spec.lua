-- Sessions: `msys.spawn`, `run`, `sleep`, `yield`, `asyncOk`, and who runs while a synchronous call waits. Calls from
-- inside C functions and coroutines are in nesting_spec.lua, `msys.fd` and `poll` in event_loop_spec.lua.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"

local runInPool = msys.runInPool

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

describe("msys.run", function()
  after_each(helper.clean)

  it("gives what the function returns, nils and their count kept", function()
    for _, case in ipairs { pack(), pack(nil), pack(nil, nil, 3), pack(1, nil) } do
      assert.same(
        case,
        pack(msys.run(function(...)
          return ...
        end, unpack(case, 1, case.n)))
      )
    end
  end)

  it("raises what the function raises, whatever its type", function()
    local object = setmetatable({}, {})
    for _, err in ipairs { pack(nil), pack(false), pack "text", pack(object), pack(print) } do
      local got = pack(pcall(msys.run, error, err[1], 0))
      assert.same({ 2, false, err[1] }, { got.n, got[1], got[2] })
      assert.equal(err[1], got[2])
    end
  end)

  it("does not report what it raises", function()
    local errors = helper.catching(function()
      pcall(msys.run, error, "x")
    end)
    assert.same({}, errors)
  end)

  it("returns at once, with nothing, when there is no session", function()
    assert.same(pack(), pack(msys.run()))
  end)

  it("ends when the last session does, and not when its function returns", function()
    local ended = 0
    msys.run(function()
      for i = 1, 10 do
        msys.spawn(function()
          msys.sleep(i / 10000)
          ended = ended + 1
        end)
      end
    end)
    assert.equal(10, ended)
  end)

  it("waits for completions, and for what they spawn", function()
    local got
    runInPool("CPU", function()
      return 1
    end, function(_, value)
      msys.spawn(function()
        got = pack(runInPool("CPU", function()
          return value + 1
        end))
      end)
    end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
    msys.run()
    assert.same(pack(true, 2), got)
  end)

  it("runs the other sessions when its own function fails", function()
    local ran = false
    msys.spawn(function()
      msys.sleep(0)
      ran = true
    end)
    assert.is_false((pcall(msys.run, error, "x")))
    assert.is_true(ran)
  end)
end)

describe("msys.spawn", function()
  after_each(helper.clean)

  it("does not begin before the spawner waits", function()
    local began = false
    msys.spawn(function()
      began = true
    end)
    assert.is_false(began)
    msys.run()
    assert.is_true(began)
  end)

  it("gives nothing, and passes arguments with their holes", function()
    local got
    assert.same(
      pack(),
      pack(msys.spawn(function(...)
        got = pack(...)
      end, nil, 2, nil))
    )
    msys.run()
    assert.same(pack(nil, 2, nil), got)
  end)

  it("begins sessions in order, and yield lets all others run once", function()
    local order = {}
    for i = 1, 3 do
      msys.spawn(function()
        for turn = 1, 3 do
          order[#order + 1] = i .. "." .. turn
          msys.yield()
        end
      end)
    end
    msys.run()
    assert.equal("1.1 2.1 3.1 1.2 2.2 3.2 1.3 2.3 3.3", table.concat(order, " "))
  end)

  it("works in a job, whose session it does not delay", function()
    helper.with_pool({}, function(pool)
      assert.is_true((runInPool(pool, function()
        msys.spawn(function()
          _OSTLS.spawned = _TLS
          msys.sleep(0)
          _OSTLS.ended = true
        end)
        assert(not _OSTLS.spawned)
      end)))
      helper.eventually(function()
        return select(
          2,
          runInPool(pool, function()
            assert(_OSTLS.spawned ~= _TLS)
            return _OSTLS.ended
          end)
        )
      end)
    end)
  end)

  it("runs 10,000 sessions", function()
    local ended = 0
    for _ = 1, 10000 do
      msys.spawn(function()
        msys.yield()
        ended = ended + 1
      end)
    end
    msys.run()
    assert.equal(10000, ended)
  end)
end)

describe("a session", function()
  after_each(helper.clean)

  it("lets others run while it waits for a job", function()
    helper.with_pool({}, function(pool)
      local order = {}
      msys.spawn(function()
        order[#order + 1] = "asks"
        local _, answer = runInPool(pool, function()
          return "has the answer"
        end)
        order[#order + 1] = answer
      end)
      msys.spawn(function()
        order[#order + 1] = "another runs"
      end)
      msys.run()
      assert.same({ "asks", "another runs", "has the answer" }, order)
    end)
  end)

  it("can wait for another through a variable and yield", function()
    local ready, got = false, nil
    msys.spawn(function()
      while not ready do
        msys.yield()
      end
      got = true
    end)
    msys.spawn(function()
      ready = runInPool("CPU", function() end)
    end)
    msys.run()
    assert.is_true(got)
  end)

  it("goes on after a plain coroutine.yield, which gives nothing", function()
    local order, got = {}, nil
    msys.spawn(function()
      order[#order + 1] = "a"
      got = pack(coroutine.yield("ignored", 2))
      order[#order + 1] = "c"
    end)
    msys.spawn(function()
      order[#order + 1] = "b"
    end)
    msys.run()
    assert.same({ "a", "b", "c" }, order)
    assert.same(pack(), got)
  end)

  it("gets its own answers: 1,000 sessions of 100 synchronous jobs each", function()
    local right = 0
    for i = 1, 1000 do
      msys.spawn(function()
        for k = 1, 100 do
          local ok, a, b = runInPool("CPU", function()
            return i, k
          end)
          if ok and a == i and b == k then right = right + 1 end
        end
      end)
    end
    msys.run()
    assert.equal(100000, right)
  end)

  it("of a job has answers of its own, too: 100 jobs with 100 jobs each", function()
    local right = 0
    for i = 1, 100 do
      msys.spawn(function()
        local ok, count = runInPool("CPU", function()
          local count = 0
          for k = 1, 100 do
            local fine, a, b = msys.runInPool("CPU", function()
              return i, k
            end)
            if fine and a == i and b == k then count = count + 1 end
          end
          return count
        end)
        right = right + (ok and count or 0)
      end)
    end
    msys.run()
    assert.equal(10000, right)
  end)

  it("runs also while plain code waits for a job", function()
    local turns = 0
    local stop = false
    msys.spawn(function()
      while not stop do
        turns = turns + 1
        msys.sleep(0.001)
      end
    end)
    helper.eventually(function()
      runInPool("CPU", function() end)
      return turns >= 3
    end)
    stop = true
    msys.run()
  end)

  it("runs also while plain code sleeps", function()
    local order = {}
    msys.spawn(function()
      order[1] = "before"
      msys.sleep(0)
      order[2] = "after"
    end)
    msys.sleep(0.02)
    assert.same({ "before", "after" }, order)
  end)
end)

describe("msys.sleep", function()
  after_each(helper.clean)

  it("wakes sessions in the order of their times", function()
    local order = {}
    for _, ms in ipairs { 40, 1, 20 } do
      msys.spawn(function()
        msys.sleep(ms / 1000)
        order[#order + 1] = ms
      end)
    end
    msys.run()
    assert.same({ 1, 20, 40 }, order)
  end)

  it("lasts at least its time, in a session, in plain code and in a job", function()
    local function lasts()
      local ffi = require "ffi"
      pcall(ffi.cdef, "struct msys_spec_timespec { long s; long ns; };")
      pcall(ffi.cdef, "int clock_gettime(int, struct msys_spec_timespec *);")
      local time = ffi.new "struct msys_spec_timespec[1]"
      local function now()
        ffi.C.clock_gettime(1, time)
        return tonumber(time[0].s) + tonumber(time[0].ns) / 1e9
      end
      local start = now()
      require("msys").sleep(0.0125)
      return now() - start
    end
    for name, elapsed in pairs {
      plain = lasts(),
      session = msys.run(lasts),
      job = select(2, runInPool("IO", lasts)),
    } do
      assert.is_true(elapsed >= 0.0125, ("%s: %g s"):format(name, elapsed))
    end
  end)

  it("gives nothing, and takes 0", function()
    assert.same(pack(), pack(msys.sleep(0)))
    assert.same(pack(), pack(msys.run(msys.sleep, 0)))
    assert.same(
      pack(true),
      pack(runInPool("CPU", function()
        return msys.sleep(0)
      end))
    )
  end)
end)

describe("msys.asyncOk", function()
  after_each(helper.clean)

  it("tells whether the code can be suspended", function()
    local function in_sort()
      local ok
      table.sort({ 2, 1 }, function(a, b)
        ok = require("msys").asyncOk()
        return a < b
      end)
      return ok
    end
    local function in_coroutine()
      return coroutine.wrap(function()
        return (require("msys").asyncOk())
      end)()
    end
    local function here()
      return (require("msys").asyncOk())
    end
    local cases = {
      { "in plain code", here(), false },
      { "in a session", msys.run(here), true },
      { "in a job", select(2, runInPool("CPU", here)), true },
      { "under a C function of a session", msys.run(in_sort), false },
      { "under a C function of a job", select(2, runInPool("CPU", in_sort)), false },
      { "in a coroutine of plain code", in_coroutine(), false },
      { "in a coroutine of a session", msys.run(in_coroutine), false },
      { "in a coroutine of a job", select(2, runInPool("CPU", in_coroutine)), true },
    }
    for _, case in ipairs(cases) do
      assert.same({ case[1], case[3] }, { case[1], case[2] })
    end
  end)
end)
