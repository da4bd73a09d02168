--- `thread.channel`: a queue of values between sessions of all VMs.

local ffi = require "ffi"
local handles = require "msys.handles"
local native = require "msys.native"
local scheduler = require "msys.scheduler"

local getmetatable, type = getmetatable, type
local api = handles.api

-- A number received by compiled code. Nothing is done between that and taking it out.
---@type any
local number = ffi.new "double[1]"

-- What becomes of sending and receiving, as in src/host/shared.rs.
local DONE, CLOSED = 1, -1

local channels = {}

---@class thread.Channel
local Channel = {}

local function check(self, method)
  if getmetatable(self) ~= "thread.channel" then
    error(("thread.channel:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

--- Sends, or with a ticket begins to wait for that; raises at the caller's caller's line.
local function send_now(channel, ticket, value, method)
  local sent, reason, refused, why = handles.scanning(native.channel_send, channel, ticket, value)
  if sent == nil then
    local text = handles.unsendable({ { name = "the value", value = value } }, reason, refused, why)
    error(("%s: %s"):format(method, text), 3)
  elseif sent == CLOSED then
    error(("%s: %s"):format(method, tostring(channel)), 3)
  end
  return sent == DONE
end

--- Sends a value; waits as long as there is no room. Raises if the channel is closed, or the value cannot be sent.
---@async
---@param value any
---@param timeout? number  seconds, at most
---@return boolean sent
---@return string? why  "timeout"
function Channel:send(value, timeout)
  check(self, "send")
  local deadline
  if timeout ~= nil then
    handles.check_timeout(timeout, "thread.channel:send")
    if timeout == 0 then
      if send_now(self, 0, value, "thread.channel:send") then return true end
      return false, "timeout"
    end
    deadline = scheduler.now() + timeout
  elseif type(value) == "number" and api.send(self, value) == 1 then
    return true
  end
  while true do
    local ticket = scheduler.wait_ticket()
    if send_now(self, ticket, value, "thread.channel:send") then return true end
    local expired, left = handles.await_once(ticket, deadline and math.max(0, deadline - scheduler.now()))
    if left == DONE then
      return true
    elseif left == CLOSED then
      error("thread.channel:send: " .. tostring(self), 2)
    elseif expired then
      return false, "timeout"
    end
  end
end

--- Sends a value, if there is room.
---@param value any
---@return boolean sent
function Channel:trysend(value)
  check(self, "trysend")
  if type(value) == "number" and api.send(self, value) == 1 then return true end
  local sent = send_now(self, 0, value, "thread.channel:trysend")
  return sent
end

--- Receives a value; waits as long as there is none.
---@async
---@param timeout? number  seconds, at most
---@return boolean received
---@return any value  or "timeout" or "closed"
function Channel:receive(timeout)
  check(self, "receive")
  if timeout ~= nil then handles.check_timeout(timeout, "thread.channel:receive") end
  if api.receive(self, number) == 1 then return true, number[0] end
  local deadline = timeout and scheduler.now() + timeout
  local more = timeout ~= 0
  while true do
    local received, value = native.channel_receive(self)
    if received == DONE then
      return true, value
    elseif received == CLOSED then
      return false, "closed"
    elseif not more then
      return false, "timeout"
    end
    local ticket = scheduler.wait_ticket()
    local left = deadline and math.max(0, deadline - scheduler.now())
    -- When the time is over, it is worth one more try.
    more = not (native.channel_wait(self, ticket) and handles.await_once(ticket, left))
  end
end

--- Receives a value, if there is one.
---@return boolean received
---@return any value  or "empty" or "closed"
function Channel:tryreceive()
  check(self, "tryreceive")
  if api.receive(self, number) == 1 then return true, number[0] end
  local received, value = native.channel_receive(self)
  if received == DONE then return true, value end
  return false, received == CLOSED and "closed" or "empty"
end

--- Closes it: nothing more can be sent, what is in it can be received. Twice is fine.
---@return boolean  whether it was open
function Channel:close()
  check(self, "close")
  return native.channel_close(self)
end

handles.define("thread.channel", Channel, function(channel)
  local count, capacity, closed = native.channel_len(channel)
  local room = capacity and ("%d of %d items"):format(count, capacity) or ("%d items"):format(count)
  return ("thread.channel: %s (%s%s)"):format(handles.address(channel), room, closed and ", closed" or "")
end).__len = function(
  channel
)
  return (native.channel_len(channel))
end

--- A new channel.
---@param capacity? integer  how many values it holds: no bound by default; with 0, a sender waits for a receiver
---@return thread.Channel
function channels.new(capacity)
  if
    capacity ~= nil
    and (type(capacity) ~= "number" or capacity ~= capacity or capacity < 0 or capacity % 1 ~= 0)
  then
    local given = type(capacity) == "number" and tostring(capacity) or type(capacity)
    error("thread.channel: capacity must be a whole number from 0, got " .. given, 2)
  end
  return native.channel(capacity)
end

return channels
