--- The environment of a job that names globals of its script's: what came along, and behind it the VM's globals.
---
--- `src/decode.rs` calls `new` and `leave_out`, and makes what is no more than an empty table with `behind` itself.
--- Which globals a function names is found in its bytecode:
--- `src/usage.rs`.

local base = require "msys.base"
local native = require "msys.native"
local refusal = require "msys.refusal"

-- This may run at exit: see msys.names.
jit.off(true, true)

local environment = {}

--- For `native.submit` and `native.pack`: whether globals come along (see src/host/jobs.rs).
local NO_CAPTURE = 4
environment.flags = 0
---@type boolean
environment.all_shared = false

--- Turns it off or on that globals which a job's functions name come along; gives what it was.
---@param on? boolean  nil: as it is
---@return boolean before
function environment.capture(on)
  local before = environment.flags == 0
  if environment.all_shared then return before end
  if on ~= nil then environment.flags = on and 0 or NO_CAPTURE end
  return before
end

--- No global comes along with a job any more: all VMs see them (`msys.globals`).
function environment.share_all()
  environment.flags = NO_CAPTURE
  environment.all_shared = true
end

local globals = package.loaded._G --[[@as table]]

--- All environments made here that are still in use. To the encoder they are the globals, as are all tables with the
--- metatable `behind`.
---@type table<table, true>
local known = setmetatable({}, { __mode = "k" })

--- Raises where a job reads a global that was left out.
local function missing(name, why)
  error(("global '%s' did not come along: it cannot be sent (%s)"):format(name, why), 3)
end

--- The metatable of an environment in which a global of the VM's was set to nil, or one left out.
local function meta_with_less()
  local meta = { removed = {}, left_out = {} }
  function meta.__index(_, key)
    if meta.removed[key] then return nil end
    local value = globals[key]
    if value == nil and meta.left_out[key] then missing(key, meta.left_out[key]) end
    return value
  end
  function meta.__newindex(env, key, value)
    if value == nil then
      meta.removed[key] = true
    else
      rawset(env, key, value)
    end
  end
  return meta
end

local behind = { __index = globals }
function behind.__newindex(env, key, value)
  if value ~= nil then
    rawset(env, key, value)
  elseif globals[key] ~= nil then
    known[env] = true
    local meta = meta_with_less()
    meta.removed[key] = true
    setmetatable(env, meta)
  end
end

--- The VM's globals as they were when they were last copied: shared by the environments of which that is true.
local copied = {}

--- A copy of the globals, for a job that can look at its environment as a table.
local function copy()
  local env, fits = {}, true
  for name, value in next, globals do
    env[name] = value
    fits = fits and rawequal(copied[name], value)
  end
  if not fits then
    copied = {}
    for name, value in next, env do
      copied[name] = value
    end
  end
  local was = copied
  env._G = env
  -- One of its own, since scripts give theirs further fields. What is behind it has been defined since.
  return setmetatable(env, {
    copied = was,
    __index = function(_, key)
      local value = globals[key]
      return not rawequal(value, was[key]) and value or nil
    end,
  })
end

--- The environment of a pool's init. What it assigns is for all that follow; what came along is seen where the VM has
--- nothing of that name.
local function for_init()
  local sent = {}
  return setmetatable({}, {
    sent = sent,
    __newindex = globals,
    __index = function(_, key)
      local value = globals[key]
      if value ~= nil then return value end
      return sent[key]
    end,
  })
end

--- A new environment: one that a job can look at as a table, so that it must look like the globals, or a pool's init's.
---@param init boolean
---@return table
function environment.new(init)
  local env = init and for_init() or copy()
  known[env] = true
  return env
end

--- Makes reading a global raise, unless this VM has one of that name.
---@param env table
---@param name string
---@param why string
function environment.leave_out(env, name, why)
  local meta = getmetatable(env)
  if meta == behind then
    meta = meta_with_less()
    known[env] = true
    setmetatable(env, meta)
  elseif not meta.left_out then
    local index = meta.__index
    meta.removed, meta.left_out = meta.removed or {}, {}
    function meta.__index(_, key)
      local value = index(env, key)
      if value == nil and meta.left_out[key] and not meta.removed[key] then
        missing(key, meta.left_out[key])
      end
      return value
    end
    if not meta.__newindex then
      function meta.__newindex(_, key, value)
        if value == nil then
          meta.removed[key] = true
        else
          rawset(env, key, value)
        end
      end
    end
  end
  meta.left_out[name] = why
end

--- Globals that every VM has from the start, a name a line.
function environment.builtin()
  local list = { "msys", "thread", "_OSTLS", "_TLS" }
  local others = native.fresh_names [[
    local list = {}
    for name in next, _G do
      list[#list + 1] = name
    end
    return table.concat(list, "\n")
  ]]
  return table.concat(list, "\n") .. "\n" .. (others or "")
end

function refusal.is_globals(env)
  return env == globals or env == base.environment or known[env] ~= nil or getmetatable(env) == behind
end

native.set_environment(
  behind,
  environment.new,
  environment.leave_out,
  known,
  refusal.kind_of,
  environment.builtin
)

return environment
