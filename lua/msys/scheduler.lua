--- Sessions, and the loop that runs them. One for each VM: the host's and a worker's differ only in that a worker's
--- `next` also gives jobs. Policy is here; queues and waiting are in Rust (`src/vm.rs`).
---
--- A **ticket** is a small number for something awaited, used again when that has come. Whoever waits for it stands in
--- `waiting`: a session, which is resumed with the values; a completion, which is run with them; or a pump, that is a
--- wait that cannot suspend and so runs the loop itself until its values have arrived.

local base = require "msys.base"
local native = require "msys.native"

local co_create, co_yield = coroutine.create, coroutine.yield
local co_resume, co_status = base.co_resume, base.co_status
local co_running, isyieldable = coroutine.running, coroutine.isyieldable
local collectgarbage, next, pairs, select, unpack = collectgarbage, next, pairs, select, unpack
local type, xpcall = type, xpcall
local next_event, enter = native.next, native.enter
local native_turn, touch = native.turn, native.touch
local release_ticket, count_completions = native.release_ticket, native.completions
local is_worker = native.is_worker

-- The loop calls C functions and resumes coroutines, which are not compiled; and after a signal the interpreter has to
-- be the one to go on, since only it looks for the hook with which the host says "interrupted!".
jit.off(true, true)

local scheduler = {}

-- Kinds of events, as in src/host/jobs.rs.
local NOTHING, JOB, OUTCOME, REPORT, REQUIRE, END, LOST, FAILED, STOP, STOP_JOB = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
local RAN, OPENED, YIELDED, ENDED, BROKEN, RESUMED, REFUSED = 10, 11, 12, 13, 14, 15, 16

--- What a coroutine yields: a session that waits (with its ticket), one that lets others run, and one that has ended.
local WAIT, YIELD, DONE = base.WAIT, {}, {}
--- Stand in `waiting` for a pump, and for a wait that was ended before what it waited for has come.
local PUMP, ABANDONED = {}, {}
--- Comes in the place of a wait's values, if the wait was ended.
local STOPPED = {}

--- How many ended sessions are kept for new ones.
local SPARE = 256
--- How many events one `poll` handles before it lets the foreign loop have its turn.
local POLL_MOST = 1000
--- How many jobs or completions a turn of the loop runs before it looks at anything else.
local TURN = 256

--- A worker's may be there already, if its code has asked for the scheduler.
local current = base.current()
--- The code outside of sessions, as one that has locks.
---@type msys.Session
local main = {
  co = co_running() --[[@as thread]],
}
--- The number of the session that runs, for compiled code; 0 if it has none yet.
local owner = { session = 0 }
scheduler.owner = owner
---@type table<integer, any>, table<integer, table?>
local waiting, arrived = base.waiting, {}
--- Tickets of timers, which a fork's child still has.
local timed = {}
local ready, first, last = {}, 1, 0
local spare = {}
--- The sessions of a worker's jobs, by slot.
local jobs = base.jobs
scheduler.jobs = jobs
--- Pumps on the stack; and the sessions that are in one, by that.
local pumps = 0
---@type table<msys.Session, true?>
local in_pump = {}
--- A foreign loop watches our descriptor; `poll` runs, and will see to the descriptor itself.
local watched, polling = false, false
--- Sessions spawned and not ended.
local sessions = 0
--- Where `_TLS` is a global: there, and what it is outside of sessions.
---@type table?, table
local tls_home, main_tls = nil, base.main_tls

--- What is done with failures that nobody waits for.
---@type fun(err: any, info: table)
local report
--- What a worker does with jobs.
---@class msys.Jobs
---@field start fun(slot: integer, new_paths: boolean, short_of_memory: boolean)
---@field start_opened fun(tls: table, slot: integer, closure: function, completion: function, ...: any)  of a job that
--- was decoded
---@field finish fun(session: msys.Session, ok: boolean, ...: any)  whose coroutine has ended so
---@field refuse fun(session: msys.Session, reason: string, value: any, why: string?, ok: boolean, ...: any)  as it was
--- tried to send what its coroutine has ended with
---@field fail fun(slot: integer?, err: any)  with an error of the loop's, if one is given; cannot fail itself
---@field end_stopped fun(session: msys.Session)  ends a stopped job, whose session is not resumed
---@type msys.Jobs?
local for_jobs
--- The loop has raised for lack of memory with nothing in hand, and has not come through a turn since.
local is_short = false
--- What the loop has in hand: a session that it is about to resume, a job that it is about to begin. Should memory run
--- out there, that is what is lost.
---@type msys.Session?, integer?
local session_in_hand, slot_in_hand

