--- Isolated workers: bytecode that runs with a context and a deadline, and leaves nothing behind (the second seed).
---
---     local pool = assert(workers.newPool(4))
---     local bytecode = assert(workers.compile([[ return ctx.message .. " from Lua" ]], "script"))
---     local ctx = workers.newContext()
---     ctx:set("message", "Hello")
---     print(pool:submit(bytecode, ctx))
---
--- Each execution has globals of its own; what one leaves behind is not seen by the next (`src/isolate`). LuaJIT does
--- not verify bytecode: never run that of strangers.

local native = require "msys.native"
local scheduler = require "msys.scheduler"
local submit = require "msys.submit"
local threadpool = require "msys.threadpool"

local getmetatable, setmetatable, type = getmetatable, setmetatable, type

jit.off(true, true)

---@class msys.workers
local workers = {}

-- As in src/host/jobs.rs: a job that changes nothing of its submitter's.
local NOT_IN_PLACE = 8

--- Values for a script, which sees copies of them in its global `ctx`.
---@class msys.Context
---@field values table
local Context = {}
Context.__index = Context
Context.__name = "msys.context"
function Context.__tostring(ctx)
  return ("msys.context: %p"):format(ctx)
end

local function check_context(self, method)
  if getmetatable(self) ~= Context then
    error(("msys.context:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

--- Finds what cannot be in a context: the path to it and its type. Of any depth.
local function foreign(value, path)
  local todo, seen, at = { { value, path } }, {}, 1
  while at > 0 do
    local item, where = todo[at][1], todo[at][2]
    todo[at] = nil
    at = at - 1
    local kind = type(item)
    if kind == "userdata" or kind == "thread" or kind == "cdata" then
      local name = getmetatable(item) ~= nil and scheduler.text_of(item):match "^[%w_.]+" or kind
      return ("%s (%s)"):format(where, name)
    elseif kind == "table" and not seen[item] then
      seen[item] = true
      for key, inner in next, item do
        todo[at + 1] = { key, "a key of " .. where }
        -- A path of many names says no more than its end.
        todo[at + 2] = { inner, ("%s.%s"):format(#where < 200 and where or "…", scheduler.text_of(key)) }
        at = at + 2
      end
    end
  end
end

--- Sets a value.
---@param key string|number|boolean
---@param value any  what can be copied into a VM that has nothing but LuaJIT's libraries: no handles, no FFI objects
function Context:set(key, value)
  check_context(self, "set")
  local kind = type(key)
  if kind ~= "string" and kind ~= "number" and kind ~= "boolean" or key ~= key then
    error("msys.context:set: key must be a string, a number or a boolean, got " .. kind, 2)
  end
  local found = foreign(value, "ctx." .. tostring(key))
  if found then error("msys.context:set: cannot send " .. found, 2) end
  self.values[key] = value
end

--- The value that was set, or nil.
---@param key string|number|boolean
---@return any
function Context:get(key)
  check_context(self, "get")
  return self.values[key]
end

--- A new, empty context.
---@return msys.Context
function workers.newContext()
  return setmetatable({ values = {} }, Context)
end

--- What is wrong with bytecode, or nil: whether LuaJIT is to see it at all.
local function wrong_bytecode(bytecode)
  local own = string.dump(workers.newContext)
  if bytecode:sub(1, 3) ~= "\27LJ" then
    if bytecode:byte(1) == 27 then return "this is bytecode of another Lua, and not of LuaJIT" end
    return "this is text, and no bytecode (compile it first)"
  end
  local version, flags = bytecode:byte(4, 5)
  local own_version, own_flags = own:byte(4, 5)
  if not flags then
    return "the bytecode is cut off"
  elseif version ~= own_version then
    return ("the bytecode has version %d, and this LuaJIT's is %d"):format(version, own_version)
  elseif bit.band(flags, 8) ~= bit.band(own_flags, 8) then
    local with = bit.band(flags, 8) ~= 0
    return ("the bytecode was made %s GC64 mode, and this LuaJIT runs %s it"):format(
      with and "in" or "without",
      with and "without" or "in"
    )
  elseif bit.band(flags, 1) ~= bit.band(own_flags, 1) then
    return "the bytecode is of a machine with another order of bytes"
  elseif bit.band(flags, bit.bnot(15)) ~= 0 then
    return "the bytecode has features that this LuaJIT does not know"
  end
end

--- Compiles a script for `pool:submit`: once, to be used any number of times.
---@param source string
---@param name? string  what errors call it
---@return string? bytecode
---@return string? err  with name and line
function workers.compile(source, name)
  if type(source) ~= "string" then
    error("msys.workers.compile: source must be a string, got " .. type(source), 2)
  elseif name ~= nil and type(name) ~= "string" then
    error("msys.workers.compile: name must be a string, got " .. type(name), 2)
  elseif source:byte(1) == 27 then
    return nil, ("%s: source must be text, got bytecode"):format(name or "script")
  end
  local fn, err = loadstring(source, "=" .. (name or "script"))
  if not fn then return nil, err end
  return string.dump(fn)
end

--- Pools that look like `threadpool`'s, with the methods of isolated ones.
---@class msys.IsolatedPool
---@field pool msys.Pool
---@field id integer
---@field single boolean
local Pool = {}
Pool.__index = Pool
Pool.__name = "msys.workers"
function Pool.__tostring(self)
  return ("msys.workers: %s (%d workers)"):format(self.pool.name, self:activeWorkers())
end

local function check_pool(self, method)
  if getmetatable(self) ~= Pool then
    error(("msys.workers:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

local Failure = scheduler.Failure

--- In a worker: gives what an execution gives, or raises.
local function checked(ok, ...)
  if ok then return ... end
  local err, traceback = ...
  local kind
  if ok == nil then
    traceback, kind = err, err:find("cannot send", 1, true) and "unsendable" or nil
  end
  error(setmetatable({ err = err, traceback = traceback, kind = kind }, Failure), 0)
end

--- What a worker is sent.
---@param bytecode string
---@param values table
---@param single boolean
function workers.execute(bytecode, values, single)
  if not native.is_worker then error("msys.workers.execute: this is for workers", 2) end
  return checked(native.execute(bytecode, values, single))
end

-- They stand for tail calls: level 2 is the caller's.
local function refused(text, ...)
  if text then error("msys.workers:submit: " .. text:gsub("argument 2%.?", "ctx "), 2) end
  return ...
end

local OPTIONS = { timeout = "number", cancel = "userdata" }

--- Runs bytecode with a context, and gives what the script returned: `true, results...`, or `false, err, info` with
--- `info.kind`. Suspends the session.
---@async
---@param bytecode string
---@param ctx? msys.Context
---@param options? { timeout?: number, cancel?: msys.Canceller }
---@return boolean ok
---@return any ...
function Pool:submit(bytecode, ctx, options)
  check_pool(self, "submit")
  if type(bytecode) ~= "string" then
    error("msys.workers:submit: bytecode must be a string, got " .. type(bytecode), 2)
  end
  local wrong = wrong_bytecode(bytecode)
  if wrong then error("msys.workers:submit: " .. wrong, 2) end
  if ctx ~= nil and getmetatable(ctx) ~= Context then
    error("msys.workers:submit: ctx must be what msys.workers.newContext gives, got " .. type(ctx), 2)
  end
  local limits
  if options ~= nil then
    if type(options) ~= "table" then
      error("msys.workers:submit: options must be a table, got " .. type(options), 2)
    end
    for key in pairs(options) do
      if not OPTIONS[key] then
        error(
          ("msys.workers:submit: unknown option '%s', expected cancel or timeout"):format(tostring(key)),
          2
        )
      end
    end
    local fine, text = submit.check_options(options)
    if not fine then error("msys.workers:submit: " .. text, 2) end
    limits = submit.limits_of(options.timeout, options.cancel)
  end
  local values = ctx and ctx.values or {}
  local id = self.id
  return refused(
    submit.run(
      NOT_IN_PLACE,
      id,
      id,
      workers.execute,
      nil,
      nil,
      nil,
      nil,
      limits,
      bytecode,
      values,
      self.single
    )
  )
end

--- Finishes the queued executions, then ends the workers. Later submits give `false, err, { kind = "shutdown" }`.
---@async
---@param options? { drop?: boolean }
---@return boolean
function Pool:shutdown(options)
  check_pool(self, "shutdown")
  return self.pool:shutdown(options)
end

--- How many workers are alive.
---@return integer
function Pool:activeWorkers()
  check_pool(self, "activeWorkers")
  return (native.stat(self.id) or { num_threads = 0 }).num_threads
end

--- Counts and averages, as of `msys.threadpool.stat`.
---@return msys.Stat
function Pool:stat()
  check_pool(self, "stat")
  return native.stat(self.id) --[[@as msys.Stat]]
end

local pools = 0

--- Creates a pool of isolated workers.
---
--- `options.fresh`: each execution has a new VM, whatever the last one did in its own. `memory_limit`: of each VM, in
--- bytes. `backlog`, `when_full`, `max_message`, `stack_size`, `interruptible`, `max_abandoned`: as of
--- `msys.threadpool.create`.
---@param count integer  of workers
---@param options? table
---@return msys.IsolatedPool?
---@return string? err
function workers.newPool(count, options)
  if type(count) ~= "number" then
    return nil, "msys.workers.newPool: the number of workers must be a number, got " .. type(count)
  end
  if options ~= nil and type(options) ~= "table" then
    return nil, "msys.workers.newPool: options must be a table, got " .. type(options)
  end
  pools = pools + 1
  local all = { name = ("workers-%d"):format(pools), concurrency = count, sessions = 1 }
  if native.is_worker then all.name = ("workers-%d of %s"):format(pools, native.pool_name()) end
  local single = false
  for key, value in pairs(options or {}) do
    if key == "fresh" then
      if type(value) ~= "boolean" then
        return nil, "msys.workers.newPool: fresh must be a boolean, got " .. type(value)
      end
      single = value
    elseif all[key] ~= nil or key == "init" then
      return nil, ("msys.workers.newPool: unknown option '%s'"):format(tostring(key))
    else
      all[key] = value
    end
  end
  local ok, pool = pcall(threadpool.create, all)
  while not ok and type(pool) == "string" and pool:find("already a pool", 1, true) do
    pools = pools + 1
    all.name = ("workers-%d"):format(pools)
    ok, pool = pcall(threadpool.create, all)
  end
  if not ok then
    if scheduler.note_interrupt(pool) then error(pool, 0) end
    return nil, (tostring(pool):gsub("^.-msys%.threadpool%.create: ", "msys.workers.newPool: "))
  end
  native.start_workers(pool.id)
  return setmetatable({ pool = pool, id = pool.id, single = single }, Pool)
end

return workers
