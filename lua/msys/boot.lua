--- A worker's VM until a job needs more than to run: `msys`, `thread` and what stands in the place of Lua's own
--- functions are there, and the modules behind them are loaded when they are first used.
---
--- `src/worker.rs` runs this in each new worker VM, and calls what it gives.

--- `open(name, …)` loads one of our modules, and gives nothing for another name; `pristine()` gives an environment for
--- those, with Lua's own functions as they were when the VM was new: jobs may have put others in their places.
---@type string, msys.base, fun(name: string, ...): any, fun(): table
local _, base, open, pristine = ...

local co_create, co_resume, co_status = coroutine.create, base.co_resume, base.co_status
local error, pairs, ipairs, pcall, setmetatable, type = error, pairs, ipairs, pcall, setmetatable, type
local collectgarbage, getfenv = collectgarbage, getfenv
local gethook, sethook = debug.gethook, debug.sethook
---@type table<any, any>
local loaded = package.loaded

-- As the scheduler, to which its stacks belong.
jit.off(true, true)

local globals = loaded._G

---@class msys.boot
---@field modules table<string, any>  those of ours that are loaded, whatever jobs do to `package.loaded`
---@field bundled table<string, fun(name: string): any>  what LuaJIT brings along and loads when it is first asked for
---@field loaded table  `package.loaded`, whatever jobs put in its place
---@field behind table  the metatable of the tables that stand for `msys` and `thread`
---@field is_loading boolean  the rest is being loaded
---@field also (function|string|false)[]  what is in the places of Lua's own functions, which other VMs have theirs in:
---function, library, field, and so on
local boot = { modules = { ["msys.base"] = base }, bundled = {}, loaded = loaded, is_loading = false }
local modules = boot.modules
modules["msys.boot"] = boot
loaded["msys.base"], loaded["msys.boot"] = base, boot
for name, loader in pairs(package.preload) do
  boot.bundled[name] = loader
end

--- `msys.worker` and the scheduler, once they are there.
---@type table?, table?
local worker, scheduler

--- Loads what a worker has besides; gives `msys.worker`.
---@return table
local function load_all()
  if worker then return worker end
  base.environment = pristine()
  worker = open("msys.loader", boot, open)
  scheduler = modules["msys.scheduler"]
  return worker
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

--- Of the tables of `msys` and `thread`, which are filled when somebody asks for a field.
boot.behind = {
  __index = function(tbl, key)
    if boot.is_loading then return nil end
    load_in_job()
    return tbl[key]
  end,
  __pairs = function(tbl)
    load_in_job()
    return pairs(tbl)
  end,
}

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

--- Hands over to the scheduler, which has finalizers run again where an error of one does no harm.
local function go_on(session, ok, kind, ...)
  --- The kind of event with which a worker is to end, as in src/host/jobs.rs.
  local END = 5
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

for _, name in ipairs { "msys", "thread" } do
  local stand_in = setmetatable({}, boot.behind)
  base[name], modules[name], loaded[name], globals[name] = stand_in, stand_in, stand_in, stand_in
end
globals.msys._OSTLS = base.ostls
globals._OSTLS = base.ostls
globals._TLS = base.main_tls

boot.also = {
  resume,
  "coroutine",
  "resume",
  status,
  "coroutine",
  "status",
  wrap,
  "coroutine",
  "wrap",
  require_here,
  "_G",
  "require",
  not base.has_pairs and pairs_here,
  "_G",
  "pairs",
  not base.has_pairs and ipairs_here,
  "_G",
  "ipairs",
}
jit.on(pairs_here)
jit.on(ipairs_here)
for place = 1, #boot.also, 3 do
  local fn, library, field = boot.also[place], boot.also[place + 1], boot.also[place + 2]
  if fn then loaded[library][field] = fn end
end

return boot
