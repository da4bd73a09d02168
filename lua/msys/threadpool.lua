--- Pools: create, look up, measure.

local environment = require "msys.environment"
local names = require "msys.names"
local native = require "msys.native"
local refusal = require "msys.refusal"
local scheduler = require "msys.scheduler"

-- This may run at exit, in a finalizer, where LuaJIT does not leave a compiled loop over `next` (see ARCHITECTURE.md).
jit.off(true, true)

---@class msys.threadpool
local threadpool = {}

--- A pool, the same object for all who look it up in one VM. It crosses to other VMs as itself.
---@class msys.Pool
---@field id integer
---@field name string
local Pool = {}

--- Pool ids by what callers give: names in any case, ids, pool objects. Filled by `resolve`.
---@type table<any, integer>
threadpool.ids = setmetatable({}, { __mode = "k" })

--- Where this host's `require` looks, as Rust knows it.
---@type { path?: string, cpath?: string }
local followed = {}
threadpool.followed = followed
local is_worker = native.is_worker

--- Tells Rust where this host's `require` looks, when that has changed. A worker looks where the host of its job does.
function threadpool.follow_paths()
  if not is_worker and (followed.path ~= package.path or followed.cpath ~= package.cpath) then
    followed.path, followed.cpath = package.path, package.cpath
    native.set_paths(followed.path, followed.cpath)
  end
end

local function quote(value)
  return type(value) == "string" and ("'%s'"):format(value) or tostring(value)
end

--- The id of a pool, or nil.
---@param given any
---@return integer?
function threadpool.resolve(given)
  local kind = type(given)
  local id
  if kind == "userdata" then
    id = native.handle(given)
  elseif kind == "string" or kind == "number" then
    id = native.find(given)
  end
  if id then threadpool.ids[given] = id end
  return id
end

--- Forgets what was resolved to this id: the pool was shut down, and its name may be another's now.
---@param id integer
function threadpool.forget(id)
  for given, known in pairs(threadpool.ids) do
    if known == id then threadpool.ids[given] = nil end
  end
end

--- What is wrong with a pool that could not be resolved.
---@param given any
---@return string
function threadpool.unknown(given)
  local kind = type(given)
  if kind == "string" or kind == "number" then
    return ("unknown pool %s, known are: %s"):format(quote(given), native.known())
  end
  return "pool must be a name, an id or a pool, got " .. kind
end

---@param id integer
---@return string
function threadpool.name_of(id)
  local _, name = native.find(id)
  return name or tostring(id)
end

-- A flag of `native.pack`, as in src/host/jobs.rs.
local SCANNED = 2

--- Packs `init`; gives nil, or what is wrong.
local function pack(init, scanned)
  local packed, reason, value, why = native.pack(environment.flags + (scanned and SCANNED or 0), init)
  if packed then
    return
  elseif reason == "scan" then
    names.scan()
    return pack(init, true)
  elseif reason == "refused" then
    return "init: cannot send " .. refusal.explain({ { name = "the closure", value = init } }, value, why)
  end
  return "init: " .. tostring(value)
end

local OPTION_TYPES = {
  backlog = "number",
  concurrency = "number",
  init = "function",
  interruptible = "boolean",
  max_abandoned = "number",
  max_message = "number",
  memory_limit = "number",
  name = "string",
  sessions = "number",
  stack_size = "number",
  when_full = "string",
}

