--- Loads what a worker's VM begins without, when the first job needs it; gives `msys.worker`.
---
--- `msys.boot` opens this, as all that comes after, in an environment that jobs have not changed.

---@type string, msys.boot, fun(name: string, ...): any
local _, boot, open = ...

local error, ipairs, next, pairs, pcall, rawget, rawset = error, ipairs, next, pairs, pcall, rawget, rawset
local lua_require, setmetatable = require, setmetatable
local modules, bundled, loaded = boot.modules, boot.bundled, boot.loaded
local base = modules["msys.base"]

-- As the scheduler, to which its stacks belong.
jit.off(true, true)

local loader = {}

--- What there was before, and stays if something cannot be loaded.
---@type table<string, boolean?>
local kept = {}
for name in pairs(modules) do
  kept[name] = true
end

--- Is set at the end.
---@type table?
local worker

--- `require` for what jobs have not changed: our modules come from here, others as Lua has them.
function loader.require(name)
  local module = modules[name]
  if module == nil then module = open(name) end
  if module ~= nil then
    modules[name], loaded[name] = module, module
    return module
  end
  module = loaded[name]
  if module ~= nil or not bundled[name] then return lua_require(name) end
  loaded[name] = bundled[name](name)
  return loaded[name]
end

--- `require` for our modules: those of the script's are loaded as for jobs.
local function require_inside(name)
  if worker and modules[name] == nil then return worker.require(name) end
  return loader.require(name)
end

--- What has been put into the tables that stand for `msys` and `thread`: table, key.
---@type [table, any][]
local filled = {}

--- Puts the fields of `msys` or `thread` into the table that stands for it, and gives that. Where a job has put
--- another, that stays.
function base.fill(name, module)
  local stand_in = base[name]
  for key, field in next, module do
    if rawget(stand_in, key) == nil then
      filled[#filled + 1] = { stand_in, key }
      rawset(stand_in, key, field)
    end
  end
  return stand_in
end

local function load_all()
  modules["msys.loader"] = loader
  base.environment.require = require_inside
  open "msys"
  open "thread"
  local module = loader.require "msys.worker"
  module.ready()
  return module
end

boot.is_loading = true
---@type boolean, any
local ok, module = pcall(load_all)
boot.is_loading = false
if not ok then
  -- So that the next to need it tries again.
  for name in pairs(modules) do
    if not kept[name] then
      loaded[name], modules[name] = nil, nil
    end
  end
  for _, place in ipairs(filled) do
    rawset(place[1], place[2], nil)
  end
  setmetatable(modules.msys, boot.behind)
  setmetatable(modules.thread, boot.behind)
  error(module, 0)
end
worker = module
return worker
