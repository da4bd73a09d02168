--- What sessions of all VMs share: locks, channels, counters, tables, memory.
---
---     local thread = require "thread"
---     local lock = thread.mutex()

local base = require "msys.base"
local channels = require "msys.channel"
require "msys.locks"
local native = require "msys.native"
local shared = require "msys.shared"

---@class thread
local thread = {
  --- A session that has it may not lock it again; nor may it with `MUTEX_ERRORCHECK`, which is the same here.
  MUTEX_NORMAL = 0,
  --- It may, and unlocks it as often.
  MUTEX_RECURSIVE = 1,
  MUTEX_ERRORCHECK = 2,
  channel = channels.new,
  counter = shared.counter,
  shared = shared.shared,
  update = shared.update,
  buffer = shared.buffer,
  pairs = shared.pairs,
  ipairs = shared.ipairs,
}

--- A mutex, whose owner is a session.
---@param kind? 0|1|2  `thread.MUTEX_NORMAL` by default
---@return thread.Mutex
function thread.mutex(kind)
  if kind == nil then kind = thread.MUTEX_NORMAL end
  if kind ~= 0 and kind ~= 1 and kind ~= 2 then
    local given = type(kind) == "number" and tostring(kind) or type(kind)
    error(
      "thread.mutex: type must be thread.MUTEX_NORMAL, MUTEX_RECURSIVE or MUTEX_ERRORCHECK, got " .. given,
      2
    )
  end
  return native.mutex(kind)
end

--- A lock for many readers or one writer.
---@return thread.RwLock
function thread.rwlock()
  return native.rwlock()
end

--- A condition for sessions that have `mutex`.
---@param mutex thread.Mutex
---@return thread.Condition
function thread.condition(mutex)
  if getmetatable(mutex) ~= "thread.mutex" then
    error("thread.condition: needs a thread.mutex, got " .. type(mutex), 2)
  end
  return native.condition(mutex)
end

return setmetatable(base.fill and base.fill("thread", thread) or thread, nil)
