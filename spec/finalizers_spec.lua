--- Finalizers that raise: LuaJITs before 2024 raise that error in whatever runs when the collector does, which is the
--- next job, or msys between two jobs.

local helper = require "spec.helper"

--- A pool whose worker has three such finalizers, after a varied amount of garbage; then 1,500 jobs, run as `wrap` has
--- them. Says how many had an outcome, and whether at most three failed.
local SCRIPT = [[
  local msys = require "msys"
  local wrap = %s
  for round = 1, 12 do
    local pool = msys.threadpool.create { name = "pool " .. round, concurrency = 1 }
    assert(msys.runInPool(pool, wrap(function()
      -- Those LuaJITs crash where the error comes out of compiled code: spec/luajit/raising_finalizer.lua.
      jit.off()
      for _ = 1, 3 do
        getmetatable(newproxy(true)).__gc = function() error("boom", 0) end
      end
      for _ = 1, 7 * round do
        local _ = {}
      end
    end)))
    local fine, failed = 0, 0
    msys.spawn(function()
      for i = 1, 1500 do
        local ok, value = msys.runInPool(pool, wrap(function() return i end))
        if ok and value == i then fine = fine + 1 else failed = failed + 1 end
      end
    end)
    msys.run()
    print(fine + failed, failed <= 3, msys.runInPool(pool, function() return "alive" end))
  end
]]
local EXPECTED = ("1500\ttrue\ttrue\talive\n"):rep(12)

local WRAPS = {
  ["plain jobs"] = "function(fn) return fn end",
  -- For these the worker has its scheduler loaded.
  ["jobs with globals of their own"] = [[
    function(fn) return setfenv(fn, setmetatable({}, { __index = _G })) end
  ]],
}

describe("a finalizer that raises", function()
  after_each(helper.clean)

  for what, wrap in pairs(WRAPS) do
    it("fails one job at most, and loses none of the " .. what, function()
      for _ = 1, 4 do
        local out, err, status = helper.script(SCRIPT:format(wrap))
        -- LuaJITs from 2024 on tell of it, and raise nothing.
        err = err:gsub("ERROR in finalizer: boom\n", "")
        assert.same({ EXPECTED, "", 0 }, { out, err, status })
      end
    end)
  end
end)

describe("a pool that has ended", function()
  it("leaves no thread that counts as awake, for which others would not spin", function()
    local out, err, status = helper.script [[
      local msys = require "msys"
      local native = require "msys.native"
      local pools = {}
      for round = 1, 8 do
        pools[round] = msys.threadpool.create { name = "pool " .. round, concurrency = 2 }
        assert(msys.runInPool(pools[round], function() end))
        pools[round]:shutdown()
      end
      local deadline = os.time() + 10
      while native.awake() ~= 1 and os.time() < deadline do
        msys.sleep(0.001)
      end
      print(native.awake())
    ]]
    assert.same({ "1\n", "", 0 }, { out, err, status })
  end)
end)
