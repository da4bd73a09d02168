--- Pools: finding, creating, measuring, crossing to workers, and what is refused. What `concurrency`, `sessions` and
--- `backlog` limit is in pool_limits_spec.lua, how pools end in pool_shutdown_spec.lua, what `init` does in
--- init_spec.lua.

local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"

local tp = msys.threadpool
local until_stat, send, all_true = gate.until_stat, gate.send, gate.all_true

local describe, it, _, after_each, assert = helper.busted()

local function idle() end

after_each(helper.clean)

describe("predefined pools:", function()
  it("CPU is pool 0, with as many workers as this process may use cores", function()
    local pipe = assert(io.popen "nproc")
    local cores = tonumber(pipe:read "*l")
    pipe:close()
    assert.equal(0, tp.find "CPU")
    assert.equal(cores, tp.stat("CPU").concurrency)
  end)

  it("IO is pool 1, with up to 50 workers", function()
    assert.equal(1, tp.find "IO")
    assert.equal(50, tp.stat("IO").concurrency)
  end)

  it("both are there and have no thread before the first job", function()
    local out = helper.script [[
      local tp = require("msys").threadpool
      print(tp.count(), tp.stat("CPU").num_threads, tp.stat("IO").num_threads)
    ]]
    assert.equal("2\t0\t0\n", out)
  end)
end)

describe("msys.threadpool.find", function()
  it("gives the id for a name in any case, the name for an id, nil for what is unknown", function()
    helper.with_pool({ name = "Find-Me" }, function(pool)
      local cases = {
        { "Find-Me", pool.id },
        { "FIND-me", pool.id },
        { pool.id, "Find-Me" },
        { pool, "Find-Me" },
        { "cpu", 0 },
        { "io", 1 },
        { 0, "CPU" },
        { 1, "IO" },
        { "nobody" },
        { "" },
        { "CPU " },
        { -1 },
        { 0.5 },
        { pool.id + 1000 },
        { 2 ^ 32 },
        { 2 ^ 60 },
        { 0 / 0 },
      }
      for _, case in ipairs(cases) do
        assert.equal(case[2], tp.find(case[1]), tostring(case[1]))
      end
    end)
  end)

  it("finds in a worker what the host finds", function()
    helper.with_pool({ name = "Both-Sides" }, function(pool)
      local ok, id, name = msys.runInPool(pool, function()
        return tp.find "both-sides", tp.find(1)
      end)
      assert.same({ true, pool.id, "IO" }, { ok, id, name })
    end)
  end)
end)

describe("msys.threadpool.create", function()
  it("takes every option together", function()
    local options = { name = "Every-Option", concurrency = 3, sessions = 2, backlog = 5, when_full = "fail" }
    options.stack_size, options.max_message, options.init = 256 * 1024, 100000, function() end
    helper.with_pool(options, function(pool)
      assert.equal("Every-Option", pool.name)
      assert.equal(3, pool:stat().concurrency)
      assert.same({ true, 7 }, { msys.runInPool(pool, function()
        return 7
      end) })
    end)
  end)

  it("counts a pool until it is shut down", function()
    local before = tp.count()
    helper.with_pool(nil, function()
      assert.equal(before + 1, tp.count())
    end)
    assert.equal(before, tp.count())
  end)

  it("leaves the options table as it was", function()
    local function init() end
    local options = { name = "Untouched", concurrency = 1, init = init }
    helper.with_pool(options, function() end)
    assert.same({ name = "Untouched", concurrency = 1, init = init }, options)
  end)

  it("works in a worker, for a pool that the host then uses", function()
    local ok, pool = msys.runInPool("CPU", function()
      return tp.create { name = "Made-In-A-Worker", concurrency = 1 }
    end)
    assert.is_true(ok, pool)
    local results = { msys.runInPool("made-in-a-worker", function()
      return 1
    end) }
    pool:shutdown()
    assert.same({ true, 1 }, results)
  end)
end)

