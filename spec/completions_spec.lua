-- Asynchronous jobs in numbers: each runs, completes and is reported once, on the thread where it should.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local JOBS = 10000

--- What jobs of a pool with one worker have left in its `_OSTLS[key]`, once there is something.
local function left_behind(pool, key)
  return helper.eventually(function()
    local _, value = msys.runInPool(pool, function(name)
      return _OSTLS[name]
    end, { args = { key } })
    return value
  end, "_OSTLS." .. key)
end

--- Fails unless the counts are 1 for each job, and there are no others.
local function all_once(times)
  local keys = 0
  for job, count in pairs(times) do
    keys = keys + 1
    if count ~= 1 then error(("job %s: %d times"):format(job, count), 2) end
  end
  assert.equal(JOBS, keys)
end

local function thread()
  local stat = assert(io.open "/proc/thread-self/stat")
  local id = stat:read "*n"
  stat:close()
  return id
end

describe(("of %d asynchronous jobs"):format(JOBS), function()
  after_each(helper.clean)

  it("each completes once on the scheduler", function()
    local times = {}
    for i = 1, JOBS do
      msys.runInPool("CPU", function()
        return i
      end, function(ok, number)
        times[number] = (times[number] or 0) + (ok and 1 or 0)
      end, SCHED)
    end
    msys.run()
    all_once(times)
  end)

  it("each runs and completes once in the pool", function()
    helper.with_pool({}, function(pool)
      for i = 1, JOBS do
        msys.runInPool(pool, function()
          _OSTLS.ran = _OSTLS.ran or {}
          _OSTLS.ran[i] = (_OSTLS.ran[i] or 0) + 1
          return i
        end, function(_, number)
          local done, count = _OSTLS.done or {}, (_OSTLS.count or 0) + 1
          done[number] = (done[number] or 0) + 1
          _OSTLS.done, _OSTLS.count, _OSTLS.all = done, count, count >= 10000
        end)
      end
      left_behind(pool, "all")
      all_once(left_behind(pool, "ran"))
      all_once(left_behind(pool, "done"))
    end)
  end)

  it("each failure is given to one completion, and not reported", function()
    local times = {}
    local errors = helper.catching(function()
      for i = 1, JOBS do
        msys.runInPool("CPU", function()
          error { i }
        end, function(ok, err)
          times[err[1]] = (times[err[1]] or 0) + (ok and 0 or 1)
        end, SCHED)
      end
      msys.run()
    end)
    all_once(times)
    assert.same({}, errors)
  end)

  it("each failure that no completion gets is reported once", function()
    local errors = helper.catching(function(errors)
      for i = 1, JOBS do
        msys.runInPool("CPU", function()
          error { i }
        end, true)
      end
      helper.eventually(function()
        return #errors >= JOBS
      end, "reports")
    end)
    local times = {}
    for _, failure in ipairs(errors) do
      local job = failure.err[1]
      times[job] = (times[job] or 0) + 1
    end
    all_once(times)
  end)
end)

describe("a completion", function()
  after_each(helper.clean)

  it("in the pool runs on its job's OS thread", function()
    local path, host = helper.file(), thread()
    helper.with_pool({ concurrency = 4 }, function(pool)
      for _ = 1, 100 do
        local of_job
        msys.runInPool(pool, function()
          of_job = thread()
          msys.yield()
        end, function()
          local file = assert(io.open(path, "ab"))
          file:write(of_job == thread() and of_job ~= host and "+" or "-")
          file:close()
        end)
      end
    end)
    local file = assert(io.open(path))
    local marks = file:read "*a"
    file:close()
    assert.equal(("+"):rep(100), marks)
  end)

  it("on the scheduler runs on the host's OS thread, also after a failure", function()
    local threads, host = {}, thread()
    for _, fails in ipairs { false, true } do
      msys.runInPool("CPU", function()
        if fails then error() end
      end, function(ok)
        threads[ok] = thread()
      end, SCHED)
    end
    msys.run()
    assert.same({ [true] = host, [false] = host }, threads)
  end)

  it("in the pool may send jobs with completions of their own", function()
    helper.with_pool({}, function(pool)
      local function again(depth)
        if depth == 0 then
          _OSTLS.done = true
          return
        end
        msys.runInPool(pool, function()
          return depth
        end, function(_, number)
          again(number - 1)
        end)
      end
      again(100)
      assert.is_true(left_behind(pool, "done"))
    end)
  end)
end)