--- What is wrong with an option's type, or nil; values and names are checked where they are used.
local function wrong_type(key, value)
  local expected = OPTION_TYPES[key]
  if key == "when_full" and value ~= "wait" and value ~= "fail" then
    local given = type(value) == "string" and quote(value) or type(value)
    return "when_full must be 'wait' or 'fail', got " .. given
  elseif expected and type(value) ~= expected then
    return ("%s must be a %s, got %s"):format(key, expected, type(value))
  elseif not expected then
    local known = {}
    for name in pairs(OPTION_TYPES) do
      known[#known + 1] = name
    end
    table.sort(known)
    return ("unknown option '%s', expected one of %s"):format(tostring(key), table.concat(known, ", "))
  end
end

--- Creates a pool. Its workers start when there is work.
---@param options msys.PoolOptions
---@return msys.Pool
function threadpool.create(options)
  if type(options) ~= "table" then
    error("msys.threadpool.create: options must be a table, got " .. type(options), 2)
  end
  threadpool.follow_paths()
  ---@type table<string, any>
  local plain = {}
  ---@cast options table<any, any>
  for key, value in pairs(options) do
    local text = wrong_type(key, value)
    if text then error("msys.threadpool.create: " .. text, 2) end
    plain[key] = value
  end
  if plain.init then
    if
      (debug.getinfo(plain.init, "S") --[[@as debuglib.DebugInfo]]).what == "C"
    then
      error("msys.threadpool.create: init must be a Lua function, got a C function", 2)
    end
    local text = pack(plain.init, false)
    if text then error("msys.threadpool.create: " .. text, 2) end
    plain.init = nil
  end
  local id, text = native.create(plain)
  if not id then error("msys.threadpool.create: " .. text, 2) end
  return native.handle(id)
end

--- Looks a pool up: a name gives its id, an id or a pool its name, what is unknown nil.
---@param given string|integer|msys.Pool
---@return integer|string|nil
function threadpool.find(given)
  if type(given) == "userdata" then
    given = native.handle(given) or error("msys.threadpool.find: not a pool", 2)
  end
  local id, name = native.find(given)
  if type(given) == "string" then return id end
  return name
end

--- How many pools take jobs.
---@return integer
function threadpool.count()
  return native.count()
end

--- Counts and averages of a pool; nil for an unknown one.
---@param given string|integer|msys.Pool
---@return msys.Stat?
function threadpool.stat(given)
  local id = threadpool.resolve(given)
  return id and native.stat(id)
end

local function id_of(pool, method)
  local id = type(pool) == "userdata" and native.handle(pool)
  if not id then error(("msys pool:%s: not a pool (call it with a colon)"):format(method), 3) end
  return id
end

--- Sets how many workers the pool may have. Workers too many end when they have no job.
---@param concurrency integer
function Pool:resize(concurrency)
  local id = id_of(self, "resize")
  if type(concurrency) ~= "number" then
    error("msys pool:resize: concurrency must be a number, got " .. type(concurrency), 2)
  end
  local ok, text = native.resize(id, concurrency)
  if not ok then error("msys pool:resize: " .. text, 2) end
end

--- Ends the pool: refuses new jobs, finishes the queued ones (or drops them, with `drop`), and returns when its workers
--- have ended. A job that is itself awaited by the pool's end does not wait. Calling it twice is fine.
---@async
---@param options? { drop?: boolean }
---@return boolean
function Pool:shutdown(options)
  local id = id_of(self, "shutdown")
  if options ~= nil and type(options) ~= "table" then
    error("msys pool:shutdown: options must be a table, got " .. type(options), 2)
  end
  for key in pairs(options or {}) do
    if key ~= "drop" then
      error(("msys pool:shutdown: unknown option '%s', expected drop"):format(tostring(key)), 2)
    end
  end
  if options and options.drop ~= nil and type(options.drop) ~= "boolean" then
    error("msys pool:shutdown: option 'drop' must be a boolean, got " .. type(options.drop), 2)
  end
  native.shutdown(id, options ~= nil and options.drop == true)
  threadpool.forget(id)
  local session = scheduler.current()
  if not native.has_ancestor_in(session and session.slot, id) then
    local ticket = scheduler.new_ticket()
    native.await_end(id, ticket)
    scheduler.wait(ticket)
  end
  return true
end

--- Counts and averages: `msys.threadpool.stat` of this pool.
---@return msys.Stat
function Pool:stat()
  return native.stat(id_of(self, "stat")) --[[@as msys.Stat]]
end

local meta = native.pool_metatable
meta.__name = "msys.pool"
meta.__index = function(pool, key)
  if key == "id" then
    return native.handle(pool)
  elseif key == "name" then
    return threadpool.name_of(native.handle(pool))
  end
  return Pool[key]
end
meta.__tostring = function(pool)
  local id = native.handle(pool)
  return ("msys.pool: %s (id %d)"):format(threadpool.name_of(id), id)
end

return threadpool
