--- What a worker VM adds to the scheduler: its globals, its jobs, and `coroutine` functions through which sessions can
--- wait.
---
--- `msys.loader` requires this when the first job needs it, and `msys.boot` calls what it gives.

local base = require "msys.base"
local boot = require "msys.boot"
local loader = require "msys.loader"
local names = require "msys.names"
local native = require "msys.native"
local refusal = require "msys.refusal"
local scheduler = require "msys.scheduler"

local error, select, type, xpcall = error, select, type, xpcall
local native_open, native_finish = native.open, native.finish
local native_stopped = native.stopped
local current, failure = scheduler.current, base.failure
local jobs = scheduler.jobs

jit.off(true, true)

local bor, find = bit.bor, string.find

-- Flags of `native.finish`, as in src/host/jobs.rs.
local SCANNED, NO_CHANGES, MEASURE, OURS, STOPPED = 2, 16, 32, 64, 128

local worker = {}

--- Modules that are being loaded: by which session, and the tickets of those who wait for that.
---@type table<string, { session: msys.Session?, tickets: integer[] }?>
local loading = {}

--- Loads a module that a message names.
local function load_module(name)
  local ok, err = pcall(require, name)
  if not ok then
    -- LuaJIT keeps a mark of the failure, by which a second try would fail whatever has become of the file.
    package.loaded[name] = nil
    local text = scheduler.text_of(err)
    error(("msys.runInPool: module '%s' cannot be loaded in the worker: %s"):format(name, text), 0)
  end
  native.module_tried(name)
end

--- Calls a job's closure, as decoded from its message.
local function call(session, slot, closure, completion, ...)
  if type(closure) == "string" then
    load_module(closure)
    return call(session, slot, native_open(slot))
  end
  session.completion = completion
  return closure(...)
end

local function open(session, slot)
  return call(session, slot, native_open(slot))
end

local function roots_of(...)
  local roots = {}
  for place = 1, select("#", ...) do
    roots[place] = { name = "result " .. place, value = (select(place, ...)) }
  end
  return roots
end

--- What of a job's values cannot cross, in words.
local function unsendable(value, why, ok, ...)
  if not ok then
    local err = ...
    local kind = why or refusal.kind_of(value)
    return ("msys.runInPool: cannot send the error value (%s): %s"):format(kind, scheduler.text_of(err))
  end
  return "msys.runInPool: cannot send " .. refusal.explain(roots_of(...), value, why)
end

