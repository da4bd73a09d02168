--- Threads for LuaJIT that feel like a function call.
---
---     local msys = require "msys"
---     local ok, sum = msys.runInPool("CPU", function() return 1 + 1 end)

-- Runs at exit too: see msys.names.
jit.off(true, true)

local base = require "msys.base"
local native = require "msys.native"
local scheduler = require "msys.scheduler"
require "msys.cdata"
local cancel = require "msys.cancel"
local environment = require "msys.environment"
local future = require "msys.future"
local locks = require "msys.locks"
local shared = require "msys.shared"
local submit = require "msys.submit"
require "thread"

---@class msys
---@field _TLS table  a table of the running session's own
---@field _OSTLS table  a table of this VM's own
local msys = {
  _VERSION = native.version,
  _OSTLS = base.ostls,
  core = require "msys.core",
  threadpool = require "msys.threadpool",
  workers = require "msys.workers",
  runInPool = submit.runInPool,
  submit = future.submit,
  all = future.all,
  any = future.any,
  map = future.map,
  canceller = cancel.canceller,
  cancelled = cancel.cancelled,
  lock = locks.lock,
  unlock = locks.unlock,
}

--- The process's own shared table, for `msys.shareSet` and its kin.
local store = native.process_table(1)

--- Keeps a value under a key, for all VMs of the process.
---@param key string|number|boolean
---@param value any  nil removes it
function msys.shareSet(key, value)
  shared.set(store, key, value, "msys.shareSet", 2)
end

--- The value under a key, or nil.
---@param key string|number|boolean
---@return any
function msys.shareGet(key)
  return store[key]
end

--- Removes the value under a key, and gives what it was: of several sessions that do so, to one.
---@param key string|number|boolean
---@return any
function msys.shareUnset(key)
  if not shared.is_key(key) then
    error("msys.shareUnset: keys are strings, numbers and booleans, got " .. type(key), 2)
  end
  return native.shared_take(store, key)
end

local function check_function(fn, name)
  if type(fn) ~= "function" then error(("%s: fn must be a function, got %s"):format(name, type(fn)), 3) end
end

--- Says whether script globals that a job's functions name come along with the job (they do). Gives what was said
--- before.
---@param on? boolean  nil: only asks
---@return boolean before
function msys.capture(on)
  if on ~= nil and type(on) ~= "boolean" then
    error("msys.capture: on must be a boolean, got " .. type(on), 2)
  end
  return environment.capture(on)
end

--- Starts a session: `fn(...)` in a coroutine that msys may suspend and resume. It begins when the scheduler next runs:
--- in `msys.run`, `msys.poll`, or any wait of msys's.
---@param fn function
---@param ... any
function msys.spawn(fn, ...)
  check_function(fn, "msys.spawn")
  scheduler.spawn(fn, ...)
end

local function run_result(ok, ...)
  if not ok then
    scheduler.note_interrupt((...))
    error((...), 0)
  end
  return ...
end

--- Runs until no session is left and no completion of this VM is awaited. With a function, runs that as a session too,
--- gives what it returned, and raises what it raised. Jobs sent with `true` are not waited for.
---@param fn? function
---@param ... any
---@return any ...
function msys.run(fn, ...)
  if fn ~= nil then check_function(fn, "msys.run") end
  if scheduler.current() then error("msys.run: called inside a session, which would wait for itself", 2) end
  if fn == nil then
    scheduler.run()
    return
  end
  local results
  local function pack(...)
    results = { n = select("#", ...), ... }
  end
  scheduler.spawn(function(...)
    pack(pcall(fn, ...))
  end, ...)
  scheduler.run()
  ---@cast results { n: integer, [integer]: any }
  return run_result(unpack(results, 1, results.n))
end