--- The session for what `native.turn` runs.
---@type msys.Session?
local direct
--- The same, while `native.turn` is at work with it.
---@type msys.Session?
local in_turn
--- Others that can be that.
---@type msys.Session[], integer
local spare_direct, spare_directs = {}, 0

--- `scheduler.run` is at work, or was left by an error.
local running = false
--- What Ctrl-C has raised in a session that has ended by it, or in what was called for nobody.
---@type string?
local interrupt

local new_session, Failure, failure = base.new_session, base.Failure, base.failure
scheduler.Failure = Failure

--- `tostring` for error values: an object's `__tostring` may raise.
---@param value any
---@return string
function scheduler.text_of(value)
  local ok, text = pcall(tostring, value)
  if not ok then scheduler.caught(text) end
  return ok and type(text) == "string" and text or ("an error value of type %s"):format(type(value))
end

--- The error value and the info table of a failure.
---@param fail any  what `xpcall` gave
---@param extra? table  fields for info
---@return any err
---@return table info
function scheduler.explain(fail, extra)
  local info = extra or {}
  local err = fail
  if getmetatable(fail) == Failure then
    err = fail.err
    info.kind = info.kind or fail.kind
    -- Below the job's own function there are only frames of msys.
    info.traceback = fail.traceback
      :gsub("\n\t%[C%]: in function 'xpcall'\n\t[^\n]*msys[^\n]*.*$", "")
      :gsub("\n\t%[builtin#%d+%][^\n]*$", "")
  end
  info.traceback = info.traceback or scheduler.text_of(err)
  info.kind = info.kind or (err == "not enough memory" and "memory" or "error")
  return err, info
end

local function set_tls(session)
  if tls_home then
    if not session then
      tls_home._TLS = main_tls
    else
      session.tls = session.tls or {}
      tls_home._TLS = session.tls
    end
  end
end

--- Makes `_TLS` a field of `home` that follows the session; for a VM whose globals are ours or were asked for.
---@param home table
function scheduler.keep_tls_in(home)
  tls_home = home
  set_tls(current)
end

--- Makes a table the running session's.
---@param tls table
function scheduler.use_tls(tls)
  if current then current.tls = tls end
  set_tls(current)
end

---@return table
function scheduler.tls()
  if not current then return main_tls end
  -- Where there is no global of that name, it is not made anew for each job or completion.
  if current.direct and not tls_home then touch() end
  current.tls = current.tls or {}
  return current.tls
end

---@return msys.Session?
function scheduler.current()
  return current
end

---@return boolean
function scheduler.is_idle()
  return first > last
end

--- A ticket that nobody uses. Those that are done with are used again, so that `waiting` stays an array.
scheduler.new_ticket = native.new_ticket

--- Tickets from here on are used once: what comes late for one finds nobody.
local ONCE = 2 ^ 40
local once = ONCE

--- A ticket for a wait that may be ended by more than one event.
---@return integer
function scheduler.wait_ticket()
  once = once + 1
  return once
end

--- Ends a ticket: nothing will come for it any more.
local function release(ticket)
  if ticket > ONCE then
    waiting[ticket] = nil
    return
  end
  waiting[ticket] = false
  release_ticket(ticket)
end
scheduler.release = release

local function push_ready(session)
  touch()
  ready[last + 1] = session
  last = last + 1
  if watched and not polling then native.watch(true) end
end

--- After a wait of plain code, which may have taken events from the foreign loop's descriptor.
local function left_over()
  if watched then native.watch(first <= last) end
end

--- The descriptor for a foreign loop.
---@return integer? descriptor
---@return string? text
function scheduler.fd()
  local descriptor, text = native.fd()
  watched = watched or descriptor ~= nil
  left_over()
  return descriptor, text
end

--- What a session is called in messages.
local function name_of(session)
  if session.slot then
    local job, pool, name = native.describe(session.slot)
    return ("job %d%s of pool %s"):format(job, name and (" %q"):format(name) or "", pool)
  end
  local what = session == main and "the main code" or "a session"
  local pool = is_worker and native.pool_name()
  return pool and ("%s of a worker of pool %s"):format(what, pool) or what .. " of the host"
end

--- The number of the session that runs, which it has from now on.
---@return integer
function scheduler.session_number()
  local session = current or main
  if not session.number then
    session.number = native.new_session(name_of(session), session.slot)
    owner.session = session.number
  end
  return session.number
end

--- The slot of the job that the running session is, if it is one.
---@return integer?
function scheduler.slot()
  return current and current.slot
end