describe("the traceback of a failure", function()
  after_each(helper.clean)

  -- As a project whose path contains the library's name.
  local deep = assert(loadstring(
    [[
      local function down(depth)
        if depth == 0 then
          error "deep"
        end
        down(depth - 1)
        return 1
      end
      return function(depth)
        down(depth)
        return 1
      end
    ]],
    "@/home/who/msys-app/deep.lua"
  ))()
  local FIRST = "^/home/who/msys%-app/deep.lua:3: deep\nstack traceback:\n"
  local LAST = "\n\t/home/who/msys%-app/deep.lua:9: in function [^\n]*$"

  for _, depth in ipairs { 0, 5, 50 } do
    it(("ends in the code of the job, %d calls deep"):format(depth), function()
      local _, _, info = msys.runInPool("CPU", deep, { args = { depth } })
      assert.matches(FIRST, info.traceback)
      assert.matches(LAST, info.traceback)
    end)

    it(("ends in the code of the session, %d calls deep"):format(depth), function()
      local errors = helper.catching(function()
        msys.spawn(deep, depth)
        msys.run()
      end)
      assert.matches(FIRST, errors[1].info.traceback)
      assert.matches(LAST, errors[1].info.traceback)
    end)

    for mode, where in pairs { [SCHED] = "on the scheduler", [3] = "in the pool" } do
      it(("ends in the code of the completion %s, %d calls deep"):format(where, depth), function()
        local errors = helper.catching(function(errors)
          msys.runInPool("CPU", function()
            return depth
          end, function(_, given)
            deep(given)
            return 1
          end, mode)
          helper.eventually(function()
            return errors[1]
          end)
          msys.run()
        end)
        assert.matches(FIRST, errors[1].info.traceback)
        assert.matches("\n\t[^\n]*completions_spec.lua:%d+: in function [^\n]*$", errors[1].info.traceback)
      end)
    end
  end
end)

describe("an error object whose __tostring fails", function()
  after_each(helper.clean)

  local OBJECT = [[
    local msys = require "msys"
    local function fail()
      error(setmetatable({}, { __tostring = function() error "no text" end }))
    end
  ]]
  local ways = {
    ["raised by an asynchronous job"] = 'msys.runInPool("CPU", fail, true)',
    ["raised by a completion in the pool"] = 'msys.runInPool("CPU", function() end, function() fail() end)',
    ["raised by a completion on the scheduler"] = 'msys.runInPool("CPU", function() end, fail, 6)',
    ["raised by a session"] = "msys.spawn(fail)",
    ["raised by onError's handler"] = "msys.onError(fail) msys.spawn(error, 'first')",
    ["raised by a job, with a handler that fails"] = "msys.onError(error) msys.runInPool('CPU', fail, true)",
  }
  for what, way in pairs(ways) do
    it(what .. " is printed, and disturbs nothing", function()
      -- The waits of the host meet the report.
      local out, err, status = helper.script(OBJECT .. way .. [[

        msys.run()
        local stat
        repeat
          msys.sleep(0.001)
          stat = msys.threadpool.stat "CPU"
        until stat.job_num_queued + stat.job_num_running == 0
        print(msys.runInPool("CPU", function() return "goes on" end))
      ]])
      assert.same({ "true\tgoes on\n", 0 }, { out, status })
      assert.matches("msys: error", err, 1, true)
    end)
  end
end)
