--- What the specs of what crosses share: values sent to a job, and sent back.

local msys = require "msys"

local values = {}

local function checked(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

--- What a job gives that calls `fn` with these arguments: copies, where values are copied.
---@param fn fun(...): ...
---@return any ...
function values.run(fn, ...)
  local args = { n = select("#", ...), ... }
  return checked(msys.runInPool("CPU", fn, { args = args, in_place = false }))
end

--- The values as they are after two crossings.
---@return any ...
function values.echo(...)
  return values.run(function(...)
    return ...
  end, ...)
end

return values
