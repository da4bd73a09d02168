--- A worker's VM until a job needs more than to run: `msys`, `thread` and what stands in the place of Lua's own
--- functions are there, and the modules behind them are loaded when they are first used.
---
--- `src/worker.rs` requires this in each new worker VM, and calls what it gives.

local base = require "msys.base"

local co_create, co_resume, co_status = coroutine.create, base.co_resume, base.co_status
local error, pairs, ipairs, pcall, setmetatable, type = error, pairs, ipairs, pcall, setmetatable, type
local getfenv, require = getfenv, require
local loaded, preload = package.loaded, package.preload

-- As the scheduler, to which its stacks belong.
jit.off(true, true)

local globals = loaded._G
--- What loads the modules that stand here as tables without contents.
local open_msys, open_thread = preload.msys, preload.thread

local boot = {
  --- What other VMs have under these names: triples of object, module, field.
  also = {},
  --- Lua's own.
  require = require,
}

--- `msys.worker` and the scheduler, once they are there.
---@type table?, table?
local worker, scheduler
local is_loading = false

local function open_all()
  open_msys "msys"
  open_thread "thread"
  return require "msys.worker"
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
    for name in pairs(preload) do
      if name ~= "msys" and name ~= "msys.base" and name ~= "msys.boot" and name:find "^msys%." then
        loaded[name] = nil
      end
    end
    error(module, 0)
  end
  scheduler = require "msys.scheduler"
  module.ready()
  worker = module
  return module
end
boot.load_all = load_all

--- A module's table, to be filled by the module when somebody asks for a field.
local function stand_in(name)
  local tbl = {}
  setmetatable(tbl, {
    __index = function(_, key)
      if is_loading then return nil end
      load_all()
      return tbl[key]
    end,
    __pairs = function()
      load_all()
      return pairs(tbl)
    end,
  })
  loaded[name] = tbl
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
  if is_loading then return require(name) end
  return load_all().require(name)
end

--- Plain `pairs` and `ipairs` go through shared tables, too.
local function pairs_here(tbl)
  if type(tbl) == "userdata" then
    load_all()
    return require("msys.shared").pairs(tbl)
  elseif tbl == base.msys or tbl == base.thread then
    load_all()
  end
  return pairs(tbl)
end

local function ipairs_here(tbl)
  if type(tbl) == "userdata" then
    load_all()
    return require("msys.shared").ipairs(tbl)
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
  -- A LuaJIT with the extensions of Lua 5.2 does so by itself.
  if pcall(pairs, setmetatable({}, { __pairs = error })) then
    jit.on(pairs_here)
    jit.on(ipairs_here)
    replace("_G", "pairs", pairs_here)
    replace("_G", "ipairs", ipairs_here)
  end
end

local function go_on(session, ...)
  return load_all().serve(session, ...)
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
