--- A worker's VM until a job needs more than to run: `msys`, `thread` and what stands in the place of Lua's own
--- functions are there, and the modules behind them are loaded when they are first used.
---
--- `src/worker.rs` runs this in each new worker VM, and calls what it gives.

--- `openers` has what loads each module of ours; `pristine()` gives an environment for those, with Lua's own functions
--- as they were when the VM was new: jobs may have put others in their places.
---@type string, msys.base, table<string, fun(name: string): any>, fun(): table
local _, base, openers, pristine = ...

local co_create, co_resume, co_status = coroutine.create, base.co_resume, base.co_status
local error, pairs, ipairs, pcall, setmetatable, type = error, pairs, ipairs, pcall, setmetatable, type
local collectgarbage, getfenv, require = collectgarbage, getfenv, require
local gethook, sethook = debug.gethook, debug.sethook
local loaded = package.loaded

-- As the scheduler, to which its stacks belong.
jit.off(true, true)

local globals = loaded._G
--- The kind of event with which a worker is to end, as in src/host/jobs.rs.
local END = 5

local boot = {
  --- What other VMs have under these names: triples of object, module, field.
  also = {},
}
--- Our modules that are loaded, whatever jobs do to `package.loaded`.
---@type table<string, any>
local modules = { ["msys.base"] = base, ["msys.boot"] = boot }
for name, module in pairs(modules) do
  loaded[name] = module
end

--- What LuaJIT brings along and loads when it is first asked for.
---@type table<string, fun(name: string): any>
local bundled = {}
for name, open in pairs(package.preload) do
  bundled[name] = open
end

--- `require` for what jobs have not changed: our modules come from here, others as Lua has them.
function boot.require(name)
  if not openers[name] then
    local module = loaded[name]
    if module ~= nil or not bundled[name] then return require(name) end
    loaded[name] = bundled[name](name)
    return loaded[name]
  end
  local module = modules[name]
  if module == nil then
    module = openers[name](name)
    modules[name] = module
  end
  loaded[name] = module
  return module
end

--- `msys.worker` and the scheduler, once they are there.
---@type table?, table?
local worker, scheduler
local is_loading = false

--- `require` for our modules: those of the script's are loaded as for jobs.
local function require_inside(name)
  if worker and not openers[name] then return worker.require(name) end
  return boot.require(name)
end

local function open_all()
  base.environment = pristine()
  base.environment.require = require_inside
  openers.msys "msys"
  openers.thread "thread"
  local module = boot.require "msys.worker"
  module.ready()
  return module
end

--- Loads what a worker has besides; gives `msys.worker`.
---@return table
local function load_all()
  if worker then return worker end
  is_loading = true
  ---@type boolean, any
  local ok, module = pcall(open_all)
  is_loading = false
  if not ok then
    -- So that the next to need it tries again.
    for name in pairs(openers) do
      if name ~= "msys" and name ~= "thread" and name ~= "msys.base" and name ~= "msys.boot" then
        loaded[name], modules[name] = nil, nil
      end
    end
    error(module, 0)
  end
  scheduler = modules["msys.scheduler"]
  worker = module
  return module
end

--- The same in the middle of a job, whose finalizers and hook are not for this.
local function load_in_job()
  if worker then return worker end
  ---@type any, any, any
  local hook, mask, count = gethook()
  sethook()
  collectgarbage "stop"
  ---@type boolean, any
  local ok, module = pcall(load_all)
  collectgarbage "restart"
  ---@diagnostic disable-next-line: param-type-mismatch -- a function may come first
  if type(hook) == "function" then sethook(hook, mask, count) end
  if not ok then error(module, 0) end
  return module
end
boot.load_all = load_in_job

