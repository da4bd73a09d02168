--- Which objects of this VM cross as a name: modules, and functions that are fields of one.
---
--- `msys.submit` and `msys.worker` call `scan` when the encoder asks for it: see `src/functions.rs` for when that is.

local native = require "msys.native"

local names = {}

--- What every VM has from the start. A Lua function that a script put into one of these tables is the script's own.
local LIBRARIES = { "string", "table", "math", "io", "os", "coroutine", "debug", "package", "bit", "jit", "jit.opt" }
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

local BASE = {
  "assert", "collectgarbage", "dofile", "error", "gcinfo", "getfenv", "getmetatable", "ipairs", "load", "loadfile",
  "loadstring", "module", "newproxy", "next", "pairs", "pcall", "print", "rawequal", "rawget", "rawset", "require",
  "select", "setfenv", "setmetatable", "tonumber", "tostring", "type", "unpack", "xpcall",
}

--- Keeps what has a name alive, so that its address stays its own.
local anchors = {}

--- Modules looked for among the files, by name: a module that no file holds cannot be required in another VM, and its
--- table crosses as any other.
local findable = {}

local function learn(object, module, field, everywhere)
  anchors[#anchors + 1] = object
  native.learn(object, module, field, everywhere)
end

local function is_c(value)
  return debug.getinfo(value, "S").what == "C"
end

local function is_findable(name)
  if findable[name] == nil then
    findable[name] = package.searchpath(name, package.path) ~= nil or package.searchpath(name, package.cpath) ~= nil
      -- A submodule of a C library is opened by the library of its first part.
      or package.searchpath(name:match "^[^.]+", package.cpath) ~= nil
  end
  return findable[name]
end

local function learn_module(name, module)
  local everywhere = builtin[name] or name == "msys" or name:match "^msys%." ~= nil
  local kind = type(module)
  if kind ~= "table" and kind ~= "function" or not (everywhere or BUNDLED[name] or is_findable(name)) then
    return
  end
  learn(module, name, "", everywhere)
  if kind == "table" then
    for field, value in next, module do
      if type(field) == "string" and field ~= "" and type(value) == "function" then
        if not builtin[name] or is_c(value) then
          learn(value, name, field, everywhere)
        end
      end
    end
  end
end

--- Learns the names of all that is loaded now.
function names.scan()
  native.forget_names()
  anchors = {}
  local modules = {}
  for name in next, package.loaded do
    if type(name) == "string" and name ~= "_G" then
      modules[#modules + 1] = name
    end
  end
  -- The last name learnt counts. Of two names for one module that is the alphabetically first, and a library's own.
  table.sort(modules, function(a, b)
    return a > b
  end)
  for _, name in ipairs(modules) do
    learn_module(name, package.loaded[name])
  end
  for _, name in ipairs(LIBRARIES) do
    if package.loaded[name] then
      learn_module(name, package.loaded[name])
    end
  end
  local globals = package.loaded._G
  for _, name in ipairs(BASE) do
    local value = rawget(globals, name)
    if type(value) == "function" and is_c(value) then
      learn(value, "_G", name, true)
    end
  end
  learn(globals, "_G", "", true)
  local msys = package.loaded.msys
  if type(msys) == "table" and msys._OSTLS then
    learn(msys._OSTLS, "msys", "_OSTLS", true)
  end
end

return names
