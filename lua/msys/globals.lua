--- For scripts of one Lua universe with many threads: `msys`, `thread`, `_TLS` and `_OSTLS` as globals, and the
--- script's own global variables shared between all VMs of the process.
---
---     luajit -lmsys.globals script.lua
---
--- Numbers, strings and booleans are seen by all VMs as they are assigned; a plain table becomes a shared one (see
--- `thread.shared`), which the library functions here take as they take tables; a function goes by its code, with
--- copies of what it has captured; other sendable values are copied. What cannot be sent is seen by the VM alone that
--- has assigned it.

---@type msys
local msys = require "msys"
local environment = require "msys.environment"
local names = require "msys.names"
local native = require "msys.native"
local scheduler = require "msys.scheduler"
local shared = require "msys.shared"

-- It may run at exit: see msys.names.
jit.off(true, true)

if not native.share_globals() then
  error("msys.globals: required too late: a worker runs already, with globals of its own", 2)
end

local globals = package.loaded._G --[[@as table]]
local error, getmetatable, rawequal, select, type = error, getmetatable, rawequal, select, type
local next, rawget, rawset, setmetatable, unpack = next, rawget, rawset, setmetatable, unpack
local insert, remove, concat, sort, maxn = table.insert, table.remove, table.concat, table.sort, table.maxn
local peek = native.shared_peek

--- The process's own shared table for this.
local store = native.process_table(2)

--- What this VM has of the values that each VM has for itself, and under which number.
---@type table<any, any>, table<any, integer?>
local kept, number_of = {}, {}

local meta = { __metatable = "msys.globals" }

function meta.__index(_, key)
  local known = number_of[key]
  local value, number = peek(store, key, known or 0)
  if number == nil then
    if known then
      kept[key], number_of[key] = nil, nil
    end
    return value
  elseif number ~= known then
    kept[key], number_of[key] = value, number
    return value
  end
  return kept[key]
end

function meta.__newindex(_, key, value)
  if not shared.is_key(key) then return rawset(globals, key, value) end
  local ok, number = shared.try_set(store, key, value)
  if not ok then number = native.shared_private(store, key) end
  if number then
    kept[key], number_of[key] = value, number
  else
    kept[key], number_of[key] = nil, nil
  end
end

--- The list in a shared table, as a plain one.
local function copy_of(tbl, count)
  local list = {}
  for place = 1, count or #tbl do
    list[place] = tbl[place]
  end
  return list
end

--- The library's functions, which take shared tables too. Each does as the original does where it is given none.
local wrapped = { _G = {}, table = {} }

function wrapped._G.type(...)
  local kind = type(...)
  if kind == "userdata" and getmetatable((...)) == "thread.shared" then return "table" end
  return kind
end

function wrapped._G.rawget(tbl, key)
  if shared.is_shared(tbl) then return tbl[key] end
  if tbl == globals and rawget(tbl, key) == nil then return meta.__index(tbl, key) end
  return rawget(tbl, key)
end

function wrapped._G.rawset(tbl, key, value)
  if shared.is_shared(tbl) then
    tbl[key] = value
    return tbl
  elseif tbl == globals and rawget(tbl, key) == nil then
    globals[key] = value
    return tbl
  end
  return rawset(tbl, key, value)
end

--- The keys that the last `next` on a shared table went through, with the place of each.
local traversals = setmetatable({}, { __mode = "k" })

local function next_shared(tbl, key)
  local traversal = traversals[tbl]
  if key == nil or not traversal then
    traversal = { keys = native.shared_keys(tbl), places = {} }
    for place, one in ipairs(traversal.keys) do
      traversal.places[one] = place
    end
    traversals[tbl] = traversal
  end
  local place = key == nil and 0 or traversal.places[key]
  if not place then error("invalid key to 'next'", 3) end
  while true do
    place = place + 1
    local following = traversal.keys[place]
    if following == nil then return nil end
    local value = tbl[following]
    if value ~= nil then return following, value end
  end
end

