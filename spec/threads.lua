--- What the specs of `thread` share: meeting points of sessions in different VMs, ways to call something that waits,
--- and what a mistake raises.

local msys = require "msys"
local thread = require "thread"

local threads = {}

--- The longest that anything is waited for, in seconds: `helper.LIMIT`, which a worker's VM does not load.
local LIMIT = 10

--- Waits until `fn` gives a true value, in any VM; raises at the limit.
---@param fn fun(): any
---@param what? string
function threads.await(fn, what)
  local deadline = os.time() + LIMIT + 1
  while not fn() do
    if os.time() >= deadline then error((what or "await") .. ": not within the limit", 2) end
    msys.sleep(0.001)
  end
end

--- A function for `count` sessions of any VMs: each call waits until all have called it.
---@param count integer
---@return fun()
function threads.barrier(count)
  local arrived = thread.counter()
  return function()
    arrived:add()
    threads.await(function()
      return arrived:get() >= count
    end, "a barrier")
  end
end

--- What comes next through a channel; raises at the limit.
---@param channel thread.Channel
---@return any
function threads.take(channel)
  local received, value = channel:receive(LIMIT)
  if not received then error("nothing in the channel: " .. tostring(value), 2) end
  return value
end

--- Locks, or raises at the limit: for tests that would hang otherwise.
function threads.lock(mutex)
  if not mutex:lock(LIMIT) then error(tostring(mutex) .. ": not to be had within the limit", 2) end
end

--- Calls `fn(...)` from within a C function that a session cannot be suspended in; gives its first results.
---@param fn fun(...): any, any
function threads.within_sort(fn, ...)
  local args, results = { ... }, nil
  table.sort({ 2, 1 }, function(a, b)
    results = results or { fn(unpack(args)) }
    return a < b
  end)
  return unpack(results)
end

--- The same, in a coroutine that is none of msys's.
function threads.within_coroutine(fn, ...)
  return coroutine.wrap(fn)(...)
end

--- Ways to call `fn(...)`, by name.
threads.ways = {
  ["by itself"] = function(fn, ...)
    return fn(...)
  end,
  ["inside pcall"] = function(fn, ...)
    return select(2, assert(pcall(fn, ...)))
  end,
  ["inside a comparator of table.sort"] = threads.within_sort,
  ["inside a coroutine of the script's"] = threads.within_coroutine,
  ["inside a metamethod"] = function(fn, ...)
    local args, results = { ... }, nil
    local object = setmetatable({}, {
      __add = function()
        results = { fn(unpack(args)) }
      end,
    })
    local _ = object + 1
    return unpack(results)
  end,
  ["inside an iterator"] = function(fn, ...)
    local args, results = { ... }, nil
    for found in
      function()
        if results then return nil end
        results = { fn(unpack(args)) }
        return results
      end
    do
      results = found
    end
    return unpack(results)
  end,
}

--- What `code` raises, that sees `msys`, `thread` and then `names` by their names. It stands in line 3 of `case`.
---@param code string
---@param names? table<string, any>
---@return any
function threads.error_of(code, names)
  local chunk = assert(loadstring("local msys, thread = ...\n\n" .. code .. "\nreturn", "=case"))
  setfenv(chunk, setmetatable(names or {}, { __index = _G }))
  local ok, err = pcall(chunk, msys, thread)
  if ok then error("it does not raise: " .. code, 2) end
  return err
end

--- An error of the scheduler's that names `lock`, in a list as of `helper.catching`.
---@param errors { err: any, info: table }[]
---@param lock any  tostring of it when it is free
---@return { err: any, info: table }?
function threads.report_of(errors, lock)
  local name = tostring(lock):match "^[^(]+0x%x+" or lock
  for _, report in ipairs(errors) do
    if type(report.err) == "string" and report.err:find(name, 1, true) then return report end
  end
  return nil
end

return threads
