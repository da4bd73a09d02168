--- A process that forks while it has pools: the child has pools of its own, and the parent goes on. Each case is a
--- script in a process of its own. What becomes of the single kinds of waits is in fork_waits_spec.lua.

local helper = require "spec.helper"

--- What every script begins with. The parent waits for its child before it prints, so that the order is always the
--- same.
local PRELUDE = [[
io.stdout:setvbuf "no"
local ffi, msys = require "ffi", require "msys"
ffi.cdef "int fork(void); int waitpid(int pid, int *status, int options); unsigned alarm(unsigned seconds);"
local SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED

local function wait(pid)
  local status = ffi.new "int[1]"
  assert(ffi.C.waitpid(pid, status, 0) == pid)
  return status[0] % 128 == 0 and "exit " .. math.floor(status[0] / 256) or "signal " .. status[0] % 128
end

--- 0 in the child, which a signal ends if it hangs.
local function fork()
  local pid = ffi.C.fork()
  assert(pid >= 0)
  if pid == 0 then
    ffi.C.alarm(8)
  end
  return pid
end

local function square(number)
  return select(2, assert(msys.runInPool("CPU", function() return number * number end)))
end

--- Sends jobs that go on until `release()`; they are in progress when this returns.
local function busy(count, third, mode)
  local path = os.tmpname()
  local function job()
    local file = io.open(path)
    while file do
      file:close()
      msys.sleep(0.005)
      file = io.open(path)
    end
    return "released"
  end
  for _ = 1, count do
    msys.runInPool("IO", job, third == nil and true or third, mode)
  end
  repeat msys.sleep(0.001) until msys.threadpool.stat("IO").job_num_running == count
  return function() os.remove(path) end, job
end
]]

local function script(text)
  local out, err, status = helper.script(PRELUDE .. text)
  return out .. err, status
end

after_each(helper.clean)