--- The next global: first those of the VM, then the shared ones.
local function next_global(_, key)
  if key == nil or rawget(globals, key) ~= nil then
    local following, value = next(globals, key)
    if following ~= nil then return following, value end
    key = nil
  end
  local following = next_shared(store, key)
  if following == nil then return nil end
  return following, globals[following]
end

function wrapped._G.next(tbl, ...)
  if tbl == globals then return next_global(tbl, ...) end
  if shared.is_shared(tbl) then return next_shared(tbl, ...) end
  return next(tbl, ...)
end

shared.install_iteration()
local pairs_of = globals.pairs

function wrapped._G.pairs(...)
  local tbl = ...
  if tbl == globals then return next_global, tbl, nil end
  return pairs_of(...)
end

function wrapped._G.unpack(tbl, first, last)
  if shared.is_shared(tbl) then
    first, last = first or 1, last or #tbl
    local list = {}
    for place = first, last do
      list[place] = tbl[place]
    end
    return unpack(list, first, last)
  end
  return unpack(tbl, first, last)
end

--- Metatables made of shared tables, by them.
local metatables = setmetatable({}, { __mode = "k" })

--- A shared table as the metatable of a plain one has copies of its metamethods as they are now; its `__index` is most
--- often the shared table itself, so what is added to that later is seen.
function wrapped._G.setmetatable(tbl, of, ...)
  if not shared.is_shared(of) then
    if shared.is_shared(tbl) then error("setmetatable: a shared table cannot have a metatable", 2) end
    return setmetatable(tbl, of, ...)
  end
  local made = metatables[of] or {}
  metatables[of] = made
  for key, value in shared.pairs(of) do
    if type(key) == "string" and key:find("^__") then made[key] = value end
  end
  return setmetatable(tbl, made)
end

function wrapped.table.insert(tbl, ...)
  if not shared.is_shared(tbl) then return insert(tbl, ...) end
  if select("#", ...) == 1 then
    -- Two VMs that do so at once both find a place.
    return shared.append(tbl, (...))
  end
  local list = copy_of(tbl)
  insert(list, ...)
  for place = (...), #list do
    tbl[place] = list[place]
  end
end

function wrapped.table.remove(tbl, ...)
  if not shared.is_shared(tbl) then return remove(tbl, ...) end
  local count = #tbl
  local list = copy_of(tbl, count)
  local value = remove(list, ...)
  for place = select("#", ...) > 0 and (...) or count, count do
    tbl[place] = list[place]
  end
  return value
end

function wrapped.table.concat(tbl, ...)
  return concat(shared.is_shared(tbl) and copy_of(tbl) or tbl, ...)
end

function wrapped.table.sort(tbl, ...)
  if not shared.is_shared(tbl) then return sort(tbl, ...) end
  local list = copy_of(tbl)
  sort(list, ...)
  for place, value in ipairs(list) do
    tbl[place] = value
  end
end

function wrapped.table.maxn(tbl)
  if not shared.is_shared(tbl) then return maxn(tbl) end
  ---@type number
  local most = 0
  for _, key in ipairs(native.shared_keys(tbl)) do
    if type(key) == "number" then most = math.max(most, key) end
  end
  return most
end

--- Replaces the originals, under whose names these cross.
local function install()
  for library, functions in next, wrapped do
    local tbl = package.loaded[library]
    for name, fn in next, functions do
      tbl[name] = fn
      insert(names.also, { fn, library, name })
    end
  end
  if rawequal(table.unpack, unpack) then table.unpack = globals.unpack end
end

--- Shares what the script has assigned by now.
local function share_present()
  local builtin, own = {}, {}
  for name in environment.builtin():gmatch "[^\n]+" do
    builtin[name] = true
  end
  for key, value in next, globals do
    if not builtin[key] and shared.is_key(key) then own[key] = value end
  end
  for key in next, own do
    globals[key] = nil
  end
  setmetatable(globals, meta)
  for key, value in next, own do
    globals[key] = value
  end
end

environment.share_all()
share_present()
rawset(globals, "msys", msys)
rawset(globals, "thread", require "thread")
rawset(globals, "_OSTLS", msys._OSTLS)
rawset(globals, "_TLS", false)
scheduler.keep_tls_in(globals)
install()
names.scan()

return {}
