--- `thread.shared`, `thread.update`, `thread.counter`, `thread.buffer`: data that all VMs see.

local cdata = require "msys.cdata"
local ffi = require "ffi"
local handles = require "msys.handles"
local native = require "msys.native"
local names = require "msys.names"

local getmetatable, ipairs, pairs, type = getmetatable, ipairs, pairs, type
local api = handles.api

local shared = {}

---@class thread.Counter
local Counter = {}

local function not_whole(method, value)
  local given = type(value) == "number" and tostring(value) or type(value)
  error(("thread.counter:%s: needs a whole number, got %s"):format(method, given), 3)
end

local function check_counter(self, method)
  if getmetatable(self) ~= "thread.counter" then
    error(("thread.counter:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

--- Adds, and gives the sum.
---@param value? number  a whole number; 1 by default
---@return number
function Counter:add(value)
  check_counter(self, "add")
  if value == nil then value = 1 end
  if type(value) ~= "number" then not_whole("add", value) end
  local sum = api.add(self, value)
  if sum ~= sum then not_whole("add", value) end
  return sum
end

---@return number
function Counter:get()
  check_counter(self, "get")
  return api.get(self)
end

--- Sets it, and gives what it was.
---@param value number  a whole number
---@return number
function Counter:set(value)
  check_counter(self, "set")
  if type(value) ~= "number" then not_whole("set", value) end
  local before = api.set(self, value)
  if before ~= before then not_whole("set", value) end
  return before
end

--- Sets it to `new` if it is `expected`.
---@param expected number
---@param new number
---@return boolean  whether it was
function Counter:cas(expected, new)
  check_counter(self, "cas")
  if type(expected) ~= "number" then not_whole("cas", expected) end
  if type(new) ~= "number" then not_whole("cas", new) end
  local set = api.cas(self, expected, new)
  if set < 0 then not_whole("cas", expected % 1 ~= 0 and expected or new) end
  return set == 1
end

handles.define("thread.counter", Counter, function(counter)
  return ("thread.counter: %s (%.17g)"):format(handles.address(counter), api.get(counter))
end)

--- A number that all VMs count with.
---@param value? number  a whole number; 0 by default
---@return thread.Counter
function shared.counter(value)
  if value == nil then value = 0 end
  local counter = type(value) == "number" and native.counter(value)
  if not counter then
    local given = type(value) == "number" and tostring(value) or type(value)
    error("thread.counter: the value must be a whole number, got " .. given, 2)
  end
  return counter --[[@as thread.Counter]]
end

--- Whether a value may be a key of a shared table.
function shared.is_key(key)
  local kind = type(key)
  return kind == "string" or kind == "boolean" or kind == "number" and key == key
end

--- A plain table as a shared one; `made` has those that have been, so that one table becomes one. Other values as they are.
local function sharing(value, made)
  if type(value) ~= "table" or getmetatable(value) ~= nil or names.has(value) then return value end
  if made[value] then return made[value] end
  local new = native.shared()
  made[value] = new
  for key, field in next, value do
    if not shared.is_key(key) then
      return nil, ("cannot share a table with a key of type %s: keys are strings, numbers and booleans"):format(type(key))
    end
    local other, text = sharing(field, made)
    if text then return nil, text end
    local set, reason, refused, why = handles.scanning(native.shared_set, new, key, other)
    if not set then return nil, handles.unsendable(("the value of key %s"):format(tostring(key)), field, reason, refused, why) end
  end
  return new
end

-- It may run at exit: see msys.names.
jit.off(sharing)

--- Sets a value of a shared table, if it can be: true, and its number if it is one that each VM has for itself; or nil, and why not.
function shared.try_set(tbl, key, value)
  if type(value) == "table" then
    local text
    value, text = sharing(value, {})
    if text then return nil, text end
  end
  local done, reason, refused, why = handles.scanning(native.shared_set, tbl, key, value)
  if done then return true, reason end
  return nil, handles.unsendable(("the value of key %s"):format(tostring(key)), value, reason, refused, why)
end

--- Sets a value of a shared table; raises `method: why` at `level`.
function shared.set(tbl, key, value, method, level)
  if not shared.is_key(key) then
    error(("%s: keys are strings, numbers and booleans, got %s"):format(method, type(key)), level + 1)
  end
  local done, text = shared.try_set(tbl, key, value)
  if not done then error(("%s: %s"):format(method, text), level + 1) end
end

--- Sets a value, if it has this version still: whether it had. Raises `method: why` at `level`.
function shared.swap(tbl, key, value, version, method, level)
  local given, text = value, nil
  if type(value) == "table" then value, text = sharing(value, {}) end
  if text then error(("%s: %s"):format(method, text), level + 1) end
  local done, reason, refused, why = handles.scanning(native.shared_swap, tbl, key, value, version)
  if done == nil then
    text = handles.unsendable("the new value", given, reason, refused, why)
    error(("%s: %s"):format(method, text), level + 1)
  end
  return done
end

--- Adds a value at the end of the list in a shared table.
function shared.append(tbl, value)
  while true do
    local place = native.shared_len(tbl) + 1
    local version, before = native.shared_version(tbl, place)
    if before == nil and shared.swap(tbl, place, value, version, "table.insert", 3) then return end
  end
end

local meta = handles.define("thread.shared", {}, function(tbl)
  return "thread.shared: " .. handles.address(tbl)
end)
meta.__index = native.shared_get
meta.__len = native.shared_len
meta.__newindex = function(tbl, key, value)
  shared.set(tbl, key, value, "thread.shared", 2)
end

---@param tbl any
---@return boolean
function shared.is_shared(tbl)
  return getmetatable(tbl) == "thread.shared"
end

--- Goes through a shared table: `for key, value in thread.pairs(t)`; through any other as `pairs` does. The keys are those that there
--- are when it begins; one that is gone when its turn comes is passed over.
---@param tbl any
function shared.pairs(tbl)
  if not shared.is_shared(tbl) then return pairs(tbl) end
  local keys, place = native.shared_keys(tbl), 0
  return function()
    while true do
      place = place + 1
      local key = keys[place]
      if key == nil then return nil end
      local value = tbl[key]
      if value ~= nil then return key, value end
    end
  end
end

local function inext(tbl, place)
  place = place + 1
  local value = tbl[place]
  if value ~= nil then return place, value end
end

--- `ipairs` for shared tables, and any others.
---@param tbl any
function shared.ipairs(tbl)
  if not shared.is_shared(tbl) then return ipairs(tbl) end
  return inext, tbl, 0
end

meta.__pairs, meta.__ipairs = shared.pairs, shared.ipairs

--- Makes the plain `pairs` and `ipairs` go through shared tables, where globals are ours to change. A LuaJIT with the extensions of Lua
--- 5.2 does so by itself.
function shared.install_iteration()
  if not pcall(pairs, setmetatable({}, { __pairs = error })) then return end
  local globals = package.loaded._G --[[@as table]]
  for _, name in ipairs { "pairs", "ipairs" } do
    globals[name] = shared[name]
    table.insert(names.also, { shared[name], "_G", name })
  end
end

--- A table that all VMs see. Plain tables in it become shared ones; other values are copied each time they are read.
---@param tbl? table  what it begins with
---@return table
function shared.shared(tbl)
  if tbl == nil then return native.shared() end
  if type(tbl) ~= "table" then error("thread.shared: needs a table, got " .. type(tbl), 2) end
  if getmetatable(tbl) ~= nil then error("thread.shared: a table with a metatable cannot be shared", 2) end
  local new, text = sharing(tbl, {})
  if not new then error("thread.shared: " .. text, 2) end
  return new
end

--- Changes one value of a shared table as one step: `fn` is given what it is, and gives what it is to be. If somebody else was faster,
--- `fn` is called again with what it is then, so it should do nothing else.
---@param tbl table
---@param key any
---@param fn fun(value: any): any
---@return any  what it is now
function shared.update(tbl, key, fn)
  if not shared.is_shared(tbl) then error("thread.update: needs a shared table, got " .. type(tbl), 2) end
  if not shared.is_key(key) then
    error(("thread.update: keys are strings, numbers and booleans, got %s"):format(type(key)), 2)
  end
  if type(fn) ~= "function" then error("thread.update: fn must be a function, got " .. type(fn), 2) end
  while true do
    local version, before = native.shared_version(tbl, key)
    local value = fn(before)
    if shared.swap(tbl, key, value, version, "thread.update", 2) then return value end
  end
end

--- Buffers by the cdata that Lua sees, and the other way round.
---@type table<any, any>, table<any, any>
local handle_of = setmetatable({}, { __mode = "k" })
local view_of = setmetatable({}, { __mode = "v" })

cdata.handles = handle_of

local function view(handle)
  local key = handles.address(handle)
  local seen = view_of[key]
  if seen and handle_of[seen] == handle then return seen end
  local memory, ctype = native.buffer_memory(handle)
  seen = ffi.cast(ctype .. " *", memory)
  handle_of[seen], view_of[key] = handle, seen
  return seen
end

native.set_buffer_view(view)

--- Memory that all VMs see, as a pointer to its first item: never copied, and guarded by nothing but what the script does. Places
--- are from 0, and not checked, as with any FFI pointer. It is freed when no VM has it, so keep what this gives.
---@param ctype string  numbers, or a struct that each VM declares; without pointers in it
---@param count integer
---@return ffi.cdata*
function shared.buffer(ctype, count)
  if type(ctype) ~= "string" then error("thread.buffer: ctype must be a string, got " .. type(ctype), 2) end
  if type(count) ~= "number" or not (count >= 1) or count % 1 ~= 0 then
    local given = type(count) == "number" and tostring(count) or type(count)
    error("thread.buffer: n must be a whole number from 1, got " .. given, 2)
  end
  local ok, size = pcall(ffi.sizeof, ctype)
  if not ok then error("thread.buffer: " .. tostring(size), 2) end
  local buffer = size and size > 0 and native.buffer(ctype, count, size)
  if not buffer then
    error(("thread.buffer: no memory for %d items of type '%s'"):format(count, ctype), 2)
  end
  return buffer
end

return shared