--- Waits: suspends the session, or blocks where that cannot be (other sessions go on in either case).
---@async
---@param seconds number  fractions allowed
function msys.sleep(seconds)
  if type(seconds) ~= "number" then
    error("msys.sleep: seconds must be a number, got " .. type(seconds), 2)
  elseif not (seconds >= 0) then -- luacheck: ignore 581 (NaN is refused too)
    error("msys.sleep: seconds must not be negative, got " .. seconds, 2)
  end
  scheduler.sleep(seconds)
end

--- Lets other sessions run.
---@async
function msys.yield()
  scheduler.yield()
end

--- Whether the running code can be suspended: it is in a session, and no C function or foreign coroutine is in the way.
---@return boolean
function msys.asyncOk()
  return scheduler.can_suspend()
end

--- Runs what is ready, without waiting; for a foreign event loop, when `msys.fd()` is readable.
---@return integer count  of sessions and events handled
function msys.poll()
  return scheduler.poll()
end

--- How long the end of the program waits for asynchronous jobs, in seconds: for ever (`math.huge`), if nothing else is
--- said. Gives what was said before.
---@param seconds? number  nil: only asks
---@return number before
function msys.exitTimeout(seconds)
  if seconds ~= nil then
    if type(seconds) ~= "number" then
      error("msys.exitTimeout: seconds must be a number, got " .. type(seconds), 2)
    elseif not (seconds >= 0) then -- luacheck: ignore 581 (NaN is refused too)
      error("msys.exitTimeout: seconds must not be negative, got " .. seconds, 2)
    end
  end
  return scheduler.exit_timeout(seconds)
end

--- A file descriptor that is readable when `msys.poll` has work.
---@return integer
function msys.fd()
  local fd, text = scheduler.fd()
  if not fd then error("msys.fd: " .. tostring(text), 2) end
  return fd
end

--- Prints a failure that nobody waits for.
local function print_error(err, info, place)
  local of = place
    or info.job and (" in job %d%s of pool %s"):format(
      info.job,
      info.name and (" %q"):format(info.name) or "",
      info.pool
    )
    or ""
  local text = info.traceback or ""
  if type(err) ~= "string" then text = scheduler.text_of(err) .. text end
  io.stderr:write(("msys: error%s: %s\n"):format(of, text))
end

local handler = print_error

local function report(err, info)
  local ok, fail = xpcall(handler, base.failure, err, info)
  if ok then return end
  print_error(err, info)
  local raised, about = scheduler.explain(fail)
  if not scheduler.caught(raised) then
    print_error(raised, { traceback = about.traceback }, " in the handler of msys.onError")
  end
end

if not native.is_worker then
  --- Sets what is called with `err, info` for a failure that nobody waits for: of an asynchronous job, a completion, a
  --- session. nil: back to printing it to stderr. Gives the handler that it replaces.
  ---@param fn? fun(err: any, info: table)
  ---@return fun(err: any, info: table)
  ---@diagnostic disable-next-line: duplicate-set-field
  function msys.onError(fn)
    if fn ~= nil then check_function(fn, "msys.onError") end
    local old = handler
    handler = fn or print_error
    return old
  end

  scheduler.setup(report)
  native.use_current(scheduler.current)
  submit.report = report

  -- FFI finalizers run before those of userdata when a state closes: the user's files are still open.
  local ok, ffi = pcall(require, "ffi")
  local function drain()
    scheduler.drain()
    future.report_left()
  end
  if ok then
    msys._exit = ffi.gc(ffi.new "char[1]", drain)
  else
    msys._exit = newproxy(true)
    getmetatable(msys._exit).__gc = drain
  end
else
  --- A worker has no handler of its own: its failures go to the host's.
  ---@diagnostic disable-next-line: duplicate-set-field
  function msys.onError()
    error("msys.onError: only the host has a handler; failures in workers are reported there", 2)
  end
end

return setmetatable(base.fill and base.fill("msys", msys) or msys, {
  __index = function(_, key)
    if key == "_TLS" then return scheduler.tls() end
  end,
})
