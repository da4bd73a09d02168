-- The first seed's examples of `msys.runInPool`, as its manual has them, with `msys` in a local: what a script prints.
--
-- The manual's threads share one Lua universe; where that shows, SPEC.md says what is seen here instead.

local helper = require "spec.helper"

--- Runs an example; gives what it printed. It has to end with 0 and to print nothing to stderr.
---@param example string
---@return string
local function printed(example)
  local out, err, status = helper.script('local msys = require "msys"\n' .. example)
  assert.same({ "", 0 }, { err, status })
  return out
end

--- The same, as sorted lines, where the order is the threads'.
---@param example string
---@return string[]
local function printed_lines(example)
  local lines = {}
  for line in printed(example):gmatch "[^\n]+" do
    lines[#lines + 1] = line
  end
  table.sort(lines)
  return lines
end

--- For examples in which one thread waits for another: what waits in vain is ended by `helper.script`.
local LATCH = [[
  local path = os.tmpname()
  os.remove(path)
  local function open()
    assert(io.open(path, "w")):close()
  end
  local function await()
    while not os.remove(path) do
      msys.sleep(0.001)
    end
  end
]]

describe("the first seed's example", function()
  after_each(helper.clean)

  describe("status, result = msys.runInPool(pool, closure)", function()
    local values = {
      ['by name: "IO"'] = { '"IO"', "a result" },
      ['by name: "CPU"'] = { '"CPU"', "a result" },
      ["by identifier: 0"] = { "0", "a result" },
      ["by identifier: 1"] = { "1", "a result" },
    }
    for what, case in pairs(values) do
      it("suspends the script and returns the closure's value, " .. what, function()
        local out = printed(([[
          local pool = %s
          local closure = function()
            return "a result"
          end
          local status, result = msys.runInPool(pool, closure)
          print(status, result)
        ]]):format(case[1]))
        assert.equal("true\ta result\n", out)
      end)
    end

    it("returns all of the closure's values", function()
      local out = printed [[
        print(msys.runInPool("CPU", function()
          return 1, nil, "three", nil
        end))
      ]]
      assert.equal("true\t1\tnil\tthree\tnil\n", out)
    end)

    it("returns false and the error message of a closure that fails", function()
      local out = printed [[
        local status, result = msys.runInPool("CPU", function()
          error("no luck", 0)
        end)
        print(status, result)
      ]]
      assert.equal("false\tno luck\n", out)
    end)

    it("means the same as with false for a third parameter", function()
      local out = printed [[
        local closure = function()
          return "a result"
        end
        print(msys.runInPool("IO", closure))
        print(msys.runInPool("IO", closure, false))
      ]]
      assert.equal("true\ta result\ntrue\ta result\n", out)
    end)

    it("lets the scheduler's other work go on meanwhile", function()
      local out = printed(LATCH .. [[
        msys.spawn(function()
          print(select(2, msys.runInPool("IO", function()
            await()
            return "the blocking work"
          end)))
        end)
        msys.spawn(function()
          print("the other session")
          open()
        end)
        msys.run()
      ]])
      assert.equal("the other session\nthe blocking work\n", out)
    end)
  end)

  describe("msys.runInPool(pool, closure, true)", function()
    it("returns no results, and runs the closure", function()
      local lines = printed_lines [[
        local pool = "CPU"
        local closure = function()
          print("the closure")
          return "ignored"
        end
        print("results:", select("#", msys.runInPool(pool, closure, true)))
      ]]
      assert.same({ "results:\t0", "the closure" }, lines)
    end)

    it("goes on with the next statement without waiting for the closure", function()
      local out = printed(LATCH .. [[
        msys.runInPool("CPU", function()
          await()
          print("the closure")
        end, true)
        print("the next statement")
        open()
      ]])
      assert.equal("the next statement\nthe closure\n", out)
    end)
  end)

  it(
    "msys.runInPool(pool, closure, completion_closure) calls it after the closure, on its OS thread",
    function()
      local out = printed [[
      local function thread()
        local stat = assert(io.open("/proc/thread-self/stat"))
        local id = stat:read("*n")
        stat:close()
        return id
      end
      local host, of_closure = thread(), nil
      local closure = function()
        print("closure")
        of_closure = thread()
      end
      local completion_closure = function()
        print("completion", thread() == of_closure, thread() == host)
      end
      msys.runInPool("IO", closure, completion_closure)
    ]]
      assert.equal("closure\ncompletion\ttrue\tfalse\n", out)
    end
  )

  it("of a completion in the scheduler prints Done!, and leaves status and res nil", function()
    local out = printed [[
      local status, res
      status, res = msys.runInPool("IO",
        function()
          -- do some IO intensive work here, such as interrogate the message contents
          return "done"; -- passed back to the 'res' variable
        end,
        function()
          -- Completion function
          print("Done!");
        end,
        msys.core.ECTP_COMPLETE_CALLBACK_SCHED -- Complete in the scheduler
      );
      print(status, res)
      msys.run()
    ]]
    assert.equal("nil\tnil\nDone!\n", out)
  end)

  it(
    "of a completion in the scheduler runs it on the host's thread, when the script just ends too",
    function()
      local out = printed [[
      local in_scheduler = coroutine.create(print) -- would be refused, if the completion were sent
      msys.runInPool("IO", function()
        return "done"
      end, function(status, res)
        print("Done!", status, res, type(in_scheduler))
      end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
    ]]
      assert.equal("Done!\ttrue\tdone\tthread\n", out)
    end
  )

  for _, mode in ipairs { "msys.core.ECTP_COMPLETE_CALLBACK", "nil", "0", "42", "'scheduler'" } do
    it("ignores other modes, and completes in the pool: " .. mode, function()
      local out = printed(([[
        msys._OSTLS.where = "scheduler"
        msys.runInPool("CPU", function()
          _OSTLS.where = "pool"
        end, function()
          print("Done!", _OSTLS.where)
        end, %s)
      ]]):format(mode))
      assert.equal("Done!\tpool\n", out)
    end)
  end

  it("of a function reference does the heavy lifting", function()
    local out = printed [[
      local do_heavy_lifting, st, res
      do_heavy_lifting = function()
        print("doing heavy lifting")
        return true
      end
      st, res = msys.runInPool('IO', do_heavy_lifting)
      print(st, res)
    ]]
    assert.equal("doing heavy lifting\ntrue\ttrue\n", out)
  end)

  it("of an inline function does the heavy lifting", function()
    local out = printed [[
      local st, res
      st, res = msys.runInPool('IO',
        function()
          print("doing heavy lifting")
          return true
        end
      )
      print(st, res)
    ]]
    assert.equal("doing heavy lifting\ntrue\ttrue\n", out)
  end)

  -- The manual's `mod` is a policy module, and `test` logs; both are the script's own here. The marker is nil in the
  -- pools, since it was set for the host's thread: that is what the example is to show.
  local SETTING = [[
    local mod = {}
    local function test(what)
      print(what)
    end
    local _OSTLS = msys._OSTLS
    -- we want to validate that we ran on a different OS thread, so
    -- set a marker we can use in our output
    _OSTLS.async_t_marker = 42;
  ]]

  it("of validate_data runs on another OS thread than the one with the marker", function()
    local lines = printed_lines(SETTING .. [[
      function mod:validate_data(msg, ac, vctx)
       msys.runInPool('CPU', function ()
       print("CPU", "in cpu", _OSTLS.async_t_marker);
       end, true);
       test('validate_data');
       return msys.core.VALIDATE_CONT;
      end
      mod:validate_data({}, {}, {})
    ]])
    assert.same({ "CPU\tin cpu\tnil", "validate_data" }, lines)
  end)

  it("of validate_data_spool completes after the closure, on another OS thread than the marker's", function()
    local out = printed(SETTING .. [[
      function mod:validate_data_spool(msg, ac, vctx)
        msys.runInPool('CPU',
          function ()
            print("CB", "cb data spool", _OSTLS.async_t_marker);
          end,
          function ()
            print("CB", "cb completing", _OSTLS.async_t_marker);
          end
        )
      end
      mod:validate_data_spool({}, {}, {})
    ]])
    assert.equal("CB\tcb data spool\tnil\nCB\tcb completing\tnil\n", out)
  end)

  it("of _OSTLS keeps a marker from the closure to its completion", function()
    local out = printed [[
      msys.runInPool("CPU", function()
        _OSTLS.async_t_marker = 42
      end, function()
        print("CB", "cb completing", _OSTLS.async_t_marker)
      end)
    ]]
    assert.equal("CB\tcb completing\t42\n", out)
  end)

  it("of _TLS starts each closure with an empty one", function()
    local out = printed [[
      msys._TLS.mark = "the host's"
      for _ = 1, 2 do
        print(msys.runInPool("CPU", function()
          local before = _TLS.mark
          _TLS.mark = "a job's"
          msys.sleep(0)
          return before, _TLS.mark
        end))
      end
      print(msys._TLS.mark)
    ]]
    assert.equal("true\tnil\ta job's\ntrue\tnil\ta job's\nthe host's\n", out)
  end)
end)
