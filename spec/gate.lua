--- Ways to keep jobs in progress for as long as a spec wants them there, and to await what a pool's stat says.

local assert = require "luassert"
local ffi = require "ffi"
local helper = require "spec.helper"
local msys = require "msys"

local gate = {}

ffi.cdef [[
int pipe(int fds[2]);
int close(int fd);
intptr_t write(int fd, const void *buffer, size_t count);
]]

--- Runs `fn(pool, hold, open)`: a job that calls `hold` blocks its worker's thread, until `open(n)` lets n of them go,
--- or `open()` all. It is open when the pool is shut down, also after a failure.
function gate.holding(options, fn)
  local fds = ffi.new "int[2]"
  assert.equal(0, ffi.C.pipe(fds))
  local from, to = fds[0], fds[1]
  local function hold()
    pcall(ffi.cdef, "intptr_t read(int fd, void *buffer, size_t count);")
    ffi.C.read(from, ffi.new "char[1]", 1)
  end
  local function open(count)
    if count then
      ffi.C.write(to, ("."):rep(count), count)
    elseif to then
      ffi.C.close(to)
      to = nil
    end
  end
  local ok, err = pcall(helper.with_pool, options, function(pool)
    local fine, err = pcall(fn, pool, hold, open)
    open()
    if not fine then error(err, 0) end
  end)
  ffi.C.close(from)
  if not ok then error(err, 0) end
end

--- Runs `fn(pool, rest, open)`: a job that calls `rest` sleeps, its worker free for others, until `open()`.
function gate.resting(options, fn)
  local path = helper.file()
  local function rest()
    while true do
      local file = io.open(path)
      if not file then return end
      file:close()
      msys.sleep(0.02)
    end
  end
  helper.with_pool(options, function(pool)
    local ok, err = pcall(fn, pool, rest, function()
      os.remove(path)
    end)
    os.remove(path)
    if not ok then error(err, 0) end
  end)
end

function gate.until_stat(pool, expected)
  local last
  local ok = pcall(helper.eventually, function()
    local stat = pool:stat()
    for field, value in pairs(expected) do
      if stat[field] ~= value then
        last = ("%s is %s and not %s"):format(field, stat[field], value)
        return false
      end
    end
    return true
  end)
  if not ok then error(("pool %s: in %d s, %s"):format(pool.name, helper.LIMIT, last), 2) end
end

--- Sends `count` jobs, and gives a list that their outcomes are appended to.
function gate.send(pool, count, closure)
  local outcomes = {}
  for _ = 1, count do
    msys.runInPool(pool, closure, function(...)
      outcomes[#outcomes + 1] = { ... }
    end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
  end
  return outcomes
end

function gate.all_true(count, outcomes)
  assert.equal(count, #outcomes)
  for _, outcome in ipairs(outcomes) do
    assert.is_true(outcome[1], outcome[2])
  end
end

--- `msys.run`, which waits for all sessions: so the gate is opened also when `fn` fails.
function gate.run(open, fn)
  msys.run(function()
    local ok, err = pcall(fn)
    open()
    if not ok then error(err, 0) end
  end)
end

return gate
