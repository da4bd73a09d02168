--- `fork` while something waits: each kind of wait ends, or goes on, in the child; and a wait begun in the child is its
--- own. What else a child has is in fork_spec.lua. Child processes throughout: busted's own process never forks.

local helper = require "spec.helper"

local PRELUDE = [[
local ffi = require "ffi"
ffi.cdef "int fork(void); int waitpid(int, int *, int);"
local msys = require "msys"
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED
-- One write a line: the child must not print again what the parent has in its buffer, nor into the middle of its lines.
io.stdout:setvbuf "line"

--- Waits for the child's end, which has to be that of `leave`. Nothing of msys runs meanwhile.
local function join(pid)
  local status = ffi.new "int[1]"
  repeat until ffi.C.waitpid(pid, status, 0) == pid
  assert(status[0] == 7 * 256, "child: wait status " .. status[0])
end

local function leave()
  os.exit(7, true)
end

--- Runs `fn` in a child.
local function in_child(fn)
  local pid = ffi.C.fork()
  if pid == 0 then
    fn()
    leave()
  end
  join(pid)
end

local GATE = arg[1]

--- A job that waits while the gate's file is there. Its worker can run others.
local function hold()
  local file = io.open(GATE)
  while file do
    file:close()
    msys.sleep(0.002)
    file = io.open(GATE)
  end
  return "held"
end

--- Waits until a worker has `hold` in progress.
local function held_in(pool)
  repeat msys.sleep(0.001) until msys.threadpool.stat(pool).job_num_running == 1
end
]]

--- Runs the script behind the prelude; fails unless it prints these lines and nothing else. Those of two processes come
--- in any order, so they are compared sorted.
local function assert_prints(expected, script)
  local out, err, status = helper.script(PRELUDE .. script, { args = { helper.file() } })
  local lines = {}
  for line in out:gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  table.sort(lines)
  table.sort(expected)
  assert.same({ out = expected, err = "", status = 0 }, { out = lines, err = err, status = status })
end

