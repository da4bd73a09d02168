--- `thread.mutex`, `thread.rwlock`, `thread.condition`, and locks by name. Owners are sessions; whoever waits is
--- suspended.
---
--- A mutex that nobody waits for is locked and unlocked by one exchange (`handles.api`), which compiled code calls. The
--- rest is
--- `src/host/locks.rs`.

local handles = require "msys.handles"
local native = require "msys.native"
local scheduler = require "msys.scheduler"

local getmetatable = getmetatable
local api, vm = handles.api, handles.vm
local owner = scheduler.owner

local locks = {}

-- What becomes of an attempt or a wait, as in src/host/locks.rs.
local NO, YES, RELOCKED, EXPIRED = 0, 1, 2, 3

--- Where the code is that called a method, as messages name it. The levels between are this file's.
local function place()
  for level = 3, 20 do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    if
      info.short_src ~= "[msys.locks]"
      and not info.short_src:find "msys/locks%.lua$"
      and info.currentline > 0
    then
      return ("%s:%d"):format(info.short_src, info.currentline)
    end
  end
  return "?"
end

local function described(lock)
  local name, held = native.describe_lock(lock)
  return ("%s (%s)"):format(name, held)
end

-- What follows is called in the place of the methods, by tail calls: so level 2 is the caller's.

--- Waits for a lock that was not to be had; gives what lock gives. Raises at `level`.
---@async
local function wait_for(lock, session, write, timeout, method, level)
  local ticket = scheduler.wait_ticket()
  local slot, below = scheduler.slot(), scheduler.below()
  local got, text = native.await_lock(lock, session, write, ticket, timeout ~= nil, place(), slot, below)
  if got == nil then
    error(("%s: %s"):format(method, text), level)
  elseif got == YES then
    return true
  end
  local settled = handles.await(ticket, timeout, function(expired)
    local outcome = native.settle_lock(lock, session, ticket, expired)
    return outcome ~= NO and outcome or nil
  end)
  if settled == EXPIRED then return false, "timeout" end
  return true
end

--- Locks where the fast way has failed.
---@async
local function lock_slowly(lock, write, timeout, method)
  local session = scheduler.session_number()
  local got = native.try_lock(lock, session, write)
  if got == YES then
    return true
  elseif got == RELOCKED then
    error(("%s: this session has it already: %s"):format(method, described(lock)), 2)
  elseif timeout == 0 then
    return false, "timeout"
  end
  return wait_for(lock, session, write, timeout, method, 2)
end

local function try(lock, write, method)
  local got = native.try_lock(lock, scheduler.session_number(), write)
  if got == RELOCKED then
    error(("%s: this session has it already: %s"):format(method, described(lock)), 2)
  end
  return got == YES
end

local function unlock_slowly(lock, method)
  local unlocked, text = native.unlock(lock, scheduler.session_number())
  if not unlocked then error(("%s: this session does not have it: %s"):format(method, text), 2) end
  return true
end

local function wrong_self(self, name, method)
  error(("%s:%s: called on %s (call it with a colon)"):format(name, method, type(self)), 3)
end

---@class thread.Mutex
local Mutex = {}

--- Locks it; waits as long as another session has it.
---@async
---@param timeout? number  seconds, at most
---@return boolean locked
---@return string? why  "timeout"
function Mutex:lock(timeout)
  if getmetatable(self) ~= "thread.mutex" then wrong_self(self, "thread.mutex", "lock") end
  if timeout == nil and api.lock(vm, self, owner.session) == 1 then return true end
  return lock_slowly(self, true, handles.check_timeout(timeout, "thread.mutex:lock"), "thread.mutex:lock")
end

--- Locks it, if nobody has it.
---@return boolean locked
function Mutex:trylock()
  if getmetatable(self) ~= "thread.mutex" then wrong_self(self, "thread.mutex", "trylock") end
  if api.lock(vm, self, owner.session) == 1 then return true end
  return try(self, true, "thread.mutex:trylock")
end

--- Unlocks it.
---@return boolean
function Mutex:unlock()
  if getmetatable(self) ~= "thread.mutex" then wrong_self(self, "thread.mutex", "unlock") end
  if api.unlock(vm, self, owner.session) == 1 then return true end
  return unlock_slowly(self, "thread.mutex:unlock")
end

---@class thread.RwLock
local RwLock = {}

--- Locks it for reading, beside other readers.
---@async
---@param timeout? number
---@return boolean locked
---@return string? why
function RwLock:rdlock(timeout)
  if getmetatable(self) ~= "thread.rwlock" then wrong_self(self, "thread.rwlock", "rdlock") end
  return lock_slowly(
    self,
    false,
    handles.check_timeout(timeout, "thread.rwlock:rdlock"),
    "thread.rwlock:rdlock"
  )
