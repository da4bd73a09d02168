--- Finds the path to a value that cannot be sent. The encoder keeps no paths; this looks for one after a refusal.

local names = require "msys.names"

-- This may run at exit, in a finalizer, where LuaJIT does not leave a compiled loop over `next` (see ARCHITECTURE.md).
jit.off(true, true)

local refusal = {}

--- A step of the search: how the value is called, and of what it is a part.
---@class msys.refusal.Node
---@field value any
---@field name string  for example `upvalue 'cfg'.pool`
---@field tail string  for example ` of function at app.lua:12`

local function where(fn)
  local info = debug.getinfo(fn, "S") --[[@as debuglib.DebugInfo]]
  return ("function at %s:%d"):format(info.short_src, info.linedefined)
end

local function key_name(key)
  if type(key) == "string" and key:match "^[%a_][%w_]*$" then
    return "." .. key
  elseif type(key) == "string" then
    return ("[%q]"):format(key)
  elseif type(key) == "number" or type(key) == "boolean" then
    return "[" .. tostring(key) .. "]"
  end
  return "[a " .. type(key) .. "]"
end

--- What a value is, for a person: its type, and a name where its metatable or its library has one.
---@param value any
---@return string
function refusal.kind_of(value)
  local kind = type(value)
  if kind == "thread" then
    return "coroutine"
  elseif kind == "function" then
    local info = debug.getinfo(value, "S") --[[@as debuglib.DebugInfo]]
    return info.what == "C" and "C function found in no module" or "function"
  elseif kind == "cdata" then
    return ("cdata '%s'"):format(tostring(require("ffi").typeof(value)):match "^ctype<(.*)>$")
  elseif kind == "userdata" then
    local meta = debug.getmetatable(value)
    local name = type(meta) == "table" and rawget(meta, "__name")
    ---@cast value any
    if type(name) == "string" then
      return ("userdata '%s'"):format(name)
    elseif io.type(value) then
      return "userdata 'file'"
    end
  end
  return kind
end

--- Everything that a value refers to, as the encoder goes through it.
local function parts(node)
  local value, found = node.value, {}
  local function add(part, name, tail)
    found[#found + 1] = { value = part, name = name, tail = tail }
  end
  if type(value) == "table" then
    for key, field in next, value do
      add(key, "a key of " .. node.name, node.tail)
      add(field, node.name .. key_name(key), node.tail)
    end
    local meta = debug.getmetatable(value)
    if meta then add(meta, "the metatable of " .. node.name, node.tail) end
  elseif type(value) == "function" then
    local tail = " of " .. where(value)
    -- The closure itself is known by its place; a function on the way to it needs its own.
    if node.name ~= "the closure" then tail = tail .. ", " .. node.name .. node.tail end
    ---@diagnostic disable-next-line: access-invisible -- LuaJIT has it
    local env = debug.getfenv(value)
    if env ~= package.loaded._G then add(env, "the environment", tail) end
    for place = 1, 255 do
      local name, upvalue = debug.getupvalue(value, place)
      if not name then break end
      add(upvalue, ("upvalue '%s'"):format(name ~= "" and name or place), tail)
    end
  end
  return found
end

--- The shortest way from one of the roots to the refused value, in words.
---@param roots { name: string, value: any }[]
---@param refused any
---@return string  for example `upvalue 'db' (userdata 'sqlite3') of function at app.lua:12`
function refusal.explain(roots, refused)
  local queue, seen = {}, {}
  for place, root in ipairs(roots) do
    queue[place] = { value = root.value, name = root.name, tail = "" }
  end
  local first, last = 1, #roots
  while first <= last do
    local node = queue[first] --[[@as msys.refusal.Node]]
    queue[first] = nil
    first = first + 1
    if rawequal(node.value, refused) then
      return ("%s (%s)%s"):format(node.name, refusal.kind_of(refused), node.tail)
    end
    local kind = type(node.value)
    if (kind == "table" or kind == "function") and not seen[node.value] and not names.has(node.value) then
      seen[node.value] = true
      for _, part in ipairs(parts(node)) do
        last = last + 1
        queue[last] = part
      end
    end
  end
  return "a " .. refusal.kind_of(refused)
end

return refusal