--- What a job was sent, by the names that errors give it.
local function sent_to(slot)
  local roots = {}
  local function add(...)
    for place = 1, select("#", ...) do
      local name = place == 1 and "the closure" or ("argument %d"):format(place - 2)
      -- The completion stands between, and is none: somebody waits.
      if place ~= 2 then roots[#roots + 1] = { name = name, value = (select(place, ...)) } end
    end
  end
  add(native.sent_to(slot))
  return roots
end

local function unsendable_change(value, why, slot)
  return "msys.runInPool: cannot send back what the job was sent, as the job has changed it: "
    .. refusal.explain(sent_to(slot), value, why)
end

--- What is wrong with an outcome that is too large: results, or what comes back.
local function too_large(limit, size, slot, pool, ...)
  local roots = roots_of(...)
  for _, root in ipairs(sent_to(slot)) do
    roots[#roots + 1] = root
  end
  return "msys.runInPool: " .. refusal.too_large(size, pool, limit, roots)
end

--- LuaJIT itself does not do so when a limit of memory is met, and is slow to do so after large strings (see
--- src/memory.rs).
local function collect_garbage()
  collectgarbage()
  native.memory_settled()
end

---@type fun(flags: integer, slot: integer, ok: boolean, ...: any)
local finish

--- What follows an attempt to send an outcome, which has given `sent, reason, value, why`.
local function finished(flags, slot, sent, reason, value, why, ok, ...)
  if sent then
    local session = current() --[[@as msys.Session]]
    jobs[slot] = nil
    session.slot = nil
    -- The memory's limit was met.
    if reason then collect_garbage() end
    return
  elseif reason == "scan" then
    names.scan()
    return finish(bor(flags, SCANNED), slot, ok, ...)
  elseif reason == "stopped" then
    local kind, text = native_stopped(slot, false)
    local id, pool, name = native.describe(slot)
    local info = { kind = kind, pool = pool, job = id, name = name, traceback = text }
    return finish(NO_CHANGES + OURS + STOPPED, slot, false, text, info)
  end
  local id, pool, name = native.describe(slot)
  local old = not ok and select(2, ...)
  local text
  local next_flags = bor(flags, SCANNED + NO_CHANGES + OURS)
  if reason == "refused" then
    text = unsendable(value, why, ok, ...)
    next_flags = bor(bor(flags, SCANNED + NO_CHANGES + OURS) - NO_CHANGES, 0)
  elseif reason == "large" then
    local size = native_finish(slot, bor(flags, MEASURE), ok, ...)
    text = too_large(value, size, slot, pool, ...)
  else
    text = reason == "change" and unsendable_change(value, why, slot) or scheduler.text_of(value)
  end
  local kind = value == "not enough memory" and "memory" or "unsendable"
  local info = { kind = kind, pool = pool, job = id, name = name, traceback = old and old.traceback or text }
  return finish(next_flags, slot, false, text, info)
end

--- Sends an outcome; one that cannot cross becomes a failure of kind "unsendable".
function finish(flags, slot, ok, ...)
  local sent, reason, value, why = native_finish(slot, flags, ok, ...)
  return finished(flags, slot, sent, reason, value, why, ok, ...)
end

--- Reports a failure that nobody waits for to the host in whose name this worker works.
local function report(err, info)
  local session = current()
  local slot = session and session.slot
  local sent, reason, value, why = native.report(slot, false, false, err, info)
  if not sent and reason == "scan" then
    names.scan()
    sent, reason, value, why = native.report(slot, true, false, err, info)
  end
  if not sent then
    local text = reason == "refused" and unsendable(value, why, false, err) or scheduler.text_of(value)
    native.report(slot, true, false, text, { kind = "unsendable", traceback = info.traceback or text })
  end
end

--- The info table's fields of a job.
local function about(slot)
  local id, pool, name = native.describe(slot)
  return { pool = pool, job = id, name = name }
end

local function complete(slot, completion, ...)
  local ok, fail = xpcall(completion, failure, ...)
  if not ok then report(scheduler.explain(fail, about(slot))) end
end

--- Sends an outcome when the job has no more to do. Who waits for it is to find the job's locks free.
local function settle(flags, session, slot, ...)
  if session.number then scheduler.release_locks(session) end
  return finish(flags, slot, ...)
end

--- Ends a job with what its closure gave.
local function ended(session, slot, ok, ...)
  local completion = session.completion
  session.completion = nil
  local flags = 0
  ---@type string?, string?
  local kind, text
  if completion or not ok then
    -- What the job is stopped for is not for its completion.
    kind, text = native_stopped(slot, completion ~= nil)
    if kind then
      flags, ok = STOPPED + NO_CHANGES, false
    end
  end
  if ok then
    if completion then complete(slot, completion, true, ...) end
    return settle(completion and STOPPED or 0, session, slot, true, ...)
  end
  local err, info = scheduler.explain((...), about(slot))
  if kind then
    err, info.kind = text, kind
  else
    local stop = session.stop
    if stop and type(err) == "string" and find(err, stop.text, 1, true) then info.kind = stop.kind end
  end
  if completion then
    session.stop = nil
    -- The completion has the outcome, so the failure is not reported a second time.
    complete(slot, completion, false, err, info)
    return settle(STOPPED, session, slot, true)
  end
  return settle(flags, session, slot, false, err, info)
end

--- Ends a job whose coroutine has ended so.
local function finish_here(session, slot, ok, ...)
  local own = current() --[[@as msys.Session]]
  own.slot, own.number, own.stop = slot, session.number, session.stop
  session.slot, session.number = nil, nil
  jobs[slot] = own
  return ended(own, slot, ok, ...)
end

--- The same, where sending what it ended with has been tried.
local function finish_refused(session, slot, ...)
  local own = current() --[[@as msys.Session]]
  own.slot = slot
  session.slot = nil
  jobs[slot] = own
  return finished(0, slot, nil, ...)
end

--- The same; what is usual, without another session.
local function finish_job(session, ok, ...)
  local slot = session.slot
  if ok and not session.number and not session.stop then
    local sent, reason, value, why = native_finish(slot, 0, true, ...)
    if not sent then return scheduler.start(finish_refused, session, slot, reason, value, why, true, ...) end
    jobs[slot] = nil
    session.slot = nil
    if reason then collect_garbage() end
    return
  end
  return scheduler.start(finish_here, session, slot, ok, ...)
end

local function refuse_job(session, ...)
  return scheduler.start(finish_refused, session, session.slot, ...)
end

--- Runs a job that has been decoded, with this `_TLS`.
local function run_opened(tls, slot, closure, completion, ...)
  local session = current() --[[@as msys.Session]]
  session.slot = slot
  scheduler.use_tls(tls)
  jobs[slot] = session
  session.completion = completion
  return ended(session, slot, xpcall(closure, failure, ...))
end

local function start_opened(...)
  return scheduler.start(run_opened, ...)
end

local function run_job(slot)
  local session = current() --[[@as msys.Session]]
  session.slot = slot
  jobs[slot] = session
  return ended(session, slot, xpcall(open, failure, session, slot))
end

local function end_in_place_of(session, slot)
  local own = current() --[[@as msys.Session]]
  own.slot, own.completion, own.number, own.stop = slot, session.completion, session.number, session.stop
  session.slot, session.number = nil, nil
  jobs[slot] = own
  return ended(own, slot, false, own.stop.text)
end

--- Ends a stopped job that has yielded: its coroutine is not resumed.
local function end_stopped(session)
  return scheduler.start(end_in_place_of, session, session.slot)
end

--- Ends a job, if one is given, whose outcome cannot be sent in any other way, because that has failed with `err`; or
--- which could not begin.
local function fail_job(slot, err)
  if slot then jobs[slot] = nil end
  local short = err == "not enough memory"
  if slot then
    if short then
      native.fail(slot, "memory", "not enough memory")
    else
      native.fail(
        slot,
        "unsendable",
        "msys.runInPool: the job's outcome cannot be sent: " .. scheduler.text_of(err)
      )
    end
  end
  if short then collect_garbage() end
end

local function start_job(slot, new_paths, short_of_memory)
  if short_of_memory then collect_garbage() end
  if new_paths then
    local path, cpath = native.paths_of(slot)
    if path then
      package.path, package.cpath = path, cpath
    end
  end
  return scheduler.start(run_job, slot)
end

--- A module is loaded once for all jobs: its functions must not get the environment of the job that asked for it, and
--- a second job waits while the module, as it is loaded for the first, waits for something.
do
  ---@type table?
  local globals = package.loaded._G
  local load = loader.require
  local function back(env, name, ok, ...)
    if env ~= globals then setfenv(0, env) end
    local load_of = loading[name] --[[@as { tickets: integer[] }]]
    loading[name] = nil
    -- So that whoever needs it next tries again, and learns what is wrong.
    if not ok then package.loaded[name] = nil end
    for _, ticket in ipairs(load_of.tickets) do
      native.timer(0, ticket)
    end
    -- As it was raised: the place is in the message.
    if not ok then error((...), 0) end
    return ...
  end
  --- A worker's `require`.
  ---@async
  function worker.require(name)
    local env = getfenv(0)
    if name == "_G" then return env end
    local by = loading[name]
    if by and by.session ~= current() and scheduler.can_suspend() then
      local ticket = scheduler.wait_ticket()
      by.tickets[#by.tickets + 1] = ticket
      scheduler.wait(ticket)
      return worker.require(name)
    end
    if by or type(name) ~= "string" or package.loaded[name] then return load(name) end
    loading[name] = { session = current(), tickets = {} }
    if env ~= globals then
      setfenv(0, globals --[[@as table]])
    end
    return back(env, name, pcall(load, name))
  end
end

local function open_init()
  local init = native.open_init()
  if type(init) == "string" then
    load_module(init)
    return open_init()
  end
  ---@cast init function
  init()
end

--- Runs the pool's init as a session, with jobs that it waits for, and nothing else; gives nil, or why and where it
--- failed.
local function run_init()
  local done, text, traceback = false, nil, nil
  native.enter(-1)
  scheduler.start(function()
    local ok, fail = xpcall(function()
      open_init()
    end, failure)
    if not ok then
      local err, info = scheduler.explain(fail)
      text, traceback = scheduler.text_of(err), info.traceback
    end
    done = true
  end)
  local ran = scheduler.run_while(function()
    return not done
  end)
  return ran and text or not ran and "the pool ended", traceback
end

--- All modules are loaded: the scheduler takes over.
function worker.ready()
  local also = boot.also
  for place = 1, #also, 3 do
    local fn, library, field = also[place], also[place + 1], also[place + 2]
    if fn then table.insert(names.also, { fn, library, field }) end
  end
  scheduler.keep_tls_in(package.loaded._G)
  scheduler.setup(report, {
    start = start_job,
    start_opened = start_opened,
    finish = finish_job,
    refuse = refuse_job,
    fail = fail_job,
    end_stopped = end_stopped,
  })
  native.use_current(current)
end

--- A worker's life from here on.
---@param session? msys.Session  that has run jobs before
---@param ... any  what has become of it: see `scheduler.take_on`
function worker.serve(session, ...)
  if session then
    if not scheduler.take_on(session, ...) then return end
    return scheduler.serve()
  end
  if native.shares_globals() then require "msys.globals" end
  names.scan()
  if native.has_init() then
    local text, traceback = run_init()
    if text then
      text = ("init of pool '%s' failed: %s"):format(native.pool_name(), text)
      if not native.init_failed(text, traceback) then
        report(text, { kind = "error", traceback = traceback or text, pool = native.pool_name() })
      end
      return
    end
  end
  native.init_done()
  return scheduler.serve()
end

return worker
