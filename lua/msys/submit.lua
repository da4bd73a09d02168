--- `msys.runInPool`: what the caller gave, checked; the job, sent; the outcome, awaited.

local base = require "msys.base"
local core = require "msys.core"
local environment = require "msys.environment"
local names = require "msys.names"
local native = require "msys.native"
local refusal = require "msys.refusal"
local scheduler = require "msys.scheduler"
local threadpool = require "msys.threadpool"

local error, select, type, unpack = error, select, type, unpack
local new_ticket, is_idle, current = scheduler.new_ticket, scheduler.is_idle, scheduler.current
local native_submit, native_send = native.submit, native.send
local ids, follow_paths, followed = threadpool.ids, threadpool.follow_paths, threadpool.followed
local is_worker, package, waiting = native.is_worker, package, base.waiting
-- The session's number, if it has to do with locks; 0 is none.
local numbered = scheduler.owner

jit.off(true, true)

---@class msys.submit
---@field report fun(err: any, info: table)  set by a host's `msys`
local submit = {}

-- Modes and flags, as in src/host/jobs.rs.
local SYNC, ASYNC, SCHEDULED, KEPT = 0, 1, 2, 3
local QUIET, SCANNED, NOT_IN_PLACE, MEASURE = 1, 2, 8, 32

local SCHED = core.ECTP_COMPLETE_CALLBACK_SCHED

--- As many as a call can surely pass.
local MOST_ARGS = 7000

local OPTION_TYPES = {
  args = "table",
  async = "boolean",
  completion = "function",
  mode = "number",
  name = "string",
  in_place = "boolean",
  timeout = "number",
  cancel = "userdata",
}

