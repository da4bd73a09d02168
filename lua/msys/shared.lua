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

--- Whether a counter can have it.
local function is_whole(value)
  return value % 1 == 0 and value >= -2 ^ 53 and value <= 2 ^ 53
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
  if set < 0 then not_whole("cas", is_whole(expected) and new or expected) end
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

--- Whether a value becomes a shared table where it is put into one.
local function is_plain(value)
  return type(value) == "table" and getmetatable(value) == nil and not names.has(value)
end

--- A plain table as a shared one, with all that it has. One table in it becomes one; nothing recurses, however deep it
--- is.
---@param root table
---@param roots { name: string, value: any }[]  how messages call what was given
---@return table? shared
---@return string? text  what is wrong, if anything
local function sharing(root, roots)
  local made, queue, count = { [root] = native.shared() }, { root }, 1
  local place = 0
  while place < count do
    place = place + 1
    local plain = queue[place]
    for key, value in next, plain do
      if not shared.is_key(key) then
        return nil,
          ("cannot share a table with a key of type %s: keys are strings, numbers and booleans"):format(
            type(key)
          )
      end
      if is_plain(value) then
        if not made[value] then
          count = count + 1
          made[value], queue[count] = native.shared(), value
        end
        value = made[value]
      end
      local set, reason, refused, why = handles.scanning(native.shared_set, made[plain], key, value)
      if not set then return nil, handles.unsendable(roots, reason, refused, why) end
    end
  end
  return made[root]
end

-- It may run at exit: see msys.names.
jit.off(sharing)

local function roots_of(name, value)
  return { { name = name, value = value } }
end

--- Sets a value of a shared table, if it can be: true, and its number if it is one that each VM has for itself; or nil,
--- and why not.
function shared.try_set(tbl, key, value)
  local stored = value
  if is_plain(value) then
    local new, text = sharing(value, roots_of(("the value of key %s"):format(tostring(key)), value))
    if not new then return nil, text end
    stored = new
  end
  local done, reason, refused, why = handles.scanning(native.shared_set, tbl, key, stored)
  if done then return true, reason end
  return nil,
    handles.unsendable(roots_of(("the value of key %s"):format(tostring(key)), value), reason, refused, why)
end

--- Sets a value of a shared table; raises `method: why` at `level`.
function shared.set(tbl, key, value, method, level)
  if not shared.is_key(key) then
    error(("%s: keys are strings, numbers and booleans, got %s"):format(method, type(key)), level + 1)
  end
  local done, text = shared.try_set(tbl, key, value)
  if not done then error(("%s: %s"):format(method, text), level + 1) end
end

--- Sets a value, if it has this version still: whether it had, and what it is then. Raises `method: why` at `level`.
function shared.swap(tbl, key, value, version, method, level)
  local stored = value
  if is_plain(value) then
    local new, text = sharing(value, roots_of("the new value", value))
    if not new then error(("%s: %s"):format(method, text), level + 1) end
    stored = new
  end
  local done, reason, refused, why = handles.scanning(native.shared_swap, tbl, version, key, stored)
  if done == nil then
    local text = handles.unsendable(roots_of("the new value", value), reason, refused, why)
    error(("%s: %s"):format(method, text), level + 1)
  end
  return done, stored
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

--- Goes through a shared table: `for key, value in thread.pairs(t)`; through any other as `pairs` does. The keys are
--- those that there are when it begins; one that is gone when its turn comes is passed over.
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

--- Makes the plain `pairs` and `ipairs` go through shared tables, where a host's globals were asked for: a worker has
--- `msys.boot`'s.
function shared.install_iteration()
  if native.is_worker or require("msys.base").has_pairs then return end
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
  local roots = {}
  for key, value in next, tbl do
    roots[#roots + 1] = { name = ("the value of key %s"):format(tostring(key)), value = value }
  end
  local new, text = sharing(tbl, roots)
  if not new then error("thread.shared: " .. text, 2) end
  return new
end

--- Changes one value of a shared table as one step: `fn` is given what it is, and gives what it is to be. If somebody
--- else was faster,
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
    local done, value = shared.swap(tbl, key, fn(before), version, "thread.update", 2)
    if done then return value end
  end
end

--- Buffers by the cdata that Lua sees, and the other way round.
---@type table<any, any>, table<any, any>
local handle_of = setmetatable({}, { __mode = "k" })
local view_of = setmetatable({}, { __mode = "v" })

cdata.handles = handle_of

local function view(handle)
  local key = handles.address(handle)
  ---@type any
  local seen = view_of[key]
  if seen and handle_of[seen] == handle then return seen end
  local memory, ctype = native.buffer_memory(handle)
  if not pcall(ffi.sizeof, ctype) then
    local text =
      "msys: a thread.buffer has items of type '%s', which this VM does not know: ffi.cdef it here too"
    error(text:format(ctype), 0)
  end
  -- By name: busted remembers what `ffi.typeof "$ *"` gave, whatever the parameter.
  local base, dimensions = ctype:match "^(.-)%s*(%[[%[%]%w%s_]*%])%s*$"
  seen = ffi.cast(dimensions and ("%s (*)%s"):format(base, dimensions) or ctype .. " *", memory)
  handle_of[seen], view_of[key] = handle, seen
  return seen
end

native.set_buffer_view(view)

--- Memory that all VMs see, as a pointer to its first item: never copied, and guarded by nothing but what the script
--- does. Places are from 0, and not checked, as with any FFI pointer. It is freed when no VM has it, so keep what this
--- gives.
---@param ctype string  numbers, or a struct that each VM declares; without pointers in it
---@param count integer
---@return ffi.cdata*
function shared.buffer(ctype, count)
  if type(ctype) ~= "string" then error("thread.buffer: ctype must be a string, got " .. type(ctype), 2) end
  if type(count) ~= "number" or count ~= count or count < 1 or count % 1 ~= 0 then
    local given = type(count) == "number" and tostring(count) or type(count)
    error("thread.buffer: n must be a whole number from 1, got " .. given, 2)
  end
  local ok, size = pcall(ffi.sizeof, ctype)
  if not ok then error("thread.buffer: " .. tostring(size), 2) end
  local buffer = size and size > 0 and native.buffer(ctype, count, size)
  if not buffer then error(("thread.buffer: no memory for %d items of type '%s'"):format(count, ctype), 2) end
  return buffer
end

return shared
