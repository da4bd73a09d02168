-- The end of a program: what is finished first, what ends it at once, and that it never hangs. All in child processes.

local helper = require "spec.helper"

local MSYS = 'local msys = require "msys"\nlocal SCHED = msys.core.ECTP_COMPLETE_CALLBACK_SCHED\n'

--- Where the two kinds of completions run, and the `mode` that says so.
local MODES = {
  { where = "in the pool", mode = "nil" },
  { where = "on the scheduler", mode = "SCHED" },
}

--- Runs a script that has `msys` and `SCHED`.
---@param script string
---@param options? table  for `helper.script`; `values` are for the script's `$name`s
---@return string stdout
---@return string stderr
---@return integer status
local function run(script, options)
  local values = options and options.values or {}
  return helper.script(MSYS .. script:gsub("%$(%l+)", values), options)
end

--- Runs a script that gets a SIGINT once it has printed "ready" and its main thread sleeps, or runs.
---@param script string
---@param state? "S"|"R"
local function run_interrupted(script, state)
  local signaller = [=[
    local stat = io.open "/proc/self/stat"
    local pid = stat:read "*n"
    stat:close()
    os.execute(([[
      (
        cd /proc/PID || exit
        for attempt in $(seq 4000); do
          if grep -q ready fd/1 && grep -q '^State:.S' status; then kill -INT PID; exit; fi
          [ -d /proc/PID/fd ] || exit
          sleep 0.003
        done
      ) >/dev/null 2>&1 &
    ]]):gsub("PID", pid))
  ]=]
  return run(signaller:gsub("State:.S", "State:." .. (state or "S")) .. script)
end

--- Fails unless the child printed this to stdout, nothing to stderr, and ended with `expected_status`.
local function assert_run(expected, expected_status, out, err, status)
  assert.same(
    { out = expected, err = "", status = expected_status },
    { out = out, err = err, status = status }
  )
end

--- `text`'s lines, sorted.
local function sorted(text)
  local lines = {}
  for line in text:gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  table.sort(lines)
  return lines
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

--- The values of a script that writes to a file.
local function with_file(values)
  values = values or {}
  values.path = helper.file()
  return { values = values }, values.path
end

