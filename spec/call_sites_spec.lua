-- Synchronous calls from where a session can hardly be suspended: iterators, metamethods, C callbacks, coroutines.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
local must, in_sessions, with_two = helper.must, helper.in_sessions, helper.with_two

--- Where a call can be made from. Each gives `call(21)`, which gives 42.
local places = {}

function places.pcall(call)
  return select(2, pcall(call, 21))
end

function places.xpcall(call)
  return select(
    2,
    xpcall(function()
      return call(21)
    end, debug.traceback)
  )
end

places["the handler of an xpcall"] = function(call)
  return select(2, xpcall(error, call, 21))
end

places["a pcall that fails afterwards"] = function(call)
  return select(
    2,
    pcall(function()
      error(call(21), 0)
    end)
  )
end

places["an iterator"] = function(call)
  local sum = 0
  for value in
    function(_, last)
      local value = call((last or 6) + 1)
      return value < 100 and value or nil
    end
  do
    sum = sum + value
  end
  -- 14, 30, 62
  return sum - 64
end

places["a table.sort comparator"] = function(call)
  local list = { 3, 42, 2, 1 }
  table.sort(list, function(a, b)
    return call(a) > call(b)
  end)
  return list[1]
end

places["a string.gsub callback"] = function(call)
  return tonumber((("21"):gsub("%d+", call)))
end

places["a coroutine.wrap generator"] = function(call)
  local sum = 0
  for value in
    coroutine.wrap(function()
      for n = 1, 6 do
        local value = call(n)
        msys.sleep(0.0005)
        coroutine.yield(value)
        msys.yield()
      end
    end)
  do
    sum = sum + value
  end
  return sum
end

places["coroutines in coroutines"] = function(call)
  local function deeper(n)
    if n == 0 then return call(21) end
    return coroutine.wrap(function()
      return deeper(n - 1)
    end)()
  end
  return deeper(10)
end

places["a loader of load"] = function(call)
  local text
  return load(function()
    text = not text and ("return %d"):format(call(21)) or nil
    return text
  end)()
end

for event, expression in pairs {
  __index = "object.field",
  __add = "object + 1",
  __unm = "-object",
  __concat = "object .. ''",
  __call = "object()",
  __lt = "object < object and 42",
  __eq = "object == setmetatable({}, getmetatable(object)) and 42",
  __tostring = "tonumber(tostring(object))",
} do
  local use = assert(loadstring("local object = ... return " .. expression))
  places["the metamethod " .. event] = function(call)
    return use(setmetatable({}, {
      [event] = function()
        local value = call(21)
        return event == "__tostring" and tostring(value) or value
      end,
    }))
  end
end

describe("a synchronous call from", function()
  after_each(helper.clean)

  for place, body in pairs(places) do
    it(place .. " gets its answer, in plain code, in sessions and in jobs", function()
      helper.with_pool({ concurrency = 1, sessions = 1 }, function(pool)
        local function call(n)
          return must(pool, function()
            return 2 * n
          end)
        end
        assert.equal(42, body(call))
        -- Several at once: waits that cannot suspend run the other sessions, which wait in the same way.
        in_sessions(20, function()
          assert.equal(42, body(call))
        end)
        in_sessions(20, function()
          assert.equal(42, must(pool, body, call))
        end)
      end)
    end)
  end

  it("a coroutine that another function resumes inside a comparator leaves its session sound", function()
    helper.with_pool({}, function(pool)
      local function resumed_while_sorting(wait)
        local co = coroutine.create(function()
          while true do
            wait()
            coroutine.yield "yielded"
          end
        end)
        local values = {}
        table.sort({ 3, 1, 2 }, function(a, b)
          values[#values + 1] = select(2, coroutine.resume(co))
          return a < b
        end)
        for _, value in ipairs(values) do
          if value ~= "yielded" then error(tostring(value)) end
        end
        -- Whatever was left behind would now end this wait, or find the session gone.
        return must(pool, function()
          msys.sleep(0.01)
          return "sound"
        end)
      end
      for _, wait in ipairs {
        msys.yield,
        function()
          msys.sleep(0.001)
        end,
        function()
          must(pool, function() end)
        end,
      } do
        in_sessions(5, function()
          assert.equal("sound", must(pool, resumed_while_sorting, wait))
        end)
      end
    end)
  end)

  it(
    "a coroutine that an earlier job of its worker made gets its answer in the job that resumes it",
    function()
      helper.with_pool({}, function(pool)
        must(pool, function()
          _OSTLS.resume = coroutine.wrap(function()
            for n = 1, 100 do
              coroutine.yield(must(pool, function()
                return n * n
              end))
            end
          end)
        end)
        for n = 1, 5 do
          assert.equal(
            n * n,
            must(pool, function()
              return _OSTLS.resume()
            end)
          )
        end
      end)
    end
  )

  it("comparators of very many jobs at once gets its answer", function()
    with_two({ concurrency = 1, sessions = 1000 }, function(a)
      helper.with_pool({}, function(b)
        local done = 0
        for _ = 1, 3000 do
          msys.runInPool(a, function()
            table.sort({ 2, 1 }, function(x, y)
              must(b, msys.sleep, 0.02)
              return x < y
            end)
          end, function(ok)
            done = done + (ok and 1 or 0)
          end, SCHED)
        end
        helper.eventually(function()
          return done == 3000
        end, "3000 jobs that wait in comparators")
      end)
    end)
  end)
end)

describe("a job", function()
  after_each(helper.clean)

  it("whose generator fails gets the message that plain Lua gives", function()
    local function message()
      local next_value = coroutine.wrap(function()
        error "no more"
      end)
      local function consume()
        local value = next_value()
        return value
      end
      return select(2, pcall(consume))
    end
    assert.equal(message(), must("CPU", message))
  end)

  it("sees the coroutines it made as plain Lua shows them", function()
    local function seen()
      local found = {}
      local function add(...)
        found[#found + 1] =
          table.concat({ select("#", ...), tostring((...)), tostring((select(2, ...))) }, " ")
      end
      local co = coroutine.create(function(...)
        add(...)
        add(coroutine.yield(1, nil))
        error {}
      end)
      add(coroutine.status(co))
      add(coroutine.resume(co, nil, nil))
      add(coroutine.status(co))
      add((coroutine.resume(co)))
      add(coroutine.status(co))
      add(coroutine.resume(co))
      add(pcall(coroutine.wrap(error), nil))
      add((pcall(coroutine.wrap, 1)))
      add(coroutine.isyieldable())
      return found
    end
    assert.same(msys.run(seen), must("CPU", seen))
  end)
end)
