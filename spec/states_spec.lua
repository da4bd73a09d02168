-- Several Lua states in one process that load the module, each for itself, and what is left when the last has closed.

local helper = require "spec.helper"

--- For child scripts: `open()` makes a state, `state(code, ...)` runs code in it with strings as arguments and gives
--- its result as a string, and `state:close()` ends it. The child's own state does not load msys.
local STATES = [==[
local ffi = require "ffi"
ffi.cdef [[
  typedef struct lua_State lua_State;
  lua_State *luaL_newstate(void);
  void luaL_openlibs(lua_State *);
  int luaL_loadstring(lua_State *, const char *);
  int lua_pcall(lua_State *, int, int, int);
  const char *lua_tolstring(lua_State *, int, size_t *);
  void lua_pushlstring(lua_State *, const char *, size_t);
  void lua_settop(lua_State *, int);
  void lua_close(lua_State *);
  int getpid(void);
  int usleep(unsigned);
]]
local C = ffi.C
-- A compiled call must not come back to Lua, not even to another state's.
jit.off(true, true)

local State = {}
State.__index = State

function State:__call(code, ...)
  local L, size = self.L, ffi.new "size_t[1]"
  local status = C.luaL_loadstring(L, code)
  for place = 1, status == 0 and select("#", ...) or 0 do
    local arg = select(place, ...)
    C.lua_pushlstring(L, arg, #arg)
  end
  if status == 0 then status = C.lua_pcall(L, select("#", ...), 1, 0) end
  local text = C.lua_tolstring(L, -1, size)
  text = text ~= nil and ffi.string(text, size[0]) or nil
  C.lua_settop(L, 0)
  if status ~= 0 then error(tostring(text), 2) end
  return text
end

function State:close()
  C.lua_close(self.L)
  self.L = nil
end

local function open()
  local state = setmetatable({ L = C.luaL_newstate() }, State)
  C.luaL_openlibs(state.L)
  state 'msys = require "msys"  SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED'
  return state
end

local function threads()
  local pipe = io.popen(("ls /proc/%d/task | wc -l"):format(C.getpid()))
  local count = pipe:read "*n"
  pipe:close()
  return count
end

--- Waits, since a thread that was joined is listed for a moment more; gives the count as it is at last.
local function threads_become(expected)
  for _ = 1, 3000 do
    if threads() == expected then break end
    C.usleep(1000)
  end
  return threads()
end

local RUN = [[
  local ok, value = msys.runInPool("CPU", function() return 6 * 7 end)
  return tostring(ok) .. " " .. tostring(value)
]]
]==]

describe("two states of one process", function()
  after_each(helper.clean)

  --- Fails unless the script's lines are these, and it ends well and in silence.
  local function assert_prints(expected, script, args)
    local out, err, status = helper.script(STATES .. script, { args = args })
    assert.same({ out = expected, err = "", status = 0 }, { out = out, err = err, status = status })
  end

  it("both run jobs", function()
    assert_prints(
      "true 42\ntrue 42\ntrue 42\n",
      [[
        local a, b = open(), open()
        print(a(RUN))
        print(b(RUN))
        print(a(RUN))
        b:close()
        a:close()
      ]]
    )
  end)

  it("see the same pools", function()
    assert_prints(
      "true from b\n1\n",
      [[
        local a, b = open(), open()
        a 'pool = msys.threadpool.create { name = "common" }'
        print(b [=[
          local ok, text = msys.runInPool("Common", function() return "from b" end)
          return tostring(ok) .. " " .. text
        ]=])
        print(a 'return tostring(pool:stat().invocations)')
        a:close()
        b:close()
      ]]
    )
  end)

  it("may be one when a long string of the other's is still to be read", function()
    assert_prints(
      "800000 0000000b\n",
      [[
        local path = os.tmpname()
        local a, b = open(), open()
        b([=[
          local go = ... .. ".go"
          msys.threadpool.create { name = "busy", concurrency = 1, sessions = 1 }
          msys.runInPool("busy", function()
            while not io.open(go) do msys.sleep(0.001) end
          end, true)
        ]=], path)
        a([=[
          local path, text = ..., ("%08x"):format(11):rep(100000)
          msys.spawn(function()
            msys.runInPool("busy", function()
              local file = io.open(path, "w")
              file:write(#text, " ", text:sub(1, 8))
              file:close()
            end)
          end)
          msys.yield()
        ]=], path)
        a:close()
        io.open(path .. ".go", "w"):close()
        b 'assert(msys.runInPool("busy", function() end))'
        print(io.open(path):read "*a")
        os.remove(path)
        os.remove(path .. ".go")
        b:close()
      ]]
    )
  end)

  it("share no modules and no globals", function()
    assert_prints(
      "nil\n",
      [[
        local a, b = open(), open()
        a 'mine = 1 msys.mine = 1 msys._OSTLS.mine = 1 msys._TLS.mine = 1'
        print(b 'return tostring(mine or msys.mine or msys._OSTLS.mine or msys._TLS.mine)')
        a:close()
        b:close()
      ]]
    )
  end)

  for _, case in ipairs { { "first", "a", "b" }, { "second", "b", "a" } } do
    local which, closed, kept = case[1], case[2], case[3]
    it("go on when the " .. which .. " closes", function()
      local script = [[
        local states = { a = open(), b = open() }
        print(states.a(RUN), states.b(RUN))
        local closed, kept = states[ arg[1] ], states[ arg[2] ]
        closed:close()
        for _ = 1, 3 do print(kept(RUN)) end
        kept:close()
      ]]
      assert_prints("true 42\ttrue 42\n" .. ("true 42\n"):rep(3), script, { closed, kept })
    end)
  end

  it("keep the pools of a state that closed", function()
    assert_prints(
      "true 1\n",
      [[
        local a, b = open(), open()
        a 'msys.threadpool.create { name = "left behind" }'
        a:close()
        print(b [=[
          local ok, n = msys.runInPool("left behind", function() return 1 end)
          return tostring(ok) .. " " .. tostring(n)
        ]=])
        b:close()
      ]]
    )
  end)

  it("give their errors of asynchronous jobs each to its own handler", function()
    assert_prints(
      "a: of a, of a, of a\nb: of b, of b, of b\n",
      [[
        local seen, states = {}, { a = open(), b = open() }
        for name, state in pairs(states) do
          state([=[
            local name = ...
            seen = {}
            msys.onError(function(err) seen[#seen + 1] = err end)
            for _ = 1, 3 do
              msys.runInPool("CPU", function() error("of " .. name, 0) end, true)
            end
          ]=], name)
        end
        local wait = [=[
          for _ = 1, 3000 do
            if #seen >= 3 then break end
            msys.sleep(0.001)
          end
        ]=]
        states.a(wait)
        states.b(wait)
        -- All jobs have ended now, and what was sent to the wrong state has come.
        local all = "msys.poll() return table.concat(seen, ', ')"
        print("a: " .. states.a(all))
        print("b: " .. states.b(all))
        states.a:close()
        states.b:close()
      ]]
    )
  end)

  it("run their completions each in its own", function()
    assert_prints(
      "a1 a2 a3 \nb1 b2 b3 \n",
      [[
        local states = { open(), open() }
        for place, state in ipairs(states) do
          state([=[
            got = {}
            local name = ...
            for i = 1, 3 do
              msys.runInPool("CPU", function() return name .. i end, function(_, text) got[#got + 1] = text end, SCHED)
            end
          ]=], ("ab"):sub(place, place))
        end
        for _, state in ipairs(states) do
          print(state 'msys.run() table.sort(got) return table.concat(got, " ") .. " "')
        end
        for _, state in ipairs(states) do state:close() end
      ]]
    )
  end)

  it("wait for their own asynchronous jobs only", function()
    local path = helper.file()
    assert_prints(
      "b closed\na's job ended\na closed\n",
      [[
        local a, b = open(), open()
        a([=[
          local path = ...
          -- Ends only after b has closed.
          msys.runInPool("CPU", function()
            while true do
              local file = io.open(path)
              local text = file:read "*a"
              file:close()
              if text ~= "" then return end
              msys.sleep(0.001)
            end
          end, function() io.write "a's job ended\n" end, SCHED)
        ]=], arg[1])
        b(RUN)
        b:close()
        print "b closed"
        local file = io.open(arg[1], "w")
        file:write "b closed"
        file:close()
        a:close()
        print "a closed"
      ]],
      { path }
    )
  end)

  for _, mode in ipairs { "true", "function() end", "function() end, SCHED" } do
    it("finish, each when it closes, the jobs sent with " .. mode, function()
      local path = helper.file()
      assert_prints(
        "20\n40\n",
        ([[
          local a, b = open(), open()
          local send = [=[
            local path = ...
            for i = 1, 20 do
              msys.runInPool("IO", function()
                local file = io.open(path, "a")
                file:write "x"
                file:close()
              end, MODE)
            end
          ]=]
          local function length()
            local file = io.open(arg[1])
            local count = #file:read "*a"
            file:close()
            return count
          end
          a(send, arg[1])
          a:close()
          print(length())
          b(send, arg[1])
          b:close()
          print(length())
        ]]):gsub("MODE", mode),
        { path }
      )
    end)
  end
end)

describe("when the last state closes", function()
  after_each(helper.clean)

  --- Fails unless the script ends well and in silence, having printed this.
  local function assert_prints(expected, script)
    local out, err, status = helper.script(STATES .. script)
    assert.same({ out = expected, err = "", status = 0 }, { out = out, err = err, status = status })
  end

  local last_words = {
    ["its workers idle"] = "",
    ["an asynchronous job pending"] = [[
      msys.runInPool("CPU", function() msys.sleep(0.001) end, true)
    ]],
    ["a session waiting for a job"] = [[
      msys.spawn(msys.runInPool, "CPU", function() msys.sleep(60) end)
      while msys.threadpool.stat("CPU").job_num_running == 0 do msys.poll() end
    ]],
    ["pools of its own"] = [[
      for i = 1, 5 do
        assert(msys.runInPool(msys.threadpool.create { name = "own " .. i }, function() return true end))
      end
    ]],
  }
  for what, code in pairs(last_words) do
    it("with " .. what .. ", all worker threads end", function()
      assert_prints(
        "0\n",
        ([[
          local before = threads()
          local a, b = open(), open()
          a(RUN)
          assert(threads() > before, "no worker has a thread")
          b(RUN)
          a:close()
          b 'CODE'
          b:close()
          print(threads_become(before) - before)
        ]]):gsub("'CODE'", "[=[" .. code .. "]=]")
      )
    end)
  end

  it("its pools are gone", function()
    assert_prints(
      "nil 2\n",
      [[
        local a = open()
        a 'msys.threadpool.create { name = "gone" }'
        a:close()
        a = open()
        print(a 'return tostring(msys.threadpool.find "gone") .. " " .. msys.threadpool.count()')
        a:close()
      ]]
    )
  end)

  it("a new one can load the module, time and again, without more threads", function()
    assert_prints(
      ("true 42 0\n"):rep(20),
      [[
        local before = threads()
        for _ = 1, 20 do
          local a = open()
          local result = a(RUN)
          a:close()
          print(result .. " " .. threads_become(before) - before)
        end
      ]]
    )
  end)

  it("memory is given back", function()
    -- Two VMs a round have some hundred KiB each.
    assert_prints(
      "flat\n",
      [[
        local function resident()
          local file = io.open "/proc/self/statm"
          local _, pages = file:read("*n", "*n")
          file:close()
          return pages * 4
        end
        local function round()
          local a = open()
          a(RUN)
          a:close()
        end
        for _ = 1, 50 do round() end
        local before = resident()
        for _ = 1, 200 do round() end
        local grown = resident() - before
        print(grown < 4096 and "flat" or ("grown by %d KiB"):format(grown))
      ]]
    )
  end)
end)