describe("in the child of a fork,", function()
  after_each(helper.clean)

  -- `go` forks once, while the job is in progress.
  local WAITERS = {
    ["a session"] = [[
      msys.spawn(function() report(msys.runInPool("IO", hold)) end)
      msys.spawn(go)
      msys.run()
    ]],
    ["a session, inside pcall and a coroutine of its own,"] = [[
      msys.spawn(function()
        local _, ok, err, info = pcall(coroutine.wrap(function() return msys.runInPool("IO", hold) end))
        report(ok, err, info)
      end)
      msys.spawn(go)
      msys.run()
    ]],
    ["plain code"] = [[
      msys.spawn(go)
      report(msys.runInPool("IO", hold))
      msys.run()
    ]],
  }
  for who, wait in pairs(WAITERS) do
    it("a parent's job that " .. who .. " waits for has an outcome of kind shutdown", function()
      assert_prints({ "child false string shutdown", "child again true", "parent true held" }, [[
        local is_child
        local function report(ok, value, info)
          if is_child then
            print("child " .. tostring(ok) .. " " .. type(value) .. " " .. info.kind)
            print("child again " .. tostring(msys.runInPool("IO", function() end)))
          else
            print("parent " .. tostring(ok) .. " " .. value)
          end
        end
        local function go()
          held_in "IO"
          local pid = ffi.C.fork()
          is_child = pid == 0
          if not is_child then
            join(pid)
            os.remove(GATE)
          end
        end
      ]] .. wait .. [[
        if is_child then
          leave()
        end
      ]])
    end)
  end

  it("a session that waits for room in the parent's queue gets it in the child's", function()
    assert_prints(
      { "child true 7", "parent true 7" },
      [[
      local pool = msys.threadpool.create { name = "narrow", concurrency = 1, sessions = 1, backlog = 1 }
      msys.runInPool(pool, hold, true)
      held_in(pool)
      msys.runInPool(pool, hold, true) -- the one that may wait
      local who = "parent"
      msys.spawn(function()
        local ok, value = msys.runInPool(pool, function() return 7 end)
        print(who .. " " .. tostring(ok) .. " " .. tostring(value))
      end)
      msys.poll()
      in_child(function()
        who = "child"
        msys.run()
      end)
      os.remove(GATE)
      msys.run()
    ]]
    )
  end)

  it("a session that waits for a future waits on, up to its limit", function()
    assert_prints(
      { "child nil timeout", "parent true held" },
      [[
      local held = msys.submit("IO", hold)
      held_in "IO"
      local who = "parent"
      msys.spawn(function()
        local ok, value = held:wait(who == "parent" and 0.3)
        if ok == nil and who == "parent" then ok, value = held:wait() end
        print(who .. " " .. tostring(ok) .. " " .. tostring(value))
      end)
      msys.poll()
      in_child(function()
        who = "child"
        msys.run()
      end)
      os.remove(GATE)
      msys.run()
    ]]
    )
  end)

  it("a session that waits for a pool's end goes on", function()
    assert_prints(
      { "child true", "parent true" },
      [[
      local pool = msys.threadpool.create { name = "ending" }
      msys.runInPool(pool, hold, true)
      held_in(pool)
      local who = "parent"
      msys.spawn(function()
        local ended = pool:shutdown()
        print(who .. " " .. tostring(ended))
      end)
      msys.poll()
      in_child(function()
        who = "child"
        msys.run()
      end)
      os.remove(GATE)
      msys.run()
    ]]
    )
  end)

  it("the first job submitted has its completion on the scheduler", function()
    assert_prints(
      { "first 1" },
      [[
      in_child(function()
        msys.runInPool("IO", function() return 1 end, function(_, value) print("first " .. value) end, SCHED)
        msys.run()
      end)
    ]]
    )
  end)

  local ORIGINS = {
    ["a session"] = "msys.spawn(fork_and_wait)",
    ["a completion on the scheduler"] = 'msys.runInPool("IO", function() end, fork_and_wait, SCHED)',
  }
  for origin, start in pairs(ORIGINS) do
    it(origin .. " that forked can wait and end as in the parent", function()
      assert_prints({ "in child", "in parent" }, [[
        local function fork_and_wait()
          local pid = ffi.C.fork()
          local _, text = msys.runInPool("IO", function() return pid == 0 and "in child" or "in parent" end)
          print(text)
          if pid == 0 then
            leave()
          end
          join(pid)
        end
      ]] .. start .. " msys.run()")
    end)
  end

  it("msys.run and the exit await completions also where the fork was in one", function()
    assert_prints(
      { "first", "second", "at exit" },
      [[
      local pid
      msys.runInPool("IO", function() end, function() pid = ffi.C.fork() end, SCHED)
      msys.run()
      if pid ~= 0 then
        return join(pid)
      end
      local function slow() msys.sleep(0.01) end
      for _, name in ipairs { "first", "second" } do
        local done
        msys.runInPool("IO", slow, function() print(name) done = true end, SCHED)
        msys.run()
        assert(done, name .. " was not awaited")
      end
      msys.runInPool("IO", slow, function() print "at exit" end, SCHED)
      leave()
    ]]
    )
  end)
end)

describe("fork by io.popen and os.execute", function()
  after_each(helper.clean)

  it("works from jobs and from the host at the same time", function()
    assert_prints(
      { "20 20" },
      [[
      local function run(n)
        local pipe = io.popen("echo " .. n)
        local said = pipe:read "*n"
        pipe:close()
        return said == n and os.execute "true" == 0
      end
      local host, jobs = 0, 0
      for i = 1, 20 do
        msys.runInPool("IO", function() return run(i) end, function(ok, same)
          assert(ok, same)
          jobs = jobs + (same and 1 or 0)
        end, SCHED)
      end
      for i = 1, 20 do
        host = host + (run(i) and 1 or 0)
      end
      msys.run()
      print(host .. " " .. jobs)
    ]]
    )
  end)
end)