--- Releases the locks that a session has, and reports them: it has ended.
---@param session msys.Session
local function release_locks(session)
  local left = native.end_session(session.number --[[@as integer]], session.slot)
  session.number = nil
  owner.session = (current or main).number or 0
  -- A worker's are reported already, without memory: it may have run out.
  if not left then return end
  for _, text in ipairs(left) do
    report(text, { kind = "error", traceback = text })
  end
end
scheduler.release_locks = release_locks

--- Releases the locks of the job in `slot`, which memory has kept from ending: it may have been on its way from one
--- session to another. (What `jobs` has for a slot may have another by now: see `begin` in src/host/direct.rs.)
local function release_job(session, slot)
  local holder = slot and jobs[slot]
  if holder and holder.slot == slot and holder.number then release_locks(holder) end
  if session and session.number then release_locks(session) end
end

--- Raises Ctrl-C where it was noted, in what runs the loop.
local function check_interrupt()
  if interrupt then
    local err = interrupt
    interrupt = nil
    -- What `poll` does at its end.
    if polling then
      polling = false
      native.watch(true)
    end
    error(err, 0)
  end
end
scheduler.check_interrupt = check_interrupt

---@type fun(session: msys.Session, ok: boolean, ...: any), fun(session: msys.Session)
local finish_direct, keep_direct

local function resumed(session, previous, depth, ok, tag, ...)
  -- One that goes on is in hand until it is in the list of those that are ready.
  if tag == WAIT or tag == DONE then
    session_in_hand, slot_in_hand = nil, nil
  end
  current = previous
  -- An error may have left some on the session's stack.
  pumps = depth
  owner.session = (previous or main).number or 0
  set_tls(previous)
  if tag == WAIT then
    return
  elseif session.direct and (not ok or co_status(session.co) == "dead") then
    if ok then
      finish_direct(session, tag, ...)
      keep_direct(session)
    else
      finish_direct(session, false, tag)
    end
  elseif tag == DONE then
    if session.number then release_locks(session) end
    if session.slot then
      jobs[session.slot] = nil
      session.slot = nil
    end
    if session.counted then
      session.counted = nil
      sessions = sessions - 1
    end
    if #spare < SPARE then spare[#spare + 1] = session end
  elseif ok then
    -- YIELD; and a plain coroutine.yield of the user's is one too.
    push_ready(session)
    session_in_hand, slot_in_hand = nil, nil
  else
    -- Sessions protect what they run, so this is a failure of the scheduler's own, or of memory.
    native.unhook()
    -- Its job is in hand until it has failed: a finalizer may raise in that, too.
    local slot = session.slot or slot_in_hand
    release_job(session, slot)
    if session.counted then sessions = sessions - 1 end
    if for_jobs and slot then
      for_jobs.fail(slot, tag)
    else
      report(scheduler.explain(tag))
    end
    session_in_hand, slot_in_hand = nil, nil
  end
  check_interrupt()
end

local function switch_to(session, ...)
  local previous = current
  session_in_hand = session
  current = session
  owner.session = session.number or 0
  set_tls(session)
  return resumed(session, previous, pumps, co_resume(session.co, ...))
end

--- Resumes one that has not just been begun.
local function resume(session, ...)
  if is_worker then enter(session.slot or -1) end
  return switch_to(session, ...)
end

local function serve_one(run, ...)
  run(...)
end

--- The body of every session's coroutine, which serves one after the other. Between them it holds nothing of the last.
---@async
local function body()
  while true do
    serve_one(co_yield(DONE))
  end
end

