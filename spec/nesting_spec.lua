-- Calls made while others wait: jobs from jobs, on pools that have no worker left.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local LIMIT, SCHED = helper.LIMIT, msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local must, in_sessions, with_two = helper.must, helper.in_sessions, helper.with_two

--- For jobs of a pool with one worker: waits until one of them has set `_OSTLS[key]`.
local function await(key)
  local deadline = os.time() + LIMIT + 1
  while not _OSTLS[key] do
    if os.time() >= deadline then error(key .. ": not within the limit") end
    msys.sleep(0.001)
  end
end

--- Nests calls, each in the next of the pools; gives how many there were.
local function descend(depth, pools, at)
  if depth == 0 then return 0 end
  local nth = (at or 0) % #pools + 1
  return 1 + must(pools[nth], descend, depth - 1, pools, nth)
end

local TIGHT = {
  ["one worker"] = { concurrency = 1 },
  ["one worker that takes one job at a time"] = { concurrency = 1, sessions = 1 },
  ["one worker and a full queue"] = { concurrency = 1, sessions = 1, backlog = 1 },
}

for tight, options in pairs(TIGHT) do
  describe("on a pool with " .. tight .. ",", function()
    after_each(helper.clean)

    it("calls nest a hundred deep", function()
      helper.with_pool(options, function(pool)
        assert.equal(100, descend(100, { pool }))
        assert.equal(100, msys.run(descend, 100, { pool }))
      end)
    end)

    it("fifty sessions nest twenty deep at once", function()
      helper.with_pool(options, function(pool)
        in_sessions(50, function()
          assert.equal(20, descend(20, { pool }))
        end)
      end)
    end)

    it("jobs that send jobs that send jobs are all run", function()
      helper.with_pool(options, function(pool)
        local function tree(depth)
          _OSTLS.count = (_OSTLS.count or 0) + 1
          for _ = 1, depth > 0 and 3 or 0 do
            msys.runInPool(pool, function()
              tree(depth - 1)
            end, true)
          end
        end
        must(pool, tree, 5)
        helper.eventually(function()
          return 364 == must(pool, function()
            return _OSTLS.count
          end)
        end, "364 jobs")
      end)
    end)

    it("a tree of synchronous calls gets all its answers", function()
      helper.with_pool(options, function(pool)
        local function tree(depth)
          local count = 1
          for _ = 1, depth > 0 and 3 or 0 do
            count = count + must(pool, tree, depth - 1)
          end
          return count
        end
        assert.equal(364, must(pool, tree, 5))
      end)
    end)

    it("calls nest in completions, in the pool and on the scheduler", function()
      helper.with_pool(options, function(pool)
        local function nest()
          _OSTLS.found = descend(10, { pool })
        end
        for mode in pairs { [0] = "pool", [SCHED] = "scheduler" } do
          -- In a job, both are this worker's.
          must(pool, function()
            _OSTLS.found = nil
            msys.runInPool(pool, function() end, nest, mode)
          end)
          assert.equal(
            10,
            helper.eventually(function()
              return must(pool, function()
                return _OSTLS.found
              end)
            end)
          )
        end
        local found
        msys.runInPool(pool, function() end, function()
          found = descend(10, { pool })
        end, SCHED)
        msys.run()
        assert.equal(10, found)
      end)
    end)

    it("calls nest between it and another such pool", function()
      with_two(options, function(a, b)
        in_sessions(1, function()
          assert.equal(100, descend(100, { a, b }))
        end)
        in_sessions(40, function()
          assert.equal(20, descend(20, { a, b }))
        end)
      end)
    end)
  end)
end

describe("calls between two pools", function()
  after_each(helper.clean)

  it("end when they go in both directions, and the workers of both have no room", function()
    with_two({ concurrency = 1, sessions = 4 }, function(a, b)
      in_sessions(40, function(i)
        assert.equal(4, descend(4, i % 2 == 0 and { a, b } or { b, a }))
      end)
    end)
  end)
end)

describe("a job", function()
  after_each(helper.clean)

  it("that sleeps leaves its worker to others", function()
    helper.with_pool({}, function(pool)
      in_sessions(100, function(i)
        if i < 100 then
          must(pool, await, "open")
        else
          must(pool, function()
            _OSTLS.open = true
          end)
        end
      end)
    end)
  end)
end)

describe("an error of a nested job", function()
  after_each(helper.clean)

  it("goes up through the levels as the value that it is", function()
    with_two({ concurrency = 1, sessions = 1 }, function(a, b)
      local function fail(depth, pools)
        if depth == 0 then error { code = 7, levels = 0 } end
        local ok, err, info = msys.runInPool(pools[depth % 2 + 1], fail, { args = { depth - 1, pools } })
        if ok or info.kind ~= "error" or info.pool ~= pools[depth % 2 + 1].name then
          error(
            ("level %d: %s %s %s"):format(depth, tostring(ok), tostring(info.kind), tostring(info.pool)),
            0
          )
        end
        err.levels = err.levels + 1
        error(err)
      end
      local ok, err = pcall(fail, 20, { a, b })
      assert.is_false(ok)
      assert.same({ code = 7, levels = 20 }, err)
    end)
  end)

  for what, expected in pairs { text = "text", number = 7, ["false"] = false } do
    it("is given to the level above as it was raised: " .. what, function()
      local inner, outer = must("CPU", function()
        local _, inner = msys.runInPool("CPU", function()
          error(expected, 0)
        end)
        return inner, select(2, pcall(error, inner, 0))
      end)
      assert.equal(expected, inner)
      assert.equal(expected, outer)
    end)
  end

  it("that nobody catches ends each level's job, and nothing else", function()
    helper.with_pool({}, function(pool)
      local function fail(depth)
        if depth == 0 then error "deep down" end
        must(pool, fail, depth - 1)
      end
      in_sessions(10, function()
        local ok, err = msys.runInPool(pool, fail, { args = { 20 } })
        assert.is_false(ok)
        assert.matches("nesting_spec.lua:%d+: deep down$", err)
      end)
      assert.equal(5, descend(5, { pool }))
    end)
  end)
end)
