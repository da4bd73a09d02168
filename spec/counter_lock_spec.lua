-- The example that manuals of the first seed's family show: threads of a pool that count under a lock.
--
-- There the counter is a global variable, which is specified with `msys.globals`. Here it is shared data.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"

local must, in_sessions = helper.must, helper.in_sessions

local SESSIONS, TOTAL = 8, helper.times(100000)

--- Runs `step` from that many jobs at once, on as many workers, so often in all.
local function from_workers(step)
  helper.with_pool({ concurrency = SESSIONS }, function(pool)
    in_sessions(SESSIONS, function()
      must(pool, function()
        for _ = 1, TOTAL / SESSIONS do
          step()
        end
      end)
    end)
  end)
end

describe("counting under a lock from eight workers gives each step:", function()
  after_each(helper.clean)

  it("with counter_lock:lock() and a counter that is read and set", function()
    local counter_lock, counter = thread.mutex(), thread.counter()
    from_workers(function()
      counter_lock:lock()
      counter:set(counter:get() + 1)
      counter_lock:unlock()
    end)
    assert.equal(TOTAL, counter:get())
  end)

  it("with msys.lock and msys.unlock", function()
    local counter = thread.counter()
    from_workers(function()
      msys.lock "counter_lock"
      counter:set(counter:get() + 1)
      msys.unlock "counter_lock"
    end)
    assert.equal(TOTAL, counter:get())
  end)

  it("with counter_lock:lock() and a field of a shared table", function()
    local counter_lock, shared = thread.mutex(), thread.shared { counter = 0 }
    from_workers(function()
      counter_lock:lock()
      shared.counter = shared.counter + 1
      counter_lock:unlock()
    end)
    assert.equal(TOTAL, shared.counter)
  end)

  it("with a writer's lock and memory", function()
    local lock, memory = thread.rwlock(), thread.buffer("double", 1)
    from_workers(function()
      lock:wrlock()
      memory[0] = memory[0] + 1
      lock:unlock()
    end)
    assert.equal(TOTAL, memory[0])
  end)

  it("with counter:add() and no lock", function()
    local counter = thread.counter()
    from_workers(function()
      counter:add()
    end)
    assert.equal(TOTAL, counter:get())
  end)
end)
