-- The end of a numeric `for` with a body of one line has that line, in a worker: so it has one guard a round there, by
-- which it can be stopped. All other lines are as they were written.

local helper = require "spec.helper"

local describe, it, _, after_each, assert = helper.busted()

--- Source of a function with loops of several kinds, and so many lines that a line's number has one, two or four bytes.
local function source(lines)
  return ([[
    return function(place)
      for i = 1, 3 do
        if place == 1 and i == 2 then error "first" end
      end%s
      for i = 1, 3 do
        for j = 1, 3 do
          if place == 2 and i + j == 5 then
            error "inner"
          end
        end
        if place == 3 and i == 3 then error "outer" end
      end
      for _, word in ipairs { "a", "b" } do
        if place == 4 and word == "b" then error "word" end
      end
      local n = 0
      while n < 3 do
        n = n + 1
      end
      for _ = 1, place == 5 and "x" or 0 do
      end
      error "last"
    end]]):format(("\n"):rep(lines))
end

describe("an error in a job's function says its line,", function()
  after_each(helper.clean)

  for _, lines in ipairs { 0, 253, 256, 300, 65520, 65536, 70000 } do
    it(("where that has %d lines more"):format(lines), function()
      local fn = assert(loadstring(source(lines), "=loops"))()
      for place = 0, 5 do
        local _, expected = pcall(fn, place)
        helper.with_pool({}, function(pool)
          local ok, err, info = require("msys").runInPool(pool, fn, { args = { place } })
          assert.same({ false, expected }, { ok, err })
          assert.matches("loops:" .. expected:match ":(%d+):" .. ": in function", info.traceback, 1, true)
        end)
      end
    end)
  end
end)

describe("the end of a numeric for", function()
  after_each(helper.clean)

  --- The lines that a line hook sees while `fn` runs, by its first line; a job.
  local function lines_of(fn)
    local first, seen = debug.getinfo(fn, "S").linedefined, {}
    jit.off(fn)
    debug.sethook(function(_, line)
      if debug.getinfo(2, "f").func == fn then seen[#seen + 1] = line - first end
    end, "l")
    fn()
    debug.sethook()
    return table.concat(seen, " ")
  end
  setfenv(lines_of, _G)

  it("has no line of its own in a worker", function()
    local function loop()
      local sum = 0
      for i = 1, 3 do
        sum = sum + i
      end
      return sum
    end
    assert.equal("1 2 3 2 3 2 3 2 5", lines_of(loop))
    helper.with_pool({}, function(pool)
      assert.equal(
        "1 2 3 3 3 5",
        helper.must(pool, function()
          return lines_of(loop)
        end)
      )
    end)
  end)

  it("has its own line where the body has more", function()
    local function loop()
      local sum = 0
      for i = 1, 3 do
        if i > 0 then
          sum = sum + i
        else
          sum = sum - i
        end
      end
      return sum
    end
    local lines = lines_of(loop)
    helper.with_pool({}, function(pool)
      assert.equal(
        lines,
        helper.must(pool, function()
          return lines_of(loop)
        end)
      )
    end)
  end)

  it("has none in an isolated execution", function()
    local workers = require("msys").workers
    local pool = assert(workers.newPool(1))
    local script = assert(workers.compile [[
      local seen = {}
      debug.sethook(function(_, line) seen[#seen + 1] = line end, "l")
      for i = 1, 3 do
        local x = i
      end
      debug.sethook()
      return table.concat(seen, " ")
    ]])
    -- Which is loaded as a job's function was before.
    helper.must("CPU", function() end)
    assert.same({ true, "3 4 4 4 6" }, { pool:submit(script) })
    pool:shutdown()
  end)
end)