--- A module's table, to be filled by the module when somebody asks for a field.
local function stand_in(name)
  local tbl = {}
  setmetatable(tbl, {
    __index = function(_, key)
      if is_loading then return nil end
      load_in_job()
      return tbl[key]
    end,
    __pairs = function()
      load_in_job()
      return pairs(tbl)
    end,
  })
  loaded[name], modules[name] = tbl, tbl
  globals[name] = tbl
  return tbl
end

--- The place of one of Lua's own functions; other VMs have theirs there.
local function replace(library, field, fn)
  loaded[library][field] = fn
  boot.also[#boot.also + 1] = { fn, library, field }
end

--- What a coroutine of the user's has given: a wait of msys's in it suspends the session around it.
local function passed(co, ...)
  if scheduler then return scheduler.pass(co, ...) end
  return ...
end

local function resume(co, ...)
  if type(co) ~= "thread" then
    error(("bad argument #1 to 'resume' (coroutine expected, got %s)"):format(type(co)), 2)
  elseif scheduler and scheduler.is_held(co) then
    return false, "cannot resume non-suspended coroutine"
  end
  return passed(co, co_resume(co, ...))
end

local function status(co)
  if type(co) ~= "thread" then
    error(("bad argument #1 to 'status' (coroutine expected, got %s)"):format(type(co)), 2)
  end
  return scheduler and scheduler.is_held(co) and "normal" or co_status(co)
end

local function wrap_result(ok, ...)
  if not ok then
    -- Called in place of the generator, by a tail call.
    error((...), 2)
  end
  return ...
end

local function wrap(fn)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'wrap' (function expected, got %s)"):format(type(fn)), 2)
  end
  local co = co_create(fn)
  return function(...)
    return wrap_result(resume(co, ...))
  end
end

--- A module is loaded for all jobs, which takes more than Lua's `require`.
local function require_here(name)
  if worker then return worker.require(name) end
  if name == "_G" then return getfenv(0) end
  local module = loaded[name] --[[@as any]]
  -- LuaJIT keeps a userdata for one that is being loaded.
  if module and type(module) ~= "userdata" then return module end
  return load_in_job().require(name)
end

--- Plain `pairs` and `ipairs` go through shared tables, too.
local function pairs_here(tbl)
  if type(tbl) == "userdata" then
    load_in_job()
    return modules["msys.shared"].pairs(tbl)
  elseif tbl == base.msys or tbl == base.thread then
    load_in_job()
  end
  return pairs(tbl)
end

local function ipairs_here(tbl)
  if type(tbl) == "userdata" then
    load_in_job()
    return modules["msys.shared"].ipairs(tbl)
  end
  return ipairs(tbl)
end

local function install()
  base.msys, base.thread = stand_in "msys", stand_in "thread"
  base.msys._OSTLS = base.ostls
  globals._OSTLS = base.ostls
  globals._TLS = base.main_tls
  replace("coroutine", "resume", resume)
  replace("coroutine", "status", status)
  replace("coroutine", "wrap", wrap)
  replace("_G", "require", require_here)
  if not base.has_pairs then
    jit.on(pairs_here)
    jit.on(ipairs_here)
    replace("_G", "pairs", pairs_here)
    replace("_G", "ipairs", ipairs_here)
  end
end

--- Hands over to the scheduler, which has finalizers run again where an error of one does no harm.
local function go_on(session, ok, kind, ...)
  if ok and kind == END then return end
  collectgarbage "stop"
  sethook()
  return load_all().serve(session, ok, kind, ...)
end

--- A worker's life. With `turn`, it runs jobs with that until there is something for the scheduler; without, the pool
--- has an init, or a limit that is to be met at once by what is loaded.
---@param co? thread
---@param turn? function
function boot.serve(co, turn)
  if not turn or not co then return load_all().serve() end
  local session = base.new_session(co, true)
  return go_on(
    session,
    pcall(
      turn,
      true,
      math.huge,
      session,
      co,
      base.waiting,
      base.main_tls,
      xpcall,
      base.failure,
      base.jobs,
      base.WAIT
    )
  )
end

install()
return boot
