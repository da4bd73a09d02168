--- The environment of a job that names globals of its script's: what came along, and behind it the VM's globals.
---
--- `src/decode.rs` calls `new` and `leave_out`, and makes what is no more than an empty table with `behind` itself. Which globals a function names is found in its bytecode:
--- `src/usage.rs`.

local native = require "msys.native"
local refusal = require "msys.refusal"

-- This may run at exit: see msys.names.
jit.off(true, true)

local environment = {}

--- For `native.submit` and `native.pack`: whether globals come along (see src/host/jobs.rs).
local NO_CAPTURE = 4
environment.flags = 0

--- Turns it off or on that globals which a job's functions name come along; gives what it was.
---@param on? boolean  nil: as it is
---@return boolean before
function environment.capture(on)
  local before = environment.flags == 0
  if on ~= nil then environment.flags = on and 0 or NO_CAPTURE end
  return before
end

local globals = package.loaded._G

--- All environments made here that are still in use. To the encoder they are the globals, as are all tables with the
--- metatable `behind`.
---@type table<table, true>
local known = setmetatable({}, { __mode = "k" })

local behind = { __index = globals }
--- What a pool's init assigns is for all that follow.
local behind_init = { __index = globals, __newindex = globals }

--- A new environment: one that a job can look at as a table, so that it must look like the globals, or a pool's init's.
---@param init boolean
---@return table
function environment.new(init)
  local env = {}
  known[env] = true
  if init then return setmetatable(env, behind_init) end
  for name, value in next, globals do
    env[name] = value
  end
  env._G = env
  -- One of its own, since scripts give theirs further fields.
  return setmetatable(env, { __index = globals })
end

--- Makes reading a global raise, unless this VM has one of that name.
---@param env table
---@param name string
---@param why string
function environment.leave_out(env, name, why)
  local meta = getmetatable(env)
  known[env] = true
  if not meta.left_out then
    local left_out = {}
    meta = { __newindex = meta.__newindex, left_out = left_out }
    function meta.__index(_, key)
      local value = globals[key]
      local text = value == nil and left_out[key]
      if text then error(("global '%s' did not come along: it cannot be sent (%s)"):format(key, text), 2) end
      return value
    end
    setmetatable(env, meta)
  end
  meta.left_out[name] = why
end

--- Globals that every VM has from the start.
local function builtin()
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
  return env == globals or known[env] ~= nil or getmetatable(env) == behind
end

native.set_environment(behind, environment.new, environment.leave_out, known, refusal.kind_of, builtin)

return environment