describe("a script that ends", function()
  after_each(helper.clean)

  for _, case in ipairs(MODES) do
    it("with 1,000 jobs pending runs all of their completions " .. case.where, function()
      local script = [[
        for i = 1, 1000 do
          msys.runInPool("CPU", function() return i end, function(ok, n)
            -- One string, or other threads may write between its parts.
            io.write(("%s %d\n"):format(tostring(ok), n))
          end, $mode)
        end
      ]]
      local expected = {}
      for i = 1, 1000 do
        expected[i] = ("true %d"):format(i)
      end
      table.sort(expected)
      local out, err, status = run(script, { values = { mode = case.mode } })
      assert.same({ "", 0 }, { err, status })
      assert.same(expected, sorted(out))
    end)

    it("lets a completion " .. case.where .. " make a synchronous call", function()
      local script = [[
        msys.runInPool("CPU", function() return 20 end, function(_, n)
          local ok, sum = msys.runInPool("IO", function() return n + 1 end)
          io.write(("%s %d\n"):format(tostring(ok), sum))
        end, $mode)
      ]]
      assert_run("true 21\n", 0, run(script, { values = { mode = case.mode } }))
    end)

    it("prints the error of a completion " .. case.where, function()
      local script = [[
        msys.runInPool("CPU", function() end, function() error "completion broke" end, $mode)
      ]]
      local out, err, status = run(script, { values = { mode = case.mode } })
      assert.same({ "", 0 }, { out, status })
      assert.matches("completion broke", err, 1, true)
    end)
  end

  it("runs all of its asynchronous jobs first", function()
    local options, path = with_file()
    local script = [[
      for i = 1, 200 do
        msys.runInPool(i % 2, function()
          local file = assert(io.open("$path", "a"))
          file:write(i, "\n")
          file:close()
        end, true)
      end
    ]]
    assert_run("", 0, run(script, options))
    local lines = sorted(read(path))
    assert.equal(200, #lines)
  end)

  it("runs jobs that wait for a worker first", function()
    local script = [[
      local pool = msys.threadpool.create { name = "one", concurrency = 1, sessions = 1 }
      for i = 1, 5 do
        msys.runInPool(pool, function()
          msys.sleep(0.001)
          io.write(("%d\n"):format(i))
        end, true)
      end
    ]]
    assert_run("1\n2\n3\n4\n5\n", 0, run(script))
  end)

  it("finishes jobs that its last jobs submit", function()
    local options, path = with_file()
    local script = [[
      local function job(depth)
        local file = assert(io.open("$path", "a"))
        file:write(depth, "\n")
        file:close()
        for _ = 1, depth < 4 and 2 or 0 do
          msys.runInPool(depth % 2 == 0 and "CPU" or "IO", function() job(depth + 1) end, true)
        end
      end
      msys.runInPool("CPU", function() job(1) end, true)
    ]]
    assert_run("", 0, run(script, options))
    assert.equal("1" .. ("2"):rep(2) .. ("3"):rep(4) .. ("4"):rep(8), table.concat(sorted(read(path))))
  end)

  it("finishes jobs that its last completions submit", function()
    local script = [[
      local function again(_, n)
        io.write(n, "\n")
        if n < 5 then
          msys.runInPool("CPU", function() return n + 1 end, again, SCHED)
        end
      end
      msys.runInPool("CPU", function() return 1 end, again, SCHED)
    ]]
    assert_run("1\n2\n3\n4\n5\n", 0, run(script))
  end)

  it("has its files open while its last completions run", function()
    local options, path = with_file()
    local script = [[
      local file = assert(io.open("$path", "w"))
      msys.runInPool("CPU", function() return "written" end, function(_, text) assert(file:write(text)) end, SCHED)
    ]]
    assert_run("", 0, run(script, options))
    assert.equal("written", read(path))
  end)

  it("prints the error of an asynchronous job", function()
    local out, err, status = run [[msys.runInPool("CPU", function() error "job broke" end, true)]]
    assert.same({ "", 0 }, { out, status })
    assert.matches("job broke", err, 1, true)
    assert.matches("stack traceback", err, 1, true)
  end)

  it("prints the error of an asynchronous job that ended long before", function()
    -- The script waits in a way that does not run msys's loop, which would have printed it.
    local script = [[
      msys.runInPool("CPU", function() error "job broke" end, true)
      while msys.threadpool.stat("CPU").invocations == 0 do end
    ]]
    local out, err, status = run(script)
    assert.same({ "", 0 }, { out, status })
    assert.matches("job broke", err, 1, true)
  end)

  it("prints the errors of all of its asynchronous jobs", function()
    local script = [[
      for i = 1, 300 do
        msys.runInPool("CPU", function() error("broke " .. i) end, true)
      end
    ]]
    local out, err, status = run(script)
    local _, count = err:gsub("msys: error in job %d+ of pool CPU: ", "")
    assert.same({ "", 0, 300 }, { out, status, count })
  end)

  it("gives the error of an asynchronous job to its own handler", function()
    local script = [[
      msys.onError(function(err, info) io.write(err.code, " ", info.kind, "\n") end)
      msys.runInPool("CPU", function() error { code = 7 } end, true)
    ]]
    assert_run("7 error\n", 0, run(script))
  end)

  it("by an error with jobs pending finishes them and gives status 1", function()
    local script = [[
      msys.runInPool("CPU", function() return "completed\n" end, function(_, text) io.write(text) end, SCHED)
      error "top level broke"
    ]]
    local out, err, status = run(script)
    assert.same({ "completed\n", 1 }, { out, status })
    assert.matches("top level broke", err, 1, true)
  end)

  local unfinished = {
    ["that never began"] = [[msys.spawn(function() io.write "began" end)]],
    ["that sleeps"] = [[msys.spawn(msys.sleep, 60) msys.poll()]],
    ["that waits for a job"] = [[
      msys.spawn(msys.runInPool, "CPU", function() msys.sleep(60) end)
      msys.poll()
      while msys.threadpool.stat("CPU").job_num_running == 0 do msys.poll() end
    ]],
    ["that has yielded"] = [[msys.spawn(function() while true do msys.yield() end end) msys.poll()]],
  }
  for what, script in pairs(unfinished) do
    it("does not wait for a session " .. what, function()
      assert_run("", 0, run(script))
    end)
  end

  it("does not join a worker when a pool's handle is collected", function()
    local options = with_file()
    -- The jobs end only after all collections have.
    local script = [[
      for i = 1, 20 do
        local pool = msys.threadpool.create { name = "dropped " .. i, concurrency = 1 }
        msys.runInPool(pool, function()
          while true do
            local file = io.open "$path"
            local text = file:read "*a"
            file:close()
            if text == "collected" then return end
            msys.sleep(0.002)
          end
        end, true)
        pool = nil
        collectgarbage()
      end
      collectgarbage()
      local file = io.open("$path", "w")
      file:write "collected"
      file:close()
    ]]
    assert_run("", 0, run(script, options))
  end)

  it("says after two seconds what it waits for, and goes on waiting", function()
    -- The job ends once that has been said.
    local script = [[
      msys.runInPool("CPU", function()
        while true do
          local file = io.open "/proc/self/fd/2"
          local text = file:read "*a"
          file:close()
          if text ~= "" then return "completed\n" end
          msys.sleep(0.005)
        end
      end, function(_, text) msys.sleep(0.01) io.write(text) end, SCHED)
    ]]
    local out, err, status = run(script)
    assert.same({ "completed\n", 0 }, { out, status })
    assert.matches("^msys: the exit waits for 1 asynchronous job[^\n]*\n$", err)
  end)

  it("is ended by Ctrl-C while it waits for jobs", function()
    -- The completion says that the script itself is over.
    local script = [[
      msys.runInPool("CPU", function() msys.sleep(60) end, true)
      msys.runInPool("CPU", function() end, function() print "ready" io.stdout:flush() end, SCHED)
    ]]
    assert_run("ready\n", 130, run_interrupted(script))
  end)

  it("does so without a crash or a hang, a hundred times", function()
    local short = helper.file(MSYS .. [[
      local kind = tonumber(arg[1])
      local pool = msys.threadpool.create { name = "short", concurrency = 2 }
      for i = 1, 4 do
        msys.runInPool(i % 2 == 0 and "CPU" or pool, function() return i end, kind < 3 or function() end, kind)
      end
      if kind == 1 then
        assert(msys.runInPool("IO", function() return true end))
      elseif kind == 2 then
        os.exit(0, true)
      elseif kind == 4 then
        os.exit(0)
      end
    ]])
    -- Several at a time, so that their threads are interrupted anywhere.
    local script = [[
      local command = "for kind in 0 1 2 3 4; do (timeout 10 %s %s %s $kind; echo $?) & done; wait"
      command = command:format(os.getenv "LUAJIT" or "luajit", os.getenv "LUAJIT_FLAGS" or "", arg[1])
      local statuses = {}
      for _ = 1, 20 do
        local pipe = io.popen(command)
        for status in pipe:lines() do
          statuses[status] = (statuses[status] or 0) + 1
        end
        pipe:close()
      end
      for status, count in pairs(statuses) do print(status, count) end
    ]]
    local out, err, status = helper.script(script, { args = { short } })
    assert_run("0\t100\n", 0, out, err, status)
  end)
end)

describe("os.exit", function()
  after_each(helper.clean)

  -- The job never ends; it is compiled where the JIT compiler is on.
  local BUSY = [[
    msys.runInPool("CPU", function() while true do end end, true)
    while msys.threadpool.stat("CPU").job_num_running == 0 do msys.yield() end
  ]]

  local callers = {
    ["plain code"] = "os.exit(3)",
    ["a session"] = "msys.run(function() msys.sleep(0.001) os.exit(3) end)",
    ["a completion"] = [[msys.runInPool("IO", function() end, function() os.exit(3) end, SCHED) msys.sleep(60)]],
    ["a job"] = [[msys.runInPool("IO", function() os.exit(3) end)]],
  }
  for what, script in pairs(callers) do
    it("in " .. what .. " ends at once while jobs run", function()
      assert_run("", 3, run(BUSY .. script))
    end)
  end

  it("that closes the state finishes accepted jobs", function()
    local script = [[
      for i = 1, 100 do
        msys.runInPool("CPU", function() return "completed\n" end, function(_, text) io.write(text) end, SCHED)
      end
      os.exit(3, true)
    ]]
    assert_run(("completed\n"):rep(100), 3, run(script))
  end)
end)

describe("Ctrl-C", function()
  after_each(helper.clean)

  local READY = [[local function ready() print "ready" io.stdout:flush() end ]]
  local cases = {
    ["msys.sleep"] = [[msys.spawn(ready) msys.sleep(60)]],
    ["a synchronous runInPool"] = [[
      msys.runInPool("CPU", function() print "ready" io.stdout:flush() msys.sleep(60) end)
    ]],
    ["msys.run with sleeping sessions"] = [[
      for i = 1, 10 do msys.spawn(msys.sleep, 60) end
      msys.run(function() ready() msys.sleep(60) end)
    ]],
    ["msys.run with sessions that wait for jobs"] = [[
      for i = 1, 10 do msys.spawn(msys.runInPool, "CPU", function() msys.sleep(60) end) end
      msys.spawn(function() msys.runInPool("CPU", function() end) ready() end)
      msys.run()
    ]],
    ["a call that waits for room in a pool"] = [[
      local pool = msys.threadpool.create { name = "full", concurrency = 1, sessions = 1, backlog = 1 }
      msys.spawn(ready)
      for i = 1, 3 do msys.runInPool(pool, function() msys.sleep(60) end, true) end
    ]],
    ["pool:shutdown"] = [[
      local pool = msys.threadpool.create { name = "ending", concurrency = 1 }
      msys.runInPool(pool, function() msys.sleep(60) end, true)
      msys.spawn(ready)
      pool:shutdown()
    ]],
    ["a session that works"] = [[
      jit.off()
      msys.runInPool("CPU", function() msys.sleep(60) end, true)
      msys.spawn(function() ready() while true do end end)
      msys.run()
    ]],
    ["a session that msys.run was given"] = [[
      jit.off()
      msys.runInPool("CPU", function() msys.sleep(60) end, true)
      msys.run(function() ready() while true do end end)
    ]],
    ["a completion"] = [[
      jit.off()
      msys.runInPool("CPU", function() msys.sleep(60) end, true)
      msys.runInPool("IO", function() end, function() ready() while true do end end, SCHED)
      msys.sleep(60)
    ]],
    ["a wait while asynchronous jobs run"] = [[
      msys.runInPool("CPU", function() msys.sleep(60) end, function() end, SCHED)
      msys.spawn(ready)
      msys.run()
    ]],
  }
  -- In the midst of what is done for nobody in particular.
  local RAISED = [[
    local ffi = require "ffi"
    ffi.cdef "int raise(int signal);"
    -- Not compiled, so that the interpreter has a next instruction.
    jit.off()
    for i = 1, 3 do msys.spawn(function() while true do msys.sleep(0.01) end end) end
  ]]
  local raised_cases = {
    ["the handler of msys.onError"] = [[
      msys.onError(function() ffi.C.raise(2) local handled = true end)
      msys.runInPool("CPU", function() error "the job's" end, true)
      msys.run()
    ]],
    ["that handler, called by msys.poll"] = [[
      msys.onError(function() ffi.C.raise(2) local handled = true end)
      msys.runInPool("CPU", function() error "the job's" end, true)
      while true do msys.poll() end
    ]],
    ["a module that msys requires for an outcome"] = [[
      package.preload.raising = function() ffi.C.raise(2) return {} end
      msys.runInPool("CPU", function()
        local thing = setmetatable({}, { __msys_pack = function() return 1, "raising" end })
        return thing
      end)
    ]],
    ["that handler, called for a job that was not taken"] = [[
      local pool = msys.threadpool.create { name = "gone", concurrency = 1 }
      pool:shutdown()
      msys.onError(function() ffi.C.raise(2) local handled = true end)
      msys.runInPool(pool, function() end, true)
      print "goes on"
    ]],
    ["what makes the FFI objects of an outcome"] = [[
      local typeof = ffi.typeof
      ffi.typeof = function(...) ffi.C.raise(2) return typeof(...) end
      msys.runInPool("CPU", function() return require("ffi").new("uint64_t", 7) end)
      print "goes on"
    ]],
    -- A call hook can raise where C code of msys's is about to begin, which Ctrl-C does if it comes shortly before.
    ["the decoding of a report"] = [[
      local known = {}
      for _, module in pairs(package.loaded) do
        for _, value in pairs(type(module) == "table" and module or {}) do known[value] = true end
      end
      msys.onError(function() end)
      msys.runInPool("CPU", function() error "the job's" end, true)
      debug.sethook(function()
        local info = debug.getinfo(2, "fS")
        if info.what == "C" and not known[info.func] then
          debug.sethook()
          error("interrupted!", 0)
        end
      end, "c")
      msys.run()
    ]],
  }
  for what, script in pairs(raised_cases) do
    it("ends a script in " .. what, function()
      local out, err, status = helper.script('local msys = require "msys" ' .. RAISED .. script)
      assert.same({ "", 1 }, { out, status }, err)
      assert.matches("luajit: [^\n]*interrupted!\nstack traceback:\n", err)
    end)
  end

  for what, script in pairs(cases) do
    it("ends a script at once in " .. what, function()
      local out, err, status = run_interrupted(READY .. script, script:find "while true" and "R" or "S")
      assert.same({ "ready\n", 1 }, { out, status })
      -- The exit does not wait for jobs, and says so where there are any.
      err = err:gsub("\t[^\n]*\n", ""):gsub("msys: interrupted: %d asynchronous jobs are dropped %b()\n$", "")
      assert.matches("^[^\n]*: [^\n]*interrupted!\nstack traceback:\n$", err)
    end)
  end
end)