local cases = {
  {
    "the child of a process that had no worker yet runs jobs, and exits",
    [[
      local pid = fork()
      if pid == 0 then return print("child", square(3)) end
      print(wait(pid), square(4))
    ]],
    "child\t9\nexit 0\t16\n",
  },
  {
    "the child of a process that had workers runs jobs, in all pools, and the parent goes on",
    [[
      print("before", square(2))
      assert(msys.runInPool("IO", function() end))
      local pid = fork()
      if pid == 0 then
        local _, io_answer = msys.runInPool("IO", function() return select(2, msys.runInPool("CPU", function() return 7 end)) end)
        return print("child", square(3), io_answer)
      end
      print(wait(pid), square(4))
    ]],
    "before\t4\nchild\t9\t7\nexit 0\t16\n",
  },
  {
    "the child's pools have no workers and no jobs of the parent's",
    [[
      local release = busy(3)
      local pid = fork()
      if pid == 0 then
        local stat = msys.threadpool.stat "IO"
        return print(stat.num_threads, stat.job_num_running, stat.queue_sz, stat.invocations)
      end
      print(wait(pid))
      release()
    ]],
    "0\t0\t0\t0\nexit 0\n",
  },
  {
    "a pool that the script created works in the child, its init included",
    [[
      local number = 40
      local pool = msys.threadpool.create { name = "own", concurrency = 2, init = function() _OSTLS.mark = number + 2 end }
      local function mark() return _OSTLS.mark end
      print(msys.runInPool(pool, mark))
      local pid = fork()
      if pid == 0 then
        print(msys.runInPool(pool, mark))
        print(msys.runInPool("OWN", mark))
        print(pool.name, pool:stat().concurrency, msys.threadpool.find "own" == pool.id)
        pool:shutdown()
        return print(select("#", msys.runInPool(pool, mark)))
      end
      print(wait(pid))
      print(msys.runInPool(pool, mark))
    ]],
    "true\t42\ntrue\t42\ntrue\t42\nown\t2\ttrue\n3\nexit 0\ntrue\t42\n",
  },
  {
    "a pool that was shut down before is shut down in the child",
    [[
      local pool = msys.threadpool.create { name = "own", concurrency = 2 }
      pool:shutdown()
      local pid = fork()
      if pid == 0 then
        local ok, err, info = msys.runInPool(pool, function() end)
        print(ok, err, info.kind)
        return pool:shutdown()
      end
      print(wait(pid))
    ]],
    "false\tpool 'own' is shut down\tshutdown\nexit 0\n",
  },
  {
    "a session that waits for a job of the parent's gets an outcome of kind shutdown in the child",
    [[
      local release, job = busy(1)
      local outcome
      msys.spawn(function()
        local ok, err, info = msys.runInPool("IO", job)
        outcome = table.concat({ tostring(ok), ok and err or type(err), ok and "" or info.kind }, " ")
      end)
      repeat msys.sleep(0.001) until msys.threadpool.stat("IO").job_num_running == 2
      local pid = fork()
      if pid == 0 then
        msys.run()
        return print("child", outcome)
      end
      print(wait(pid))
      release()
      msys.run()
      print("parent", outcome)
    ]],
    "child\tfalse string shutdown\nexit 0\nparent\ttrue released \n",
  },
  {
    "a session that forks goes on in both",
    [[
      msys.run(function()
        print(square(2))
        local pid = fork()
        if pid == 0 then return print("child", square(3)) end
        print(wait(pid), square(4))
      end)
    ]],
    "4\nchild\t9\nexit 0\t16\n",
  },
  {
    "sleeping sessions go on in the child, and in the parent",
    [[
      local log = {}
      for number = 1, 3 do
        msys.spawn(function()
          msys.sleep(0.01 * number)
          log[number] = square(number)
        end)
      end
      msys.poll()
      local pid = fork()
      if pid == 0 then
        msys.run()
        return print("child", unpack(log))
      end
      print(wait(pid))
      msys.run()
      print("parent", unpack(log))
    ]],
    "child\t1\t4\t9\nexit 0\nparent\t1\t4\t9\n",
  },
  {
    "the child's exit neither waits for the parent's asynchronous jobs nor runs their completions",
    [[
      local release = busy(4, function() print "completed" end, SCHED)
      local pid = fork()
      if pid == 0 then return end
      print(wait(pid))
      release()
      msys.run()
    ]],
    "exit 0\n" .. ("completed\n"):rep(4),
  },
  {
    "nor does it when the jobs have ended, and their completions have not run",
    [[
      for number = 1, 3 do
        msys.runInPool("CPU", function() end, function() print("completed", number) end, SCHED)
      end
      repeat local stat = msys.threadpool.stat "CPU" until stat.invocations == 3
      local pid = fork()
      if pid == 0 then return end
      print(wait(pid))
      msys.run()
      print "parent ends"
    ]],
    nil,
    function(out)
      local lines = {}
      for line in out:gmatch "[^\n]+" do
        lines[#lines + 1] = line
      end
      assert.equal("exit 0", lines[1], out)
      table.sort(lines)
      assert.same({ "completed\t1", "completed\t2", "completed\t3", "exit 0", "parent ends" }, lines)
    end,
  },
  {
    "msys.run in the child does not wait for completions of the parent's jobs",
    [[
      local release = busy(2, function() print "completed" end, SCHED)
      local pid = fork()
      if pid == 0 then
        msys.run()
        return print("child", square(3))
      end
      print(wait(pid))
      release()
      msys.run()
    ]],
    "child\t9\nexit 0\ncompleted\ncompleted\n",
  },
  {
    "asynchronous jobs of the child's own are finished at its exit, their completions too",
    [[
      local release = busy(2)
      local pid = fork()
      if pid == 0 then
        for _ = 1, 50 do
          msys.runInPool("CPU", function() msys.sleep(0.001) end, function() io.write "." end, SCHED)
        end
        return
      end
      print("", wait(pid))
      release()
    ]],
    ("."):rep(50) .. "\texit 0\n",
  },
  {
    "errors of the child's asynchronous jobs are the child's",
    [[
      local pid = fork()
      if pid == 0 then
        msys.onError(function(err) print("child", err) end)
        return msys.runInPool("CPU", function() error("lost?", 0) end, true)
      end
      print(wait(pid))
    ]],
    "child\tlost?\nexit 0\n",
  },
  {
    "os.exit ends the child at once, with its status",
    [[
      local release = busy(2)
      local pid = fork()
      if pid == 0 then
        square(5)
        os.exit(7)
      end
      print(wait(pid))
      release()
    ]],
    "exit 7\n",
  },
  {
    "a child's child has pools of its own, too",
    [[
      square(1)
      local pid = fork()
      if pid == 0 then
        print("child", square(2))
        local grandchild = fork()
        if grandchild == 0 then return print("grandchild", square(3)) end
        return print(wait(grandchild), square(4))
      end
      print(wait(pid), square(5))
    ]],
    "child\t4\ngrandchild\t9\nexit 0\t16\nexit 0\t25\n",
  },
  {
    "50 forks while the workers are busy, and none hangs",
    [[
      local stop, sums = false, 0
      for _ = 1, 8 do
        msys.spawn(function()
          while not stop do
            local ok, result = pcall(square, 1)
            if not ok then return end
            sums = sums + result
            msys.runInPool("IO", function() return ("x"):rep(1000) end, true)
          end
        end)
      end
      local seen = {}
      for round = 1, 50 do
        for _ = 1, 20 do msys.poll() end
        local pid = fork()
        if pid == 0 then
          stop = true
          local ok, answer = pcall(square, round)
          os.exit(ok and answer == round * round and 0 or 1)
        end
        local status = wait(pid)
        seen[status] = (seen[status] or 0) + 1
      end
      stop = true
      msys.run()
      for status, count in pairs(seen) do print(status, count) end
      print(sums > 0, square(6))
    ]],
    "exit 0\t50\ntrue\t36\n",
  },
  {
    "20 forks with orderly exits of busy children",
    [[
      local release = busy(4)
      local seen = {}
      for round = 1, 20 do
        local pid = fork()
        if pid == 0 then
          for number = 1, 20 do msys.runInPool("CPU", function() return number end, true) end
          return square(round)
        end
        local status = wait(pid)
        seen[status] = (seen[status] or 0) + 1
      end
      for status, count in pairs(seen) do print(status, count) end
      release()
    ]],
    "exit 0\t20\n",
  },
}

describe("after a fork,", function()
  for _, case in ipairs(cases) do
    it(case[1], function()
      local out, status = script(case[2])
      if case[3] then
        assert.equal(case[3], out)
      else
        case[4](out)
      end
      assert.equal(0, status)
    end)
  end
end)

it(
  "a session that waits learns it, whatever the child calls first, and no completion gets another's outcome",
  function()
    local out, status = script [=[
    local ended
    msys.spawn(function()
      local ok, text = msys.runInPool("IO", function() msys.sleep(0.1) end)
      ended = tostring(ok) .. " " .. tostring(text)
    end)
    msys.poll()
    local lines, children = {}, {}
    for i = 1, 4 do
      msys.runInPool("CPU", function() return i end, function(_, value)
        if i == 1 then
          local pid = fork()
          if pid == 0 then
            for k = 1, 4 do
              msys.runInPool("CPU", function() return 10 + k end, function(_, value)
                lines[#lines + 1] = value == 10 + k and "right" or "wrong"
              end, SCHED)
            end
          else
            children[1] = pid
          end
        end
        if value ~= i then lines[#lines + 1] = "wrong" end
      end, SCHED)
    end
    msys.run()
    if children[1] then
      print(wait(children[1]))
      print("parent", #lines, ended)
    else
      print("child", table.concat(lines, " "), ended)
      os.exit(3)
    end
  ]=]
    assert.equal(0, status, out)
    local text = "msys: the job is not in this process, which is a fork's child"
    assert.equal("child\tright right right right\tfalse " .. text .. "\nexit 3\nparent\t0\ttrue nil\n", out)
  end
)