---@return msys.Session
local function take_session()
  local session = spare[#spare]
  if session then
    spare[#spare] = nil
    session.tls, session.stop = nil, nil
    return session
  end
  local co = co_create(body)
  co_resume(co)
  return new_session(co)
end

--- Runs `run(...)` as a new session, now.
---@param run async fun(...: any)
function scheduler.start(run, ...)
  return switch_to(take_session(), run, ...)
end

--- Notes an error that a session let through: whether that is Ctrl-C, which is meant for the program, so that its exit
--- waits for nothing.
---@param err any
---@return boolean
function scheduler.note_interrupt(err)
  local is_interrupt = not is_worker and type(err) == "string" and err:find "interrupted!$" ~= nil
  running = running or is_interrupt
  return is_interrupt
end

--- Notes an error that goes no further; where that is Ctrl-C, it is raised once more, in what runs the loop.
---@param err any
---@return boolean
function scheduler.caught(err)
  local is_interrupt = scheduler.note_interrupt(err)
  if is_interrupt then interrupt = err end
  return is_interrupt
end

--- Reports what a session raised that nobody waits for.
local function failed(fail)
  local err, info = scheduler.explain(fail)
  if not scheduler.caught(err) then report(err, info) end
end

local function run_spawned(fn, ...)
  local ok, fail = xpcall(fn, failure, ...)
  if not ok then failed(fail) end
end

--- Starts a session when the loop next runs.
---@param fn function
function scheduler.spawn(fn, ...)
  local session = take_session()
  session.args = { n = select("#", ...) + 1, fn, ... }
  session.counted = true
  sessions = sessions + 1
  push_ready(session)
end

local function end_completion(ticket, ok, fail)
  count_completions(-1)
  native.settle(ticket)
  release(ticket)
  if not ok then failed(fail) end
end

local function run_completion(ticket, fn, ...)
  return end_completion(ticket, xpcall(fn, failure, ...))
end

--- Ends a session that ran a job or a completion itself, with what `xpcall` gave.
function finish_direct(session, ok, ...)
  session.direct = nil
  if for_jobs and session.slot then
    local previous = current
    slot_in_hand = session.slot
    current = session
    set_tls(session)
    for_jobs.finish(session, ok, ...)
    current = previous
    owner.session = (previous or main).number or 0
    set_tls(previous)
    session_in_hand, slot_in_hand = nil, nil
    return
  end
  if session.number then release_locks(session) end
  -- Else it was a job that has ended.
  if session.completes then scheduler.start(end_completion, session.completes, ok, (...)) end
end

--- Keeps a session that was made for `native.turn`, whose coroutine has ended, for the next turns.
function keep_direct(session)
  session.tls, session.stop, session.completes = nil, nil, nil
  if spare_directs < SPARE then
    spare_directs = spare_directs + 1
    spare_direct[spare_directs] = session
  end
end

--- Runs `fn` with the outcome of `ticket`.
---@param ticket integer
---@param fn function
function scheduler.on_outcome(ticket, fn)
  count_completions(1)
  waiting[ticket] = fn
end

local function complete(ticket, ...)
  local waiter = waiting[ticket]
  if waiter == PUMP then
    -- Of what comes for a ticket that is used once, the end of its time counts, whenever it comes.
    if ticket > ONCE and arrived[ticket] and arrived[ticket].n > 0 then return end
    -- The ticket is the pump's until it has taken the values.
    arrived[ticket] = { n = select("#", ...), ... }
    return
  elseif waiter == ABANDONED then
    return release(ticket)
  end
  if type(waiter) == "function" then
    -- The ticket is the completion's until it has ended.
    waiting[ticket] = false
    if is_worker then enter(-1) end
    return scheduler.start(run_completion, ticket, waiter, ...)
  elseif waiter then
    session_in_hand = waiter
    release(ticket)
    return resume(waiter, ...)
  end
end

--- Runs the sessions that are ready now, and not those that become so meanwhile; gives their number.
local function run_ready()
  local count = last - first + 1
  for done = 0, count - 1 do
    -- A session that pumps runs this loop too, further down the stack, and may have left nothing.
    if first > last then return done end
    local session = ready[first]
    ready[first] = nil
    first = first + 1
    if first > last then
      first, last = 1, 0
    end
    session_in_hand = session
    local args = session.args
    if for_jobs and session.stop and session.slot then
      -- Compiled code would go on behind a yield without looking at hooks.
      for_jobs.end_stopped(session)
    elseif args then
      session.args = nil
      resume(session, run_spawned, unpack(args, 1, args.n))
    else
      resume(session)
    end
  end
  return count
end

--- In a child process: what was sent to the parent's threads does not come back here.
local function lose_everything()
  local text = "msys: the job is not in this process, which is a fork's child"
  -- The same table stays, as `native.turn` may be at work with it.
  ---@type table<integer, any>
  local lost = {}
  for ticket, waiter in pairs(waiting) do
    lost[ticket] = waiter
  end
  for ticket in pairs(lost) do
    waiting[ticket] = nil
  end
  for ticket = 1, native.tickets() do
    local waiter = lost[ticket]
    if waiter == PUMP or timed[ticket] then
      waiting[ticket] = waiter
      if waiter == PUMP and not timed[ticket] then
        arrived[ticket] = { n = 3, false, text, { kind = "shutdown", traceback = text } }
      end
    elseif waiter then
      release(ticket)
      if waiter == ABANDONED then -- luacheck: ignore 542 (nobody waits)
      elseif type(waiter) == "function" then
        -- It is run in the parent. One that runs already goes on in both.
        count_completions(-1)
      else
        resume(waiter, false, text, { kind = "shutdown", traceback = text })
      end
    end
  end
  -- Those that wait for locks and the like ask again, and are heard in this process.
  for ticket, waiter in pairs(lost) do
    if ticket > ONCE then
      if waiter == PUMP then
        waiting[ticket], arrived[ticket] = waiter, { n = 0 }
      elseif waiter then
        resume(waiter)
      end
    end
  end
end
scheduler.lose_everything = lose_everything

--- The info table of an outcome that could not be decoded here.
local function undecoded(err, pool, job)
  local kind = err == "not enough memory" and "memory" or "unsendable"
  local _, name = native.find(pool)
  return { kind = kind, traceback = scheduler.text_of(err), pool = name, job = job }
end

--- Ends a wait before what it waits for has come, which may come all the same: not for a ticket that is used once.
---@param ticket integer
local function abandon(ticket)
  if ticket > ONCE then
    waiting[ticket] = nil
    native.leave(ticket, true)
  else
    waiting[ticket] = ABANDONED
  end
end

--- Takes a session out of its wait, if it is in one.
---@param session msys.Session
---@return boolean
local function leave_wait(session)
  local ticket = session.ticket
  if not ticket or waiting[ticket] ~= session then return false end
  abandon(ticket)
  return true
end

--- Ends the waits of a session, the present one and all to come: each raises `text`. The one place where that is done.
---@param session msys.Session
---@param text string
---@param kind string  of the outcome, if the session is a job and lets the error through
local function stop(session, text, kind)
  session.stop = session.stop or { text = text, kind = kind }
  local ticket = session.pumping
  if ticket then
    -- It takes this when it is on top of the stack again.
    arrived[ticket] = { n = 1, STOPPED }
    return
  end
  if leave_wait(session) then resume(session, STOPPED) end
end

--- Stops all jobs of a worker, whose pool ends without waiting for them.
local function stop_jobs(text, kind)
  local all = {}
  for _, session in pairs(jobs) do
    -- The one for `native.turn` has a job only if a wait of that runs this.
    if session ~= direct and session ~= in_turn or session.pumping then all[#all + 1] = session end
  end
  for _, session in ipairs(all) do
    if session.slot then stop(session, text, kind) end
  end
end

--- Handles what `next` gave; false when a worker is to end.
local function handle(kind, ...)
  if kind == OUTCOME then
    complete(...)
  elseif kind == JOB then
    slot_in_hand = ...
    ---@cast for_jobs msys.Jobs
    for_jobs.start(...)
  elseif kind == REPORT then
    local _, err, info = ...
    report(err, info)
    check_interrupt()
  elseif kind == REQUIRE then
    local name = ...
    if is_worker then enter(-1) end
    -- If it fails, decoding the event fails, and says which module is not there.
    local ok, err = pcall(require, name)
    if not ok then package.loaded[name] = nil end
    native.module_tried(name)
    if not ok then scheduler.caught(err) end
    check_interrupt()
  elseif kind == FAILED then
    local ticket, err, pool, job = ...
    -- Ctrl-C, in what the user's code does for the decoding: its outcome is lost with it.
    local is_interrupt = scheduler.caught(err)
    if ticket then
      complete(ticket, false, err, undecoded(err, pool, job))
    elseif not is_interrupt then
      report(err, undecoded(err, pool, job))
    end
    check_interrupt()
  elseif kind == LOST then
    lose_everything()
  elseif kind == STOP_JOB then
    local slot, why, text = ...
    local session = jobs[slot]
    if session then stop(session, text, why) end
  elseif kind == STOP then
    stop_jobs(...)
  elseif kind == END then
    return false
  end
  return true
end

--- Drops the session of a job that waits; gives its slot, if there is one.
local function drop_waiting()
  for slot, session in pairs(jobs) do
    if session.slot == slot and leave_wait(session) then
      release_job(session, slot)
      session.slot = nil
      return slot
    end
  end
end

--- Ends a job that waits, as those have all the memory and the loop needs some to go on; where none does, the worker.
local function give_up_one(err)
  local slot = drop_waiting()
  if not slot then error(err, 0) end
  ---@cast for_jobs msys.Jobs
  for_jobs.fail(slot, err)
end

--- After an error in the loop itself: memory has run out. What it had in hand ends with that error.
local function recover(previous, err)
  local session, slot = session_in_hand, slot_in_hand
  session_in_hand, slot_in_hand = nil, nil
  current = previous
  if not previous then
    slot = slot or native.in_hand()
    -- Where that raised, its session is in hand.
    if in_turn and in_turn.number then release_locks(in_turn) end
    direct, in_turn = nil, nil
    set_tls(nil)
  end
  owner.session = (previous or main).number or 0
  slot = session and session.slot or slot
  release_job(session, slot)
  ---@cast for_jobs msys.Jobs
  for_jobs.fail(slot, err)
  if not (previous or slot or session) and err == "not enough memory" then
    if is_short then give_up_one(err) end
    is_short = true
  end
end

local function checked(previous, ok, ...)
  if ok then return ... end
  -- A hook that a job has set may be what raised, or a finalizer.
  native.unhook()
  collectgarbage "stop"
  recover(previous, ...)
  collectgarbage "restart"
  return true
end

--- Calls a part of the loop; in a worker, an error there is not for the job on top of which it runs.
local function guarded(fn, ...)
  if not for_jobs then return fn(...) end
  return checked(current, pcall(fn, ...))
end

---@type fun(ticket: integer): any...
local pump

local function pumped(ticket, kind, number, ...)
  if kind == OUTCOME and number == ticket then
    release(ticket)
    return ...
  elseif kind == FAILED and number == ticket then
    local err, pool, job = ...
    release(ticket)
    scheduler.caught(err)
    check_interrupt()
    return false, err, undecoded(err, pool, job)
  end
  if not guarded(handle, kind, number, ...) then error("msys: the pool ends while this job waits", 0) end
  return pump(ticket)
end

--- Waits without suspending: runs the loop until the ticket's values are here.
function pump(ticket)
  if first <= last and not arrived[ticket] then guarded(run_ready) end
  local values = arrived[ticket]
  if values then
    arrived[ticket] = nil
    if values[1] == STOPPED then
      abandon(ticket)
    else
      release(ticket)
    end
    return unpack(values, 1, values.n)
  end
  -- Well before the limit, no new jobs on top of these: others can take them.
  return pumped(ticket, next_event(first > last, pumps > native.max_pumps / 2, ticket))
end

--- Whether the running code can suspend its session. In a host, a coroutine that the user made cannot: its resumer
--- would take our yield for the user's. In a worker, `coroutine.resume` is ours.
local function can_suspend()
  return current ~= nil and isyieldable() and (is_worker or co_running() == current.co)
end
scheduler.can_suspend = can_suspend

--- The sessions that cannot go on before a wait of the running code's has ended, as it would be on top of theirs: for
--- each, its number or 0, and its slot or -1.
---@return integer[]?
function scheduler.below()
  if next(in_pump) == nil or can_suspend() then return nil end
  local below, own = {}, current or main
  for session in pairs(in_pump) do
    if session ~= own then
      below[#below + 1] = session.number or 0
      below[#below + 1] = session.slot or -1
    end
  end
  return below
end

local function pumped_out(session, before, ...)
  pumps = pumps - 1
  session.pumping = before
  if not before then in_pump[session] = nil end
  if is_worker then enter(session.slot or -1) end
  left_over()
  return ...
end

--- Pumps, unless so many pumps are on the stack already that the C stack could overflow. Begins with the event behind
--- the ticket, if there is one.
local function deep_pump(ticket, kind, ...)
  -- Outside of sessions there is none: an error has left some that were.
  local session, depth = current or main, current and pumps or 0
  if depth >= native.max_pumps then
    waiting[ticket] = false
    error(("msys: more than %d waits inside each other that cannot suspend"):format(native.max_pumps), 0)
  end
  if not current and next(in_pump) then
    for left in pairs(in_pump) do
      in_pump[left], left.pumping = nil, nil
    end
  end
  pumps = depth + 1
  touch()
  -- It has begun: what fails from here on, on top of it, is not it.
  session_in_hand, slot_in_hand = nil, nil
  if session.slot then jobs[session.slot] = session end
  local before = session.pumping
  session.pumping = ticket
  in_pump[session] = true
  if kind then return pumped_out(session, before, pumped(ticket, kind, ...)) end
  return pumped_out(session, before, pump(ticket))
end

---@type fun(value: any, ...: any): any...
local woken

--- Gives what has come for code outside of sessions; or pumps, beginning with what has come for others.
local function has_come(ticket, kind, number, ...)
  main.pumping = nil
  if kind == OUTCOME and number == ticket then
    release(ticket)
    left_over()
    return ...
  end
  return woken(deep_pump(ticket, kind, number, ...))
end

--- Raises at the end of a wait that was ended, or gives what has come.
function woken(value, ...)
  if value == STOPPED then
    local stopped = (current or main).stop --[[@as { text: string }]]
    error(stopped.text, 0)
  end
  return value, ...
end

--- Waits for the values of `ticket`; its session is suspended, or if that cannot be, the loop is run from here.
---@async
---@param ticket integer
---@return any ...
function scheduler.wait(ticket)
  local session = current
  if not session and first > last and ticket < ONCE and not next(in_pump) then
    waiting[ticket] = PUMP
    main.pumping = ticket
    return has_come(ticket, next_event(true, false, ticket))
  end
  if session and session.stop then
    abandon(ticket)
    error(session.stop.text, 0)
  end
  if can_suspend() then
    ---@cast session msys.Session
    session.ticket = ticket
    waiting[ticket] = session
    return woken(co_yield(WAIT, ticket))
  end
  waiting[ticket] = PUMP
  return woken(deep_pump(ticket))
end

--- Lets others run on top of the stack.
local function yield_in_place()
  local session = current
  touch()
  session_in_hand, slot_in_hand = nil, nil
  if session and session.slot then jobs[session.slot] = session end
  run_ready()
  handle(next_event(false))
  if is_worker then enter(session and session.slot or -1) end
  left_over()
end

--- Raises in a session that is to end.
local function check_stop()
  if current and current.stop then error(current.stop.text, 0) end
end

--- Lets others run.
---@async
function scheduler.yield()
  if can_suspend() then
    co_yield(YIELD)
  else
    yield_in_place()
  end
  -- A call, so that the slot of the last one keeps a function: until 2023, LuaJIT looks there when memory runs out in
  -- compiled code.
  return check_stop()
end

scheduler.now = native.clock

--- Waits for a time.
---@async
---@param seconds number
function scheduler.sleep(seconds)
  local ticket = scheduler.new_ticket()
  native.timer(seconds, ticket)
  timed[ticket] = true
  scheduler.wait(ticket)
  timed[ticket] = nil
end

--- Handles an event, if it is one.
local function handle_one(kind, ...)
  return kind ~= NOTHING and handle(kind, ...)
end

--- Takes over a session that was run by `native.turn`, where that could not end it.
local function take_over(session, kind, ticket, slot, ...)
  session_in_hand = session
  session.slot, session.completes = slot, ticket
  if slot then jobs[slot] = session end
  if kind == YIELDED then return resumed(session, nil, 0, true, ...) end
  pumps = 0
  set_tls(nil)
  if kind == REFUSED then
    session.direct = nil
    slot_in_hand = slot
    ---@cast for_jobs msys.Jobs
    for_jobs.refuse(session, ...)
    session_in_hand, slot_in_hand = nil, nil
  else
    finish_direct(session, ...)
  end
  if kind == ENDED or kind == REFUSED then keep_direct(session) end
  check_interrupt()
end

--- Goes on with a session that `native.turn` has resumed.
local function go_on(session, ...)
  session_in_hand = session
  return resumed(session, nil, 0, ...)
end

local function handled(kind, ...)
  return handle(kind, ...), kind == NOTHING and 0 or 1
end

--- Handles what `native.turn` gave; false when a worker is to end; and how many events there were.
local function turned(kind, ...)
  local session = in_turn --[[@as msys.Session]]
  in_turn = nil
  if kind == YIELDED or kind == ENDED or kind == BROKEN or kind == REFUSED then
    take_over(session, kind, ...)
    return true, 1
  end
  direct = session
  if kind == RAN then
    return true, (...)
  elseif kind == RESUMED then
    go_on(...)
    return true, 1
  elseif kind == OPENED then
    slot_in_hand = ...
    ---@cast for_jobs msys.Jobs
    for_jobs.start_opened(session.tls --[[@as table]], ...)
    return true, 1
  end
  return handled(kind, ...)
end

--- Takes events and handles them, up to so many; false when a worker is to end; and how many there were. Outside of
--- sessions, where nothing but a session reads what is the session's, jobs and completions are run by Rust.
local function turn(block, most)
  if current or main.number or tls_home and not is_worker then return handled(next_event(block)) end
  if not direct then
    if spare_directs > 0 then
      direct = spare_direct[spare_directs] --[[@as msys.Session]]
      spare_direct[spare_directs] = nil
      spare_directs = spare_directs - 1
      direct.direct = true
    else
      direct = new_session(native.new_thread(), true)
    end
    native.renew()
  end
  in_turn, direct = direct, nil
  return turned(
    native_turn(
      block,
      most,
      in_turn,
      in_turn.co,
      waiting,
      tls_home and main_tls or nil,
      xpcall,
      failure,
      jobs,
      WAIT
    )
  )
end

--- Runs what is ready, without waiting.
---@return integer count  of sessions run and events handled
function scheduler.poll()
  native.acknowledge()
  touch()
  polling = true
  local count = run_ready()
  while count < POLL_MOST do
    local _, more = turn(false, POLL_MOST - count)
    if more == 0 then break end
    count = count + more
  end
  polling = false
  native.watch(first <= last or count >= POLL_MOST)
  return count
end

--- Runs the loop as long as `unfinished()`; false when the worker is to end before.
---@param unfinished fun(): boolean
---@return boolean
function scheduler.run_while(unfinished)
  while unfinished() do
    run_ready()
    if unfinished() and not turn(first > last, TURN) then return false end
  end
  return true
end

--- Runs until no session is left and no completion is awaited.
function scheduler.run()
  running = true
  scheduler.run_while(function()
    return sessions > 0 or count_completions(0) > 0
  end)
  running = false
  left_over()
end

local function serve_turn()
  run_ready()
  local goes_on = turn(first > last, TURN)
  is_short = false
  return goes_on
end

local function taken_on(ok, ...)
  collectgarbage "restart"
  if not ok then error((...), 0) end
  return (turned(...))
end

--- Begins where a session has run jobs without the scheduler: with what has become of it.
---@param session msys.Session
---@param ok boolean  the rest is what `native.turn` gave, or an error
function scheduler.take_on(session, ok, ...)
  -- Where the turn has raised, `current` is still the session that ran; in `guarded`, none does.
  in_turn, current = session, nil
  set_tls(nil)
  return guarded(taken_on, ok, ...)
end

--- A worker's life.
function scheduler.serve()
  while guarded(serve_turn) do
  end
end

--- How long an exit waits in silence, how long for jobs whose worker is stuck in a C call, and how often it looks; in
--- seconds.
local SILENCE, STUCK, LOOK = 2, 5, 0.05
--- How long an exit waits for the rest.
local exit_timeout = math.huge

--- Sets how long an exit waits for asynchronous jobs; gives what it was.
---@param seconds? number  nil: only asks
---@return number before
function scheduler.exit_timeout(seconds)
  local before = exit_timeout
  exit_timeout = seconds or before
  return before
end

local function say(text, ...)
  io.stderr:write(("msys: %s\n"):format(text:format(...)))
end

--- Says which jobs an exit does not wait for, if there are any.
local function say_dropped(why)
  local pending = native.pending()
  if pending == 0 then return end
  local where = native.in_progress()
  say("%s: %d asynchronous jobs are dropped%s", why, pending, where ~= "" and (" (%s)"):format(where) or "")
end

--- Finishes the asynchronous jobs that were accepted; for the end of a host. An interrupt has ended that wait already.
function scheduler.drain()
  -- Nothing else raises out of the loop.
  local left_loop = not current and (running or main.pumping)
  if native.is_interrupted() or left_loop then return say_dropped "interrupted" end
  ---@type string?
  local why
  ---@async
  local function watch()
    local began, is_silent = scheduler.now(), true
    while true do
      local waited = scheduler.now() - began
      local behind = native.behind_stuck()
      if waited >= exit_timeout then
        why = ("the exit has waited for %.14g s"):format(exit_timeout)
        return
      elseif behind > 0 and waited >= STUCK and native.pending() <= behind then
        why = "a C call does not return"
        return
      elseif is_silent and waited >= SILENCE then
        is_silent = false
        say("the exit waits for %d asynchronous jobs; Ctrl-C ends it", native.pending())
      end
      scheduler.sleep(math.max(0, math.min(LOOK, exit_timeout - waited)))
    end
  end
  if native.pending() > 0 then scheduler.start(watch) end
  scheduler.run_while(function()
    return native.pending() > 0 and not why
  end)
  -- The last job's report came before its count went.
  while handle_one(next_event(false)) do
  end
  if why then say_dropped(why) end
end

--- Sets what a VM does with failures that nobody waits for, and with jobs (workers only).
---@param on_report fun(err: any, info: table)
---@param on_jobs? msys.Jobs
function scheduler.setup(on_report, on_jobs)
  report, for_jobs = on_report, on_jobs
end

--- Coroutines of the user's that wait inside msys, and so are not suspended for anybody else.
local held = setmetatable({}, { __mode = "k" })

---@type fun(co: thread, ...: any): any...
local resumed_inside

--- For a worker's `coroutine.resume`: passes a session's wait through a coroutine that the user made.
local function pass(co, ok, tag, ...)
  if tag ~= WAIT and tag ~= YIELD then return ok, tag, ... end
  local ticket = ...
  held[co] = true
  ---@diagnostic disable-next-line: await-in-sync -- as the `coroutine.resume` that it stands for
  if isyieldable() then return resumed_inside(co, co_yield(tag, ticket)) end
  -- A C function stands between the coroutine and its session: the wait goes on here.
  if tag == YIELD then return resumed_inside(co, yield_in_place()) end
  waiting[ticket] = PUMP
  return resumed_inside(co, deep_pump(ticket))
end

function resumed_inside(co, ...)
  held[co] = nil
  return pass(co, co_resume(co, ...))
end

scheduler.pass = pass

--- Whether a coroutine of the user's waits inside msys.
---@param co thread
---@return boolean
function scheduler.is_held(co)
  return held[co] ~= nil
end

return scheduler
