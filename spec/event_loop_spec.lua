-- A foreign event loop that knows nothing of msys but its descriptor and `msys.poll`.

local ffi = require "ffi"
local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local LIMIT, SCHED = helper.LIMIT, msys.core.ECTP_COMPLETE_CALLBACK_SCHED

-- A function may be declared again, a type may not: so the struct has no name.
ffi.cdef "int poll(void *fds, unsigned long count, int timeout_ms);"
local pollfd = ffi.new "struct { int fd; short events, revents; }[1]"

--- Runs in the pool `CPU`, and raises where that failed.
local function must(fn)
  local function checked(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return checked(msys.runInPool("CPU", fn))
end

describe("msys.fd", function()
  local fd = msys.fd()

  --- Whether msys's descriptor is readable, waiting for that at most so long.
  local function readable(seconds)
    pollfd[0].fd, pollfd[0].events = fd, 1
    return ffi.C.poll(pollfd, 1, 1000 * seconds) == 1
  end

  --- A foreign event loop, which knows only the descriptor and `poll`.
  local function loop(finished)
    while not finished() do
      assert.is_true(readable(LIMIT), "the descriptor is not readable")
      msys.poll()
    end
  end

  --- Whether polling comes to an end. Once it did, a wake for an event that is handled already may still come.
  local function idle()
    for _ = 1, 1000 do
      if msys.poll() == 0 and not readable(0.001) then return true end
    end
    return false
  end

  after_each(helper.clean)

  it("is not readable when there is nothing to do", function()
    assert.is_true(idle())
    assert.equal(0, msys.poll())
    assert.equal(fd, msys.fd())
  end)

  for what, start in pairs {
    ["a session has been spawned"] = function(done)
      msys.spawn(done)
    end,
    ["a job has completed"] = function(done)
      msys.runInPool("CPU", function() end, done, SCHED)
    end,
    ["the job of a session has completed"] = function(done)
      msys.spawn(function()
        msys.runInPool("CPU", function() end)
        done()
      end)
    end,
    ["a timer is due"] = function(done)
      msys.spawn(function()
        msys.sleep(0.01)
        done()
      end)
    end,
    ["a timer is due that was set while plain code waited"] = function(done)
      msys.spawn(function()
        msys.sleep(0.05)
        done()
      end)
      must(function() end)
    end,
    ["a session has yielded"] = function(done)
      msys.spawn(function()
        msys.yield()
        done()
      end)
    end,
  } do
    it("is readable once " .. what .. ", and not after poll", function()
      assert.is_true(idle())
      local done = false
      start(function()
        done = true
      end)
      loop(function()
        return done
      end)
      assert.is_true(idle())
      msys.run()
    end)
  end

  it("is readable when a wait of plain code has left events behind", function()
    for _ = 1, 500 do
      local done = false
      msys.spawn(function()
        msys.runInPool("CPU", function() end)
        done = true
      end)
      must(function() end)
      local ok, err = pcall(loop, function()
        return done
      end)
      msys.run()
      if not ok then error(err, 0) end
    end
  end)

  it("comes with a poll that counts what it runs", function()
    assert.is_true(idle())
    for _ = 1, 3 do
      msys.spawn(function() end)
    end
    assert.equal(3, msys.poll())
    assert.equal(0, msys.poll())
  end)

  it("drives a hundred sessions of jobs and sleeps to their end", function()
    local left, right = 100, 0
    for i = 1, 100 do
      msys.spawn(function()
        for j = 1, 5 do
          msys.sleep((i + j) % 7 / 1000)
          if must(function()
            return i * j
          end) == i * j then right = right + 1 end
        end
        left = left - 1
      end)
    end
    loop(function()
      return left == 0
    end)
    assert.equal(500, right)
    assert.is_true(idle())
  end)

  it("is refused in a worker", function()
    local ok, err = must(function()
      return pcall(msys.fd)
    end)
    assert.is_false(ok)
    assert.matches("msys.fd: a worker has no event loop of its own", err, 1, true)
  end)
end)
