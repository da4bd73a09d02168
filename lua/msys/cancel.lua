--- Tokens with which jobs are cancelled: `msys.canceller`, and `msys.cancelled` for a job that looks for itself.

local handles = require "msys.handles"
local native = require "msys.native"
local scheduler = require "msys.scheduler"

local getmetatable, type = getmetatable, type
local current, is_stopped = scheduler.current, native.is_stopped

local cancel = {}

--- A cancel token. It serves any number of jobs, of this VM and of others.
---@class msys.Canceller
local Canceller = {}

local function check(self, method)
  if getmetatable(self) ~= "msys.canceller" then
    error(("msys.canceller:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

--- Stops all jobs that were given this token, and those that will be.
---@param reason? string
---@return boolean first  false if it had been cancelled before
function Canceller:cancel(reason)
  check(self, "cancel")
  if reason ~= nil and type(reason) ~= "string" then
    error("msys.canceller:cancel: reason must be a string, got " .. type(reason), 2)
  end
  return native.cancel(self, reason or "")
end

--- Whether it was cancelled.
---@return boolean cancelled
---@return string? reason  "" where none was given
function Canceller:cancelled()
  check(self, "cancelled")
  return native.cancelled(self)
end

handles.define("msys.canceller", Canceller, function(token)
  return ("msys.canceller: %s%s"):format(
    handles.address(token),
    native.cancelled(token) and " (cancelled)" or ""
  )
end)

--- A new token.
---@return msys.Canceller
function cancel.canceller()
  return native.canceller()
end

--- Whether the running job is to end: it was cancelled, or its time is over. Jobs need not ask, they are stopped; one
--- of a pool with `interruptible = false` had better.
---@return boolean cancelled
---@return string? kind  "timeout", "cancelled" or "shutdown"
---@return string? text
function cancel.cancelled()
  local session = current()
  if not session or not session.slot then return false end
  return is_stopped(session.slot)
end

return cancel