end

--- Locks it for writing, alone.
---@async
---@param timeout? number
---@return boolean locked
---@return string? why
function RwLock:wrlock(timeout)
  if getmetatable(self) ~= "thread.rwlock" then wrong_self(self, "thread.rwlock", "wrlock") end
  return lock_slowly(
    self,
    true,
    handles.check_timeout(timeout, "thread.rwlock:wrlock"),
    "thread.rwlock:wrlock"
  )
end

---@return boolean locked
function RwLock:tryrdlock()
  if getmetatable(self) ~= "thread.rwlock" then wrong_self(self, "thread.rwlock", "tryrdlock") end
  return try(self, false, "thread.rwlock:tryrdlock")
end

---@return boolean locked
function RwLock:trywrlock()
  if getmetatable(self) ~= "thread.rwlock" then wrong_self(self, "thread.rwlock", "trywrlock") end
  return try(self, true, "thread.rwlock:trywrlock")
end

--- Unlocks it, however it was locked.
---@return boolean
function RwLock:unlock()
  if getmetatable(self) ~= "thread.rwlock" then wrong_self(self, "thread.rwlock", "unlock") end
  return unlock_slowly(self, "thread.rwlock:unlock")
end

---@class thread.Condition
local Condition = {}

--- Unlocks the mutex, waits for a signal, and has the mutex again; also when the time was over.
---@async
---@param timeout? number
---@return boolean signalled
---@return string? why  "timeout"
function Condition:wait(timeout)
  if getmetatable(self) ~= "thread.condition" then wrong_self(self, "thread.condition", "wait") end
  timeout = handles.check_timeout(timeout, "thread.condition:wait")
  local session, ticket = scheduler.session_number(), scheduler.wait_ticket()
  local waits, text =
    native.await_condition(self, session, ticket, place(), scheduler.slot(), scheduler.below())
  if not waits then error("thread.condition:wait: this session does not have the mutex: " .. text, 2) end
  local left = {}
  local settled = handles.await(ticket, timeout, function(expired)
    local outcome, depth, signalled = native.settle_condition(self, session, ticket, expired)
    left.depth, left.signalled = depth, signalled
    return outcome ~= NO and outcome or nil
  end)
  if settled ~= EXPIRED then return true end
  -- It does not have the mutex: the time is over, or waiting for it would never end, which this raises.
  local mutex = native.condition_mutex(self)
  if native.try_lock(mutex, session, true) ~= YES then
    wait_for(mutex, session, true, nil, "thread.condition:wait", 3)
  end
  if left.depth > 0 then native.relock(mutex, session, left.depth) end
  if left.signalled then return true end
  return false, "timeout"
end

--- Lets the session go on that has waited longest.
---@return boolean  whether any did
function Condition:signal()
  if getmetatable(self) ~= "thread.condition" then wrong_self(self, "thread.condition", "signal") end
  return native.signal(self, false) > 0
end

--- Lets all go on that wait, one after the other.
---@return integer count
function Condition:broadcast()
  if getmetatable(self) ~= "thread.condition" then wrong_self(self, "thread.condition", "broadcast") end
  return native.signal(self, true)
end

handles.define("thread.mutex", Mutex, described)
handles.define("thread.rwlock", RwLock, described)
handles.define("thread.condition", Condition, function(condition)
  return "thread.condition: " .. handles.address(condition)
end)

--- `msys.lock(name)`: the process's mutex of that name. It is kept here as long as this VM's sessions may have it.
---@type table<string, thread.Mutex>
local named = setmetatable({}, { __mode = "v" })

local function by_name(name, method)
  if type(name) ~= "string" then
    error(("%s: name must be a string, got %s"):format(method, type(name)), 3)
  end
  local mutex = named[name]
  if not mutex then
    mutex = native.named_mutex(name)
    named[name] = mutex
  end
  return mutex
end

--- Locks by name, in all VMs of the process.
---@async
---@param name string
---@param timeout? number
---@return boolean locked
---@return string? why
function locks.lock(name, timeout)
  local mutex = by_name(name, "msys.lock")
  if timeout == nil and api.lock(vm, mutex, owner.session) == 1 then return true end
  return lock_slowly(mutex, true, handles.check_timeout(timeout, "msys.lock"), "msys.lock")
end

---@param name string
---@return boolean
function locks.unlock(name)
  local mutex = by_name(name, "msys.unlock")
  if api.unlock(vm, mutex, owner.session) == 1 then return true end
  return unlock_slowly(mutex, "msys.unlock")
end

return locks
