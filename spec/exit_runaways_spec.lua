-- A program that ends while jobs do not: it ends all the same, soon, and says what it has dropped.

local helper = require "spec.helper"
local native = require "msys.native"

local describe, it, _, after_each, assert = helper.busted()

--- Begins runaways in every pool, of which some are given up before the end.
local RUNAWAYS = [[
local msys = require "msys"
msys.exitTimeout(0.3)
local isolated = assert(msys.workers.newPool(2))
msys.threadpool.create { name = "other", concurrency = 2, interruptible = false }
for _, pool in ipairs { "CPU", "IO", "other" } do
  for _ = 1, 3 do
    msys.runInPool(pool, function() while true do end end, true)
    msys.submit(pool, function() while true do pcall(error) end end)
  end
end
for _ = 1, 2 do
  msys.spawn(function()
    isolated:submit(assert(msys.workers.compile "while true do end"))
  end)
end
-- In C for a second or more. Not in os.execute, while which the process ignores Ctrl-C.
local stuck = msys.threadpool.create { name = "stuck", concurrency = 1 }
msys.runInPool(stuck, function() return (("a"):rep(300):find ".-.-.-.-b") end, { async = true, timeout = 0.05 })
msys.onError(function() end)
msys.sleep(0.1)
]]

local DROPPED =
  "^msys: the exit has waited for 0%.3 s: %d+ asynchronous jobs are dropped %(pool 'CPU': %d+ in progress"

local function run(script)
  local started = native.clock()
  local out, err, status = helper.script(script)
  return native.clock() - started, out, err, status
end

describe("a script that ends with runaways in every pool", function()
  after_each(helper.clean)

  it("exits with status 0, and says what it dropped", function()
    local took, out, err, status = run(RUNAWAYS .. "print 'end'")
    assert.same({ "end\n", 0 }, { out, status })
    assert.matches(DROPPED, err)
    assert.is_true(took < 3, took)
  end)

  it("exits by os.exit(3, true) with that status", function()
    local took, out, err, status = run(RUNAWAYS .. "io.write 'end' os.exit(3, true)")
    assert.same({ "end", 3 }, { out, status })
    assert.matches(DROPPED, err)
    assert.is_true(took < 3, took)
  end)

  it("ends at Ctrl-C at once, and says so", function()
    local took, out, err, status = run(RUNAWAYS .. [[
      msys.exitTimeout(math.huge)
      require("ffi").cdef "int kill(int pid, int signal); int getpid(void);"
      local C = require("ffi").C
      msys.spawn(function()
        C.kill(C.getpid(), 2)
        while true do msys.sleep(0.01) end
      end)
      msys.run()
    ]])
    assert.same({ "", 1 }, { out, status })
    assert.matches("interrupted!", err)
    assert.matches("msys: interrupted: %d+ asynchronous jobs are dropped", err)
    assert.is_true(took < 3, took)
  end)

  it("waits for jobs that end, however long, where nothing else is said", function()
    local _, out, err, status = run [[
      local msys = require "msys"
      print(msys.exitTimeout())
      for i = 1, 3 do
        msys.runInPool("CPU", function() msys.sleep(0.2) io.write "job\n" end, true)
      end
    ]]
    assert.same({ "inf\njob\njob\njob\n", "", 0 }, { out, err, status })
  end)

  it("has a host's state closed while the process goes on, and leaves no thread but those in C", function()
    local _, out, err, status = run [[
      local ffi = require "ffi"
      ffi.cdef "void *luaL_newstate(void); void luaL_openlibs(void *); int luaL_loadstring(void *, const char *); int lua_pcall(void *, int, int, int); void lua_close(void *); const char *lua_tolstring(void *, int, void *);"
      local C = ffi.C
      local function threads()
        local pipe = io.popen "ls /proc/$PPID/task | wc -l"
        local count = tonumber((pipe:read "*a"))
        pipe:close()
        return count
      end
      local before = threads()
      for _ = 1, 3 do
        local state = C.luaL_newstate()
        C.luaL_openlibs(state)
        local text = ("package.path, package.cpath = %q, %q "):format(package.path, package.cpath) .. [=[
          local msys = require "msys"
          msys.exitTimeout(0)
          for i = 1, 4 do msys.runInPool("IO", function() while true do end end, true) end
          msys.sleep(0.05)
        ]=]
        assert(C.luaL_loadstring(state, text) == 0)
        if C.lua_pcall(state, 0, 0, 0) ~= 0 then print(ffi.string(C.lua_tolstring(state, -1, nil))) end
        C.lua_close(state)
      end
      -- The one that stops jobs stays.
      print(threads() - before <= 1)
    ]]
    assert.same({ "true\n", 0 }, { out, status })
    assert.matches("the exit has waited for 0 s: 4 asynchronous jobs are dropped", err)
  end)
end)
