--- What all handles have in common: the functions behind them that compiled code calls, their metatables, and waits.
---
--- The objects are Rust's (`src/handles`), a handle is a userdata, one for each object in each VM
--- (`src/host/objects.rs`).
--- `getmetatable` of one gives its type's name, which the methods check.

local ffi = require "ffi"
local native = require "msys.native"
local names = require "msys.names"
local refusal = require "msys.refusal"
local scheduler = require "msys.scheduler"

local handles = {}

-- As in src/host/objects.rs. A name of its own, since scripts declare types too.
ffi.cdef [[
  typedef struct {
    int (*lock)(const void *vm, const void *mutex, double session);
    int (*unlock)(const void *vm, const void *mutex, double session);
    double (*add)(const void *counter, double value);
    double (*get)(const void *counter);
    double (*set)(const void *counter, double value);
    int (*cas)(const void *counter, double expected, double new_value);
    int (*send)(const void *channel, double value);
    int (*receive)(const void *channel, double *value);
  } msys_native_api;
]]

---@class msys.native.Api
---@field lock fun(vm: any, mutex: any, session: number): integer
---@field unlock fun(vm: any, mutex: any, session: number): integer
---@field add fun(counter: any, value: number): number
---@field get fun(counter: any): number
---@field set fun(counter: any, value: number): number
---@field cas fun(counter: any, expected: number, new: number): integer
---@field send fun(channel: any, value: number): integer
---@field receive fun(channel: any, value: any): integer

--- The functions: none raises, and none calls Lua, so compiled code calls them as C does.
handles.api = ffi.cast("const msys_native_api *", native.api) --[[@as msys.native.Api]]
--- What stands for this VM there.
handles.vm = ffi.cast("const void *", native.block)

--- Fills the metatable of a type.
---@param name string
---@param methods table
---@param describe fun(handle: any): string  for `tostring`
---@return table metatable
function handles.define(name, methods, describe)
  local meta = native.metatables[name]
  meta.__index = methods
  meta.__tostring = describe
  for method, fn in pairs(methods) do
    -- So that the methods have names, by which they cross as the functions of any module.
    handles[name .. "." .. method] = fn
  end
  return meta
end

--- The address of an object, as messages name it.
---@param handle any
---@return string
function handles.address(handle)
  ---@type any
  local object = ffi.cast("uintptr_t *", handle)
  return ("0x%x"):format(tonumber(object[0]) --[[@as integer]])
end

--- What is wrong with a value that cannot be kept outside of its VM.
---@param roots { name: string, value: any }[]  what was given, as the message calls it
---@return string
function handles.unsendable(roots, reason, refused, why)
  if reason == "refused" then return "cannot send " .. refusal.explain(roots, refused, why) end
  return tostring(refused)
end

--- Calls `fn(handle, scanned, ...)` until it needs no scan of the modules; gives what it gives.
---@param fn fun(handle: any, scanned: boolean, ...): any...
function handles.scanning(fn, handle, ...)
  local done, reason, refused, why = fn(handle, false, ...)
  if done == nil and reason == "scan" then
    names.scan()
    return fn(handle, true, ...)
  end
  return done, reason, refused, why
end

--- A limit of time, checked; raises at the caller's caller's line.
---@param timeout any
---@param method string
---@return number?
function handles.check_timeout(timeout, method)
  if timeout == nil then return nil end
  if type(timeout) ~= "number" then
    error(("%s: timeout must be a number, got %s"):format(method, type(timeout)), 3)
  elseif not (timeout >= 0) then -- luacheck: ignore 581 (NaN is refused too)
    error(("%s: timeout must not be negative, got %s"):format(method, timeout), 3)
  end
  return timeout
end

--- Waits under `ticket` until `settle(expired)` says what has become of it.
---
--- One place for the ends of such waits: the knock of whoever grants it, and the limit of time.
---@async
---@generic T
---@param ticket integer  of `scheduler.wait_ticket`
---@param timeout? number
---@param settle fun(expired: boolean): T?
---@return T
function handles.await(ticket, timeout, settle)
  if timeout then native.timer(timeout, ticket) end
  while true do
    local expired = scheduler.wait(ticket) == true
    local settled = settle(expired)
    if settled ~= nil then
      if timeout and not expired then native.end_timer(ticket) end
      return settled
    end
  end
end

--- Waits once for what was asked for under `ticket`; gives whether the time was over first, and how the wait for a
--- channel ended.
---@async
---@param ticket integer
---@param timeout? number
---@return boolean expired
---@return integer left  as of `native.leave`
function handles.await_once(ticket, timeout)
  if timeout then native.timer(timeout, ticket) end
  local expired = scheduler.wait(ticket) == true
  if timeout and not expired then native.end_timer(ticket) end
  return expired, native.leave(ticket, false)
end

return handles
