--- Which objects of this VM cross as a name: modules, and functions that are fields of one.
---
--- `msys.submit` and `msys.worker` call `scan` when the encoder asks for it: see `src/functions.rs` for when that is.

local native = require "msys.native"

-- This may run at exit, in a finalizer, where LuaJIT does not leave a compiled loop over `next` (see ARCHITECTURE.md).
jit.off(true, true)

-- Scripts and jobs may have put others in the place of these since.
local sort = table.sort
local match, gmatch = string.match, string.gmatch
local ipairs, next, pairs, tostring, type = ipairs, next, pairs, tostring, type
local searchpath = package.searchpath

local names = {}

--- What every VM has from the start. A Lua function that a script put into one of these tables is the script's own.
local LIBRARIES =
  { "string", "table", "math", "io", "os", "coroutine", "debug", "package", "bit", "jit", "jit.opt" }
local builtin = {}
for _, name in ipairs(LIBRARIES) do
  builtin[name] = true
end

--- What LuaJIT brings along, and a VM loads when it is first required.
local BUNDLED = {
  ["ffi"] = true,
  ["jit.profile"] = true,
  ["jit.util"] = true,
  ["string.buffer"] = true,
  ["table.clear"] = true,
  ["table.new"] = true,
}

local is_c = native.is_c

--- What a new VM has, as `library.field` and `_G.name`: the names that every VM knows.
local fresh = {}
local FRESH = [[
  local names = {}
  for library, fields in next, package.loaded do
    if type(fields) == "table" then
      for field, value in next, fields do
        if type(field) == "string" and type(value) == "function" then
          names[#names + 1] = library .. "." .. field
        end
      end
    end
  end
  return table.concat(names, "\n")
]]
for name in gmatch(native.fresh_names(FRESH) or "", "[^\n]+") do
  fresh[name] = true
end

--- What has a name: kept alive, so that its address stays its own.
---@type table<any, true>
local named = {}

--- The C functions of the libraries when msys was loaded, with their names: a script may have one at hand that it has
--- put another in the place of.
---@type [function, string, string][]
local original = {}
do
  ---@type table<string?, boolean?>
  local is_library = { _G = true }
  for _, library in ipairs(LIBRARIES) do
    is_library[library] = true
  end
  local function add(value, library, field)
    if is_library[library] and is_c(value) then original[#original + 1] = { value, library, field } end
  end
  -- A worker may have run jobs by now.
  local noted = native.originals()
  if noted then
    local library, place = nil, 1
    while noted[place] do
      local entry = noted[place]
      if type(entry) == "function" then
        add(entry, library, noted[place + 1])
        place = place + 2
      else
        library = entry
        place = place + 1
      end
    end
  else
    for name in pairs(fresh) do
      local library, field = match(name, "^(.*)%.([^.]*)$")
      local fields = package.loaded[library]
      add(fields and fields[field], library, field)
    end
  end
end

--- Names that a VM gives beyond what it finds: triples of object, module, field.
names.also = {}

--- Modules looked for among the files, by name: a module that no file holds cannot be required in another VM, and its
--- table crosses as any other.
local findable = {}

local function learn(object, module, field, everywhere)
  named[object] = true
  native.learn(object, module, field, everywhere)
end

local function is_findable(name)
  if findable[name] == nil then
    findable[name] = searchpath(name, package.path) ~= nil
      or searchpath(name, package.cpath) ~= nil
      -- A submodule of a C library is opened by the library of its first part.
      or searchpath(match(name, "^[^.]+") or name, package.cpath) ~= nil
  end
  return findable[name]
end

local function learn_module(name, module)
  local everywhere = builtin[name] or name == "msys" or name == "thread" or match(name, "^msys%.") ~= nil
  local kind = type(module)
  if kind ~= "table" and kind ~= "function" or not (everywhere or BUNDLED[name] or is_findable(name)) then
    return
  end
  learn(module, name, "", everywhere)
  if kind == "table" then
    for field, value in next, module do
      if type(field) == "string" and field ~= "" and type(value) == "function" then
        if not builtin[name] or (fresh[name .. "." .. field] and is_c(value)) then
          learn(value, name, field, everywhere)
        end
      end
    end
  end
end

--- Learns the names of all that is loaded now.
function names.scan()
  native.forget_names()
  named = {}
  local modules = {}
  for name in next, package.loaded do
    if type(name) == "string" and name ~= "_G" then modules[#modules + 1] = name end
  end
  -- The last name learnt counts.
  for _, name in ipairs(original) do
    learn(name[1], name[2], name[3], true)
  end
  -- Of two names for one module that is the alphabetically first, and a library's own.
  sort(modules, function(a, b)
    return a > b
  end)
  for _, name in ipairs(modules) do
    learn_module(name, package.loaded[name])
  end
  for _, name in ipairs(LIBRARIES) do
    if package.loaded[name] then learn_module(name, package.loaded[name]) end
  end
  for name in pairs(BUNDLED) do
    local library, field = match(name, "^(%l+)%.(%l+)$")
    local value = package.loaded[name] or library == "table" and table[field]
    if type(value) == "function" and is_c(value) then learn(value, name, "", false) end
  end
  local globals = package.loaded._G
  for name, value in next, globals do
    if type(value) == "function" and fresh["_G." .. tostring(name)] and is_c(value) then
      learn(value, "_G", name, true)
    end
  end
  learn(globals, "_G", "", true)
  -- What a job does with these is meant for its own VM.
  for _, field in ipairs { "loaded", "preload", "loaders" } do
    local tbl = package[field]
    if type(tbl) == "table" then learn(tbl, "package", field, true) end
  end
  local msys = package.loaded.msys
  if type(msys) == "table" and msys._OSTLS then learn(msys._OSTLS, "msys", "_OSTLS", true) end
  for _, name in ipairs(names.also) do
    learn(name[1], name[2], name[3], true)
  end
  native.scanned()
end

--- Whether an object had a name at the last scan.
---@param object any
---@return boolean
function names.has(object)
  return object ~= nil and named[object] ~= nil
end

return names