--- What a job is made of, by the names that errors give it.
local function roots_of(closure, completion, ...)
  local roots = { { name = "the closure", value = closure } }
  if completion ~= nil then roots[#roots + 1] = { name = "the completion", value = completion } end
  for place = 1, select("#", ...) do
    roots[#roots + 1] = { name = "argument " .. place, value = (select(place, ...)) }
  end
  return roots
end

--- What ends a job before it ends itself, as `native.submit` takes it: seconds, when they began, a token.
---@param timeout? number
---@param cancel? msys.Canceller
---@return table? limits
local function limits_of(timeout, cancel)
  if timeout or cancel then return { timeout or false, native.clock(), cancel or false } end
end
submit.limits_of = limits_of

--- Why a job is not to be sent any more, if so: "timeout" or "cancelled", and a text.
local function over(limits, pool)
  local timeout, since, token = limits[1], limits[2], limits[3]
  if token then
    local is_cancelled, why = native.cancelled(token)
    if is_cancelled then
      local text = "msys: a job was cancelled before pool '%s' had room for it%s"
      return "cancelled", text:format(threadpool.name_of(pool), why ~= "" and ": " .. why or "")
    end
  end
  if timeout and native.clock() >= since + timeout then
    local text = "msys: a job timed out after %.14g s, before pool '%s' had room for it"
    return "timeout", text:format(timeout, threadpool.name_of(pool))
  end
end

--- Waits for room in a pool's queue; gives why the job is not to be sent any more, if so.
---@async
local function await_room(pool, limits)
  local room = scheduler.wait_ticket()
  if limits then
    local reason, text = over(limits, pool)
    if reason then return reason, text end
    if limits[1] then native.timer(math.max(0, limits[1] + limits[2] - native.clock()), room) end
  end
  native.await_room(pool, room, limits and limits[3] or nil)
  local expired = scheduler.wait(room) == true
  if limits then
    if limits[1] and not expired then native.end_timer(room) end
    local reason, text = over(limits, pool)
    -- Only then: the next one may have the room that this one was told of.
    if reason then
      native.leave(room, true)
      return reason, text
    end
  end
  native.leave(room, false)
end

--- Sends a job. Gives its id, or nil, a reason and a text: "shutdown", "timeout" and "cancelled" are outcomes, the rest
--- is raised.
---@async
local function send(flags, pool, mode, ticket, name, limits, closure, completion, ...)
  local session = current()
  local id, reason, value, why = native_submit(
    pool,
    mode,
    ticket,
    session and session.slot,
    numbered.session,
    name,
    flags,
    limits,
    closure,
    completion,
    ...
  )
  if id then
    return id
  elseif reason == "scan" then
    names.scan()
    return send(flags + SCANNED, pool, mode, ticket, name, limits, closure, completion, ...)
  elseif reason == "full" then
    local why_not, text = await_room(pool, limits)
    if why_not then return nil, why_not, text end
    return send(flags, pool, mode, ticket, name, limits, closure, completion, ...)
  elseif reason == "lost" then
    scheduler.lose_everything()
    return send(flags, pool, mode, ticket, name, limits, closure, completion, ...)
  elseif reason == "refused" then
    return nil, reason, "cannot send " .. refusal.explain(roots_of(closure, completion, ...), value, why)
  elseif reason == "large" then
    local measure = flags + MEASURE
    local size = native_submit(
      pool,
      mode,
      ticket,
      session and session.slot,
      nil,
      name,
      measure,
      nil,
      closure,
      completion,
      ...
    )
    local roots = roots_of(closure, completion, ...)
    return nil, reason, refusal.too_large(size, threadpool.name_of(pool), value, roots)
  end
  threadpool.forget(pool)
  return nil, reason, tostring(value)
end

--- The outcome of a job that was not taken: the pool was shut down, or its time was over before.
local function not_taken(kind, text, pool)
  return false, text, { kind = kind, pool = threadpool.name_of(pool), traceback = text }
end

---@type table<any, boolean?>
local OUTCOMES = { shutdown = true, timeout = true, cancelled = true }

--- Checks an options table; gives its fields, or nil and what is wrong.
local function check_options(options)
  for key, value in pairs(options) do
    if not OPTION_TYPES[key] then
      local known = "args, async, cancel, completion, in_place, mode, name, timeout"
      return nil, ("unknown option '%s', expected one of %s"):format(tostring(key), known)
    elseif key == "cancel" then
      if getmetatable(value) ~= "msys.canceller" then
        return nil, ("option 'cancel' must be what msys.canceller gives, got %s"):format(type(value))
      end
    elseif type(value) ~= OPTION_TYPES[key] then
      return nil, ("option '%s' must be a %s, got %s"):format(key, OPTION_TYPES[key], type(value))
    end
  end
  local args = options.args
  if args then
    local n = args.n == nil and #args or args.n
    if type(n) ~= "number" or not (n >= 0 and n <= MOST_ARGS and n % 1 == 0) then
      return nil, ("option 'args' must have from 0 to %d items, got %s"):format(MOST_ARGS, tostring(n))
    end
  end
  local timeout = options.timeout
  if timeout and not (timeout >= 0) then -- luacheck: ignore 581 (NaN is refused too)
    return nil, ("option 'timeout' must not be negative, got %s"):format(timeout)
  end
  if options.async == false and options.completion then
    return nil, "option 'completion' needs an asynchronous job, and 'async' is false"
  end
  return true
end

submit.check_options = check_options

--- Runs a job as `options` say, with the arguments behind.
---@async
local function run(flags, given, pool, closure, async, completion, mode, name, limits, ...)
  follow_paths()
  local ticket = new_ticket()
  local how, in_pool = SYNC, nil
  if completion and mode == SCHED then
    how = SCHEDULED
  elseif completion or async then
    how, in_pool = ASYNC, completion
  end
  -- A synchronous job of a worker's own pool is most likely the next that this worker runs: no other need be woken.
  local quiet = (how == SYNC and is_idle()) and QUIET or 0
  local id, reason, text =
    send(flags + environment.flags + quiet, pool, how, ticket, name, limits, closure, in_pool, ...)
  if id then
    if how == SYNC then
      return nil, scheduler.wait(ticket)
    elseif how == SCHEDULED then
      -- No event is looked at between the submission and this.
      scheduler.on_outcome(ticket, completion)
    else
      scheduler.release(ticket)
    end
    return nil
  end
  scheduler.release(ticket)
  if not OUTCOMES[reason] then return text end
  -- The name may be another pool's by now.
  local successor = reason == "shutdown" and threadpool.resolve(given)
  if successor and successor ~= pool then
    return run(flags, given, successor, closure, async, completion, mode, name, limits, ...)
  end
  if how == SYNC then
    return nil, not_taken(reason, text, pool)
  elseif completion then
    scheduler.spawn(completion, not_taken(reason, text, pool))
  else
    local _, err, info = not_taken(reason, text, pool)
    submit.report(err, info)
    scheduler.check_interrupt()
  end
  return nil
end
submit.run = run

--- Sends a job whose outcome is kept: gives nil and the future, or what is wrong, and whether that is that the pool is
--- full.
---@async
function submit.keep(given, pool, closure, name, ...)
  follow_paths()
  local fut, reason, text = send(environment.flags, pool, KEPT, 0, name, nil, closure, nil, ...)
  if fut then return nil, fut end
  if reason ~= "shutdown" then return text, nil, reason == "backlog" end
  -- The name may be another pool's by now.
  local successor = threadpool.resolve(given)
  if successor and successor ~= pool then return submit.keep(given, successor, closure, name, ...) end
  return nil, native.failed_future(text, threadpool.name_of(pool))
end

--- Raises at the caller's line what `run` refused, or gives what it gave.
local function checked(text, ...)
  if text then
    -- Called in place of runInPool, by a tail call.
    error("msys.runInPool: " .. text, 2)
  end
  return ...
end

--- Runs a closure in a pool. Closure, upvalues and arguments are copied when the call is made.
---
--- `third` is nil or false: waits, and gives `true, results...` or `false, err, info`. `true`: does not wait. A
--- function: does not wait, and calls it with the outcome, in the pool, or with `mode` `ECTP_COMPLETE_CALLBACK_SCHED`
--- on this VM's scheduler. A table: options.
---@async
---@param pool string|integer|msys.Pool
---@param closure function
---@param third? boolean|function|msys.Options
---@param mode? integer
---@return boolean? ok
---@return any ...
function submit.runInPool(pool, closure, third, mode)
  local id = ids[pool] or threadpool.resolve(pool)
  if not id then error("msys.runInPool: " .. threadpool.unknown(pool), 2) end
  -- Only the usual is done here, without a call that is not needed: those are a tenth of what sending a job takes.
  local slot
  if is_worker then
    local session = current()
    slot = session and session.slot
  elseif followed.path ~= package.path or followed.cpath ~= package.cpath then
    follow_paths()
  end
  local sent, reason, value = native_send(
    id,
    slot,
    numbered.session,
    not third and is_idle() and environment.flags + QUIET or environment.flags,
    waiting,
    closure,
    third,
    mode
  )
  if sent then
    if sent ~= true then return scheduler.wait(sent) end
    return
  elseif reason == "text" then
    error("msys.runInPool: " .. tostring(value), 2)
  elseif reason == "lost" then
    scheduler.lose_everything()
  end
  if type(closure) ~= "function" then
    error("msys.runInPool: closure must be a Lua function, got " .. type(closure), 2)
  end
  local kind = type(third)
  if not third then
    return checked(run(0, pool, id, closure))
  elseif third == true then
    return checked(run(0, pool, id, closure, true))
  elseif kind == "function" then
    return checked(run(0, pool, id, closure, true, third, mode))
  elseif kind ~= "table" then
    error(
      "msys.runInPool: the third argument must be nil, a boolean, a completion function or an options table, got "
        .. kind,
      2
    )
  end
  local fine, text = check_options(third)
  if not fine then error("msys.runInPool: " .. text, 2) end
  local args = third.args or {}
  return checked(
    run(
      third.in_place == false and NOT_IN_PLACE or 0,
      pool,
      id,
      closure,
      third.async,
      third.completion,
      third.mode,
      third.name,
      limits_of(third.timeout, third.cancel),
      unpack(args, 1, args.n or #args)
    )
  )
end

return submit
