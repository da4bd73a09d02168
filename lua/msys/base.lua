--- What the scheduler and `native.turn` have in common. A worker runs jobs with no more than this, until one needs the
--- rest (`msys.boot`).

local getmetatable, setmetatable, type = getmetatable, setmetatable, type
local traceback = debug.traceback

-- As the scheduler, which has the rest.
jit.off(true, true)

---@class msys.Session
---@field co thread
---@field tls? table  made when it is asked for
---@field slot? integer  the job that it is, on a worker
---@field args? table    what it starts with, until it does
---@field counted? boolean  msys.run waits for it
---@field number? integer  its number in the process, once it has to do with locks
---@field name? string  what messages call it, if not by its job
---@field ticket? integer  what it waits for, or last did
---@field pumping? integer  the ticket of the pump that it is in
---@field stop? { text: string, kind: string }  why its waits end at once
---@field completion? function  of the job that it is
---@field direct? boolean  its coroutine runs a job or a completion itself, and is not used again
---@field completes? integer  the ticket of the completion that it is

---@class msys.base
---@field msys? table  what stands for `msys` and `thread` in a worker until they are loaded
---@field thread? table
---@field fill? fun(name: string, module: table): table  puts a module's fields into such a table, and gives it
---@field environment? table  of our modules in a worker: to others it is the globals
local base = {
  --- Who waits, by ticket.
  ---@type table<integer, any>
  waiting = {},
  --- The sessions of a worker's jobs, by slot.
  ---@type table<integer, msys.Session?>
  jobs = {},
  --- `_TLS` outside of sessions, and `_OSTLS`.
  main_tls = {},
  ostls = {},
  --- What a session yields that waits.
  WAIT = {},
  --- Lua's own; jobs have others.
  co_resume = coroutine.resume,
  co_status = coroutine.status,
  --- Plain `pairs` goes by metatables: the extensions of Lua 5.2.
  has_pairs = not pcall(pairs, setmetatable({}, { __pairs = error })),
}

--- A failure inside a session, with the traceback of where it was raised.
local Failure = {}
Failure.__index = Failure
base.Failure = Failure

--- The message handler of every session.
function base.failure(err)
  -- One that an isolated execution has ended with.
  if getmetatable(err) == Failure then return err end
  local text = type(err) == "string" and err or ""
  return setmetatable({ err = err, traceback = traceback(text, 2) }, Failure)
end

--- A session with places for all fields, for which there may be no memory later.
---@param co thread
---@param is_direct? boolean
---@return msys.Session
function base.new_session(co, is_direct)
  ---@type any
  local session = {
    co = co,
    direct = 0,
    slot = 0,
    tls = 0,
    stop = 0,
    number = 0,
    completion = 0,
    completes = 0,
    ticket = 0,
  }
  session.slot, session.tls, session.stop, session.number = nil, nil, nil, nil
  session.completion, session.completes, session.ticket = nil, nil, nil
  session.direct = is_direct
  return session
end

---@type msys.Session?
local current = nil -- luacheck: ignore 221 231 (set from outside)

--- The running session, while there is no scheduler to ask: `native.turn` sets it.
---@return msys.Session?
function base.current()
  return current
end

return base
