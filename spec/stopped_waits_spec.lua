-- Waits of a pool's jobs end at once when the pool is shut down with `drop`.

local helper = require "spec.helper"
local msys = require "msys"
local thread = require "thread"

local describe, it, _, after_each, assert = helper.busted()

local POOL = "stopped waits"

describe("a pool that is shut down with drop ends, at once and with kind shutdown, a job's", function()
  after_each(helper.clean)

  --- Runs `job(waits, open)` in a pool, where it calls `waits:add()` and then waits for what never comes; shuts the
  --- pool down then.
  local function outcome(job)
    local pool = msys.threadpool.create { name = POOL, concurrency = 1 }
    local waits = thread.counter()
    local lock, rwlock, channel, full = thread.mutex(), thread.rwlock(), thread.channel(), thread.channel(1)
    lock:lock()
    rwlock:wrlock()
    full:send(1)
    local shared = thread.shared {}
    shared.lock, shared.rwlock, shared.channel, shared.full = lock, rwlock, channel, full
    local result
    msys.run(function()
      msys.spawn(function()
        result = { msys.runInPool(pool, job, { args = { waits, shared } }) }
      end)
      helper.eventually(function()
        return waits:get() > 0
      end)
      pool:shutdown { drop = true }
    end)
    -- What the job waited for may wait for this.
    channel:close()
    lock:unlock()
    rwlock:unlock()
    return result
  end

  --- A wait below a C function, where the session cannot be suspended.
  local function below_c(wait)
    return (string.gsub("x", "x", function()
      return tostring(wait())
    end))
  end

  local waits = {
    ["sleep"] = function(count)
      count:add()
      msys.sleep(1000)
    end,
    ["receiving"] = function(count, shared)
      count:add()
      shared.channel:receive()
    end,
    ["receiving for a time"] = function(count, shared)
      count:add()
      shared.channel:receive(1000)
    end,
    ["sending"] = function(count, shared)
      count:add()
      shared.full:send(2)
    end,
    ["wait for a mutex"] = function(count, shared)
      count:add()
      shared.lock:lock()
    end,
    ["wait for a mutex for a time"] = function(count, shared)
      count:add()
      shared.lock:lock(1000)
    end,
    ["wait for a reader-writer lock"] = function(count, shared)
      count:add()
      shared.rwlock:rdlock()
    end,
    ["wait for a condition"] = function(count)
      local mutex = thread.mutex()
      mutex:lock()
      count:add()
      thread.condition(mutex):wait()
    end,
    ["wait for another pool's job"] = function(count, shared)
      count:add()
      msys.runInPool("IO", function()
        return shared.channel:receive()
      end)
    end,
    ["wait for a future"] = function(count, shared)
      local future = msys.submit("IO", function()
        return shared.channel:receive()
      end)
      count:add()
      future:wait()
    end,
    ["wait in a coroutine"] = function(count)
      count:add()
      coroutine.wrap(function()
        msys.sleep(1000)
      end)()
    end,
    ["wait below a C function"] = function(count, shared)
      count:add()
      below_c(function()
        return shared.channel:receive()
      end)
    end,
    ["sleep below a C function"] = function(count)
      count:add()
      below_c(function()
        msys.sleep(1000)
      end)
    end,
  }
  for what, job in pairs(waits) do
    it(what, function()
      local result = outcome(job)
      assert.is_false(result[1])
      -- A coroutine's generator puts the place before it, as LuaJIT's does.
      assert.equal("msys: pool 'stopped waits' is shut down", (result[2]:gsub("^spec/[%w_.]+:%d+: ", "")))
      assert.same({ "shutdown", POOL }, { result[3].kind, result[3].pool })
    end)
  end

  it("every wait, and what follows, where the job catches the error of the first", function()
    local after = thread.counter()
    local result = outcome(function(count)
      count:add()
      pcall(msys.sleep, 1000)
      after:add()
      return "not stopped"
    end)
    assert.same({ false, "shutdown", 0 }, { result[1], result[3].kind, after:get() })
  end)

  it("wait for a lock, which it does not get then", function()
    local pool = msys.threadpool.create { name = POOL, concurrency = 1 }
    local lock, begun = thread.mutex(), thread.counter()
    msys.run(function()
      lock:lock()
      msys.spawn(function()
        msys.runInPool(pool, function()
          begun:add()
          lock:lock()
        end)
      end)
      helper.eventually(function()
        return begun:get() > 0
      end)
      pool:shutdown { drop = true }
      lock:unlock()
      assert.is_true(lock:trylock())
      lock:unlock()
    end)
  end)
end)

describe("a pool that is shut down without drop", function()
  after_each(helper.clean)

  it("ends when its jobs have got what they wait for", function()
    local pool = msys.threadpool.create { name = POOL, concurrency = 1 }
    local channel, waits = thread.channel(), thread.counter()
    local result
    msys.run(function()
      msys.spawn(function()
        result = {
          msys.runInPool(pool, function()
            waits:add()
            return channel:receive()
          end),
        }
      end)
      helper.eventually(function()
        return waits:get() > 0
      end)
      msys.spawn(function()
        channel:send "at last"
      end)
      pool:shutdown()
    end)
    assert.same({ true, true, "at last" }, result)
  end)
end)
