--- Finds the path to a value that cannot be sent. The encoder keeps no paths; this looks for one after a refusal.

local names = require "msys.names"
local native = require "msys.native"

-- This may run at exit, in a finalizer, where LuaJIT does not leave a compiled loop over `next` (see ARCHITECTURE.md).
jit.off(true, true)

-- As in msys.names.
local getinfo, getmetatable_of, getupvalue = debug.getinfo, debug.getmetatable, debug.getupvalue
---@diagnostic disable-next-line: access-invisible -- LuaJIT has it
local getfenv_of = debug.getfenv
local concat, remove, sort = table.concat, table.remove, table.sort
local file_type = io.type

local refusal = {}

--- Whether a function's environment crosses as the globals; `msys.environment` knows more of them.
function refusal.is_globals(env)
  return env == package.loaded._G
end

--- A step of the search: how the value is called, and of what it is a part.
---@class msys.refusal.Node
---@field value any
---@field name string  for example `upvalue 'cfg'.pool`
---@field tail string  for example ` of function at app.lua:12`

local function where(fn)
  local info = getinfo(fn, "S") --[[@as debuglib.DebugInfo]]
  return ("function at %s:%d"):format(info.short_src, info.linedefined)
end

--- How much of a key an error shows.
local LONGEST_KEY = 60

local function key_name(key)
  if type(key) == "string" then
    local text = #key > LONGEST_KEY and key:sub(1, LONGEST_KEY) .. "..." or key
    if text:match "^[%a_][%w_]*$" then return "." .. text end
    return ("[%s]"):format(("%q"):format(text):gsub("\\\n", "\\n"):gsub("\r", "\\r"))
  elseif type(key) == "number" then
    local text = ("%.14g"):format(key)
    return ("[%s]"):format(tonumber(text) == key and text or ("%.17g"):format(key))
  elseif type(key) == "boolean" then
    return "[" .. tostring(key) .. "]"
  end
  return "[a " .. type(key) .. "]"
end

local function name_of(value)
  local meta = getmetatable_of(value)
  local name = type(meta) == "table" and rawget(meta, "__name")
  return type(name) == "string" and name or nil
end

--- What a value is, for a person: its type, and a name where its metatable or its library has one.
---@param value any
---@return string
function refusal.kind_of(value)
  local kind = type(value)
  if kind == "thread" then
    return "coroutine"
  elseif kind == "function" then
    local info = getinfo(value, "S") --[[@as debuglib.DebugInfo]]
    return info.what == "C" and "C function found in no module" or "function"
  elseif kind == "cdata" then
    local ffi = require "ffi"
    local ctype = tostring(ffi.typeof(value)):match "^ctype<(.*)>$"
    -- A type is a cdata object too, which LuaJIT takes for one of that type. `tostring` may be the script's.
    local ok, text = pcall(tostring, value)
    local is_type = not pcall(ffi.sizeof, value) or ok and text == ("ctype<%s>"):format(ctype)
    return ("%s '%s'"):format(is_type and "ctype" or "cdata", ctype)
  elseif kind == "userdata" or kind == "table" then
    local name = name_of(value)
    if name then
      return ("%s '%s'"):format(kind, name)
    elseif
      kind == "userdata" and file_type(value --[[@as any]])
    then
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
    local meta = getmetatable_of(value)
    if meta then add(meta, "the metatable of " .. node.name, node.tail) end
  elseif type(value) == "function" then
    if
      (getinfo(value, "S") --[[@as debuglib.DebugInfo]]).source == "=[msys.boot]"
    then
      -- A generator of `coroutine.wrap`, which in a worker is a function of msys's.
      for place = 1, 255 do
        local name, upvalue = getupvalue(value, place)
        if not name then return found end
        if type(upvalue) == "thread" then add(upvalue, node.name, node.tail) end
      end
    end
    local tail = " of " .. where(value)
    -- The closure itself is known by its place; a function on the way to it needs its own.
    if node.name ~= "the closure" then tail = tail .. ", " .. node.name .. node.tail end
    ---@diagnostic disable-next-line: access-invisible -- LuaJIT has it
    local env = getfenv_of(value)
    if not refusal.is_globals(env) then add(env, "the environment", tail) end
    for place = 1, 255 do
      local name, upvalue = getupvalue(value, place)
      if not name then break end
      add(upvalue, ("upvalue '%s'"):format(name ~= "" and name or place), tail)
    end
  end
  return found
end

--- The shortest way from one of the roots to the refused value, in words.
---@param roots { name: string, value: any }[]
---@param refused any
---@param why? string  where its kind alone does not say it
---@return string  for example `upvalue 'db' (userdata 'sqlite3') of function at app.lua:12`
function refusal.explain(roots, refused, why)
  why = why and ": " .. why or ""
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
      return ("%s (%s)%s%s"):format(node.name, refusal.kind_of(refused), node.tail, why)
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
  return "a " .. refusal.kind_of(refused) .. why
end

--- How many of the largest parts are named.
local MOST = 3

local UNITS = { { 2 ^ 30, "GiB" }, { 2 ^ 20, "MiB" }, { 2 ^ 10, "KiB" } }

local function size_text(bytes)
  if bytes == math.huge then return "more than 64 MiB" end
  for _, unit in ipairs(UNITS) do
    if bytes >= unit[1] then return ("%.1f %s"):format(bytes / unit[1], unit[2]) end
  end
  return bytes .. " bytes"
end

--- The largest parts of a message, with their sizes.
---@param roots { name: string, value: any }[]
---@return string  for example `; the largest parts are upvalue 'rows' with 12.3 MiB and argument 1 with 2.0 KiB`
local function largest(roots)
  local found = {}
  local function add(name, value)
    local kind = type(value)
    if kind ~= "string" and kind ~= "table" and kind ~= "function" and kind ~= "cdata" then return end
    local bytes = native.measure(value)
    if bytes then found[#found + 1] = { name = name, bytes = bytes, place = #found } end
  end
  for _, root in ipairs(roots) do
    if type(root.value) ~= "function" then
      add(root.name, root.value)
    else
      -- What is in a function is named in it.
      for _, part in ipairs(parts { name = root.name, value = root.value, tail = "" }) do
        add(part.name, part.value)
      end
      for _, name in ipairs(native.globals_of(root.value) or {}) do
        add(("global '%s'"):format(name), rawget(package.loaded._G, name))
      end
    end
  end
  sort(found, function(a, b)
    if a.bytes ~= b.bytes then return a.bytes > b.bytes end
    return a.place < b.place
  end)
  local texts = {}
  for place = 1, math.min(MOST, #found) do
    texts[place] = ("%s with %s"):format(found[place].name, size_text(found[place].bytes))
  end
  local last = remove(texts)
  if not last then return "" end
  if #texts == 0 then return "; the largest part is " .. last end
  return ("; the largest parts are %s and %s"):format(concat(texts, ", "), last)
end

--- What is wrong with a message that is too large.
---@param size integer?  in bytes
---@param pool string
---@param limit integer
---@param roots { name: string, value: any }[]
---@return string
function refusal.too_large(size, pool, limit, roots)
  return ("the message has %s bytes, pool '%s' takes at most %d (max_message)%s"):format(
    size and ("%d"):format(size) or "more",
    pool,
    limit,
    largest(roots)
  )
end

return refusal