describe("msys.threadpool.stat", function()
  it("has the fields of the contract, for a name, an id and a pool alike", function()
    local fields = {
      name = "string",
      invocations = "number",
      avg_concurrency = "number",
      saturation = "number",
      avg_wallclock_time_per_op = "number",
      queue_sz = "number",
      num_threads = "number",
      num_active_threads = "number",
      num_inactive_threads = "number",
      job_num_queued = "number",
      job_num_running = "number",
    }
    helper.with_pool(nil, function(pool)
      for _, given in ipairs { pool.name, pool.name:upper(), pool.id, pool } do
        local stat = tp.stat(given)
        for field, kind in pairs(fields) do
          assert.equal(kind, type(stat[field]), field)
        end
        assert.equal(pool.name, stat.name)
      end
    end)
  end)

  it("is nil for a pool that nobody created", function()
    assert.is_nil(tp.stat "nobody")
    assert.is_nil(tp.stat(12345))
  end)

  it("counts the jobs that ended, and among them those that failed", function()
    helper.with_pool({ concurrency = 2 }, function(pool)
      for number = 1, 7 do
        msys.runInPool(pool, function()
          _G.assert(number > 2)
        end)
      end
      until_stat(pool, { invocations = 7, errors = 2, job_num_running = 0, queue_sz = 0 })
    end)
  end)

  it("tells running from queued jobs while all workers are held", function()
    gate.holding({ concurrency = 2, sessions = 1 }, function(pool, hold, open)
      local outcomes = send(pool, 5, hold)
      until_stat(pool, { job_num_running = 2, queue_sz = 3, job_num_queued = 3 })
      local stat = pool:stat()
      assert.same({ 2, 2, 0, 1 }, {
        stat.num_threads,
        stat.num_active_threads,
        stat.num_inactive_threads,
        stat.saturation,
      })
      open()
      msys.run()
      all_true(5, outcomes)
      until_stat(
        pool,
        { job_num_running = 0, queue_sz = 0, invocations = 5, num_inactive_threads = 2, saturation = 0 }
      )
      assert.is_true(pool:stat().avg_wallclock_time_per_op > 0)
      assert.is_true(pool:stat().avg_concurrency > 0)
    end)
  end)

  it("keeps the counts of workers that have ended", function()
    helper.with_pool({ concurrency = 4, sessions = 1 }, function(pool)
      msys.run(function()
        send(pool, 20, function()
          msys.sleep(0.001)
        end)
      end)
      pool:shutdown()
      local stat = pool:stat()
      assert.same({ 20, 0 }, { stat.invocations, stat.num_threads })
    end)
  end)
end)

describe("a pool object", function()
  it("has its id and name, and says them", function()
    helper.with_pool({ name = "Fields" }, function(pool)
      assert.equal("Fields", pool.name)
      assert.equal(pool.id, tp.find "fields")
      assert.equal(("msys.pool: Fields (id %d)"):format(pool.id), tostring(pool))
    end)
  end)

  it("crosses to a worker and back as itself", function()
    helper.with_pool(nil, function(pool)
      local ok, back, id, name = msys.runInPool("CPU", function(given)
        return given == pool and given, given.id, pool.name
      end, { args = { pool } })
      assert.same({ true, pool.id, pool.name }, { ok, id, name })
      assert.is_true(rawequal(pool, back))
    end)
  end)

  it("can be used in a worker", function()
    helper.with_pool(nil, function(pool)
      local ok, inner, answer, invocations = msys.runInPool("IO", function()
        local ok, answer = msys.runInPool(pool, function()
          return 42
        end)
        return ok, answer, type(pool:stat().invocations)
      end)
      assert.same({ true, true, 42, "number" }, { ok, inner, answer, invocations })
    end)
  end)

  it("can be a key of tables that cross", function()
    helper.with_pool(nil, function(pool)
      local ok, found = msys.runInPool(pool, function(names)
        return names[pool]
      end, { args = { { [pool] = "mine" } } })
      assert.same({ true, "mine" }, { ok, found })
    end)
  end)
end)

