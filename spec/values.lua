--- What the specs of what crosses share: values sent to a job, and sent back.

local helper = require "spec.helper"

local values = {}

--- What a job gives that calls `fn` with these arguments.
---@param fn fun(...): ...
---@return any ...
function values.run(fn, ...)
  return helper.must("CPU", fn, ...)
end

--- The values as they are after two crossings.
---@return any ...
function values.echo(...)
  return values.run(function(...)
    return ...
  end, ...)
end

return values