describe("a worker's memory for large tables", function()
  it("is used again by the next job, and goes back to the system when there is none", function()
    local out, err = helper.script [[
      local msys = require "msys"
      --- Fields of /proc/self/stat, which are numbers, behind the name.
      local function stat(place)
        local file = io.open "/proc/self/stat"
        local rest = file:read("*a"):match "%) . (.*)"
        file:close()
        local fields = {}
        for field in rest:gmatch "%S+" do
          fields[#fields + 1] = tonumber(field)
        end
        return fields[place - 3]
      end
      local function faults() return stat(10) end
      local function resident() return stat(24) * 4 end
      local pool = msys.threadpool.create { name = "Large", concurrency = 1 }
      local function job()
        local list = {}
        for i = 1, 350000 do list[i] = i end
        return #list
      end
      -- What other sizes have had is not kept for ever in place of what is used.
      local long = {}
      for i = 1, 5 do long[i] = string.char(64 + i):rep(3 * 2 ^ 20) end
      assert(msys.runInPool(pool, function() return #long[5] end, { in_place = false }))
      assert(msys.runInPool(pool, function() collectgarbage() collectgarbage() end))
      for _ = 1, 10 do assert(msys.runInPool(pool, job)) end
      local before = faults()
      for _ = 1, 20 do assert(msys.runInPool(pool, job)) end
      -- Each table is of 4 MiB, 1,024 pages.
      local taken = (faults() - before) / 20
      print(taken < 200 and "used again" or taken .. " page faults a job")
      local most, deadline = resident(), os.time() + 20
      repeat
        msys.sleep(0.05)
      until most - resident() > 6000 or os.time() > deadline
      print(most - resident() > 6000 and "given back" or most - resident() .. " KiB given back")
      print(msys.runInPool(pool, job))
    ]]
    assert.same({ "used again\ngiven back\ntrue\t350000\n", "" }, { out, err })
  end)
end)

describe("what is refused:", function()
  --- Calls `fn(...)` and gives what it raised, without the place, which has to be the line of the call in here.
  local function raised(fn, ...)
    local args, n = { ... }, select("#", ...)
    local line = debug.getinfo(1, "l").currentline + 2
    local ok, err = pcall(function()
      fn(unpack(args, 1, n))
    end)
    assert.is_false(ok)
    local place = ("spec/pools_spec.lua:%d: "):format(line)
    assert.equal(place, err:sub(1, #place), err)
    return err:sub(#place + 1)
  end

  local file = io.stdout
  local unknown = ", expected one of backlog, concurrency, init, interruptible, max_abandoned, max_message, "
    .. "memory_limit, name, sessions, stack_size, when_full"
  local creations = {
    { nil, "options must be a table, got nil" },
    { "fast", "options must be a table, got string" },
    { {}, "name is required: a string that is not empty" },
    { { name = "" }, "name is required: a string that is not empty" },
    { { name = 12 }, "name must be a string, got number" },
    { { name = true }, "name must be a string, got boolean" },
    { { name = "12" }, "name must not be a number, got '12'" },
    { { name = "CPU" }, "there is already a pool named 'CPU'" },
    { { name = "io" }, "there is already a pool named 'io'" },
    { { name = "a", concurrency = 0 }, "concurrency must be a whole number from 1 to 1024, got 0" },
    { { name = "a", concurrency = -1 }, "concurrency must be a whole number from 1 to 1024, got -1" },
    { { name = "a", concurrency = 1e6 }, "concurrency must be a whole number from 1 to 1024, got 1000000" },
    { { name = "a", concurrency = 1.5 }, "concurrency must be a whole number from 1 to 1024, got 1.5" },
    { { name = "a", concurrency = "4" }, "concurrency must be a number, got string" },
    { { name = "a", sessions = 0 }, "sessions must be a whole number from 1 to 1048576, got 0" },
    { { name = "a", sessions = {} }, "sessions must be a number, got table" },
    { { name = "a", backlog = 0 }, "backlog must be a whole number from 1 to 1073741824, got 0" },
    { { name = "a", backlog = false }, "backlog must be a number, got boolean" },
    { { name = "a", when_full = "block" }, "when_full must be 'wait' or 'fail', got 'block'" },
    { { name = "a", when_full = 1 }, "when_full must be 'wait' or 'fail', got number" },
    { { name = "a", stack_size = 1 }, "stack_size must be a whole number from 131072 to 1073741824, got 1" },
    { { name = "a", max_message = 1 }, "max_message must be a whole number from 64 to 4294967295, got 1" },
    { { name = "a", max_message = "1M" }, "max_message must be a number, got string" },
    { { name = "a", init = "require 'x'" }, "init must be a function, got string" },
    { { name = "a", concurency = 4 }, "unknown option 'concurency'" .. unknown },
    { { name = "a", Concurrency = 4 }, "unknown option 'Concurrency'" .. unknown },
    { { "a" }, "unknown option '1'" .. unknown },
    {
      { name = "a", memory_limit = 1 },
      "memory_limit must be a whole number from 1048576 to 70368744177664, got 1",
    },
    { { name = "a", interruptible = 1 }, "interruptible must be a boolean, got number" },
    { { name = "a", max_abandoned = -1 }, "max_abandoned must be a whole number from 0 to 1024, got -1" },
  }
  for place, case in ipairs(creations) do
    it(("create: %d. %s"):format(place, case[2]:gsub(", expected.*", "")), function()
      local count = tp.count()
      assert.equal("msys.threadpool.create: " .. case[2], raised(tp.create, case[1]))
      assert.equal(count, tp.count())
    end)
  end

  it("create with the name of a pool in another case", function()
    helper.with_pool({ name = "Taken" }, function()
      assert.equal(
        "msys.threadpool.create: there is already a pool named 'TAKEN'",
        raised(tp.create, { name = "TAKEN" })
      )
    end)
  end)

  it("methods with wrong values, and without a pool", function()
    helper.with_pool(nil, function(pool)
      local range = "msys pool:resize: concurrency must be a whole number from 1 to 1024, got "
      local cases = {
        { "resize", { pool, 0 }, range .. "0" },
        { "resize", { pool, 1e6 }, range .. "1000000" },
        { "resize", { pool, 2.5 }, range .. "2.5" },
        { "resize", { pool }, "msys pool:resize: concurrency must be a number, got nil" },
        { "resize", { pool, "4" }, "msys pool:resize: concurrency must be a number, got string" },
        { "resize", { 4 }, "msys pool:resize: not a pool (call it with a colon)" },
        { "resize", { file, 4 }, "msys pool:resize: not a pool (call it with a colon)" },
        { "shutdown", {}, "msys pool:shutdown: not a pool (call it with a colon)" },
        { "shutdown", { pool, true }, "msys pool:shutdown: options must be a table, got boolean" },
        {
          "shutdown",
          { pool, { dorp = true } },
          "msys pool:shutdown: unknown option 'dorp', expected drop",
        },
        {
          "shutdown",
          { pool, { drop = 1 } },
          "msys pool:shutdown: option 'drop' must be a boolean, got number",
        },
        { "stat", {}, "msys pool:stat: not a pool (call it with a colon)" },
      }
      for _, case in ipairs(cases) do
        assert.equal(case[3], raised(pool[case[1]], unpack(case[2], 1, 2)))
      end
      -- None of them has harmed it.
      assert.same({ true, 1, 1 }, { msys.runInPool(pool, function()
        return 1, 1
      end) })
    end)
  end)

  it("a job for an unknown pool, naming those that there are", function()
    helper.with_pool({ name = "Known" }, function()
      local cases = {
        { "nobody", "unknown pool 'nobody', known are: CPU, IO, Known" },
        { 12345, "unknown pool 12345, known are: CPU, IO, Known" },
        { 0.5, "unknown pool 0.5, known are: CPU, IO, Known" },
        { file, "pool must be a name, an id or a pool, got userdata" },
        { {}, "pool must be a name, an id or a pool, got table" },
      }
      for _, case in ipairs(cases) do
        assert.equal("msys.runInPool: " .. case[2], raised(msys.runInPool, case[1], idle))
      end
    end)
  end)

  it("a message larger than max_message, naming both sizes", function()
    helper.with_pool({ name = "Small", max_message = 10000 }, function(pool)
      local text = ("x"):rep(20000)
      for _, third in ipairs { { args = { text } }, { args = { text }, async = true } } do
        local err = raised(msys.runInPool, pool, idle, third)
        local size = tonumber(
          err:match "^msys.runInPool: the message has (%d+) bytes, pool 'Small' takes at most 10000 %(max_message%)"
        )
        assert.is_true(size and size > 20000 and size < 21000, err)
      end
      assert.is_true((msys.runInPool(pool, idle, { args = { n = 0 }, async = false })))
    end)
  end)

  it("a message larger than max_message, naming its largest parts with their sizes", function()
    helper.with_pool({ name = "Parts", max_message = 10000 }, function(pool)
      local rows, text, small = {}, ("x"):rep(3000), { 1 }
      for i = 1, 20000 do
        rows[i] = i
      end
      local err = raised(msys.runInPool, pool, function()
        return rows, text, small
      end, { args = { ("y"):rep(4096) } })
      local parts =
        "; the largest parts are upvalue 'rows' with 97.7 KiB, argument 1 with 4.0 KiB and upvalue 'text' with 2.9 KiB"
      assert.equal(parts, err:match ";.*$")
      local ok, of_result = msys.runInPool(pool, function()
        return 1, ("x"):rep(2 ^ 20)
      end)
      assert.is_false(ok)
      assert.equal("; the largest part is result 2 with 1.0 MiB", of_result:match ";.*$")
    end)
  end)

  it("a result larger than max_message, as an outcome that names both sizes", function()
    helper.with_pool({ name = "Narrow", max_message = 100000 }, function(pool)
      local ok, err, info = msys.runInPool(pool, function()
        return ("x"):rep(200000)
      end)
      assert.is_false(ok)
      local pattern = "the message has 200%d%d%d bytes, pool 'Narrow' takes at most 100000 %(max_message%)"
      assert.is_truthy(tostring(err):match(pattern), err)
      assert.equal("string", type(info.kind))
    end)
  end)
end)
