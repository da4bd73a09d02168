-- `msys.submit` and what comes of it: futures, `msys.all`, `msys.any`, `msys.map`; and `msys.sleep`.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local LIMIT = helper.LIMIT
local must, eventually, with_pool = helper.must, helper.eventually, helper.with_pool

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- What a future gives; bounded, so that a lost wake-up fails its own test.
local function outcome(fut)
  return pack(fut:wait(LIMIT))
end

local function same(...)
  return ...
end

local function failing(text)
  return function()
    error(text, 0)
  end
end

local function in_job(fn, ...)
  return must("CPU", fn, ...)
end

--- A job that has begun and waits, and a function that lets it end with a value.
local function held(pool)
  local gate, begun = thread.channel(), thread.channel()
  local fut = msys.submit(pool, function()
    begun:send(true)
    return threads.take(gate)
  end)
  threads.take(begun)
  return fut, function(value)
    gate:send(value)
  end
end

--- Runs `fn(pool, busy, release)` with a pool that has room for no other job in progress, so that it is queued.
local function with_busy(fn)
  with_pool({ sessions = 1 }, function(pool)
    fn(pool, held(pool))
  end)
end

describe("a future", function()
  after_each(helper.clean)

  local RESULTS = {
    ["nothing"] = pack(),
    ["a nil"] = pack(nil),
    ["nils around a value"] = pack(nil, 1, nil),
    ["values"] = pack(1.5, "text\0", false, { 1, { a = "b" } }),
    ["hundreds of values"] = pack(unpack({}, 1, 300)),
  }
  for what, results in pairs(RESULTS) do
    it("gives " .. what .. ", each time and in every VM", function()
      local fut = msys.submit("CPU", same, unpack(results, 1, results.n))
      local expected = pack(true, unpack(results, 1, results.n))
      assert.same(expected, outcome(fut))
      -- A VM has its tables once.
      assert.equal(outcome(fut)[5], outcome(fut)[5])
      assert.same(expected, must("CPU", outcome, fut))
      -- What has ended is there at once.
      assert.same(expected, pack(fut:wait(0)))
      assert.equal("done", fut:status())
    end)
  end

  for _, value in ipairs { "a text", { code = 7 }, 5, false } do
    it("gives an error that is a " .. type(value) .. ", with its info", function()
      local fut = msys.submit("CPU", failing(value))
      for _, got in ipairs { outcome(fut), outcome(fut), must("CPU", outcome, fut) } do
        local info = got[3]
        assert.same({ 3, false, value }, { got.n, got[1], got[2] })
        assert.same({ "error", "CPU", "number" }, { info.kind, info.pool, type(info.job) })
        assert.is_truthy(info.traceback:find("futures_spec.lua", 1, true))
      end
    end)
  end

  it("gives kind unsendable for results that cannot cross", function()
    local fut = msys.submit("CPU", function()
      return coroutine.create(print)
    end)
    local ok, err, info = fut:wait(LIMIT)
    assert.same({ false, "unsendable" }, { ok, info.kind })
    assert.equal("msys.runInPool: cannot send result 1 (coroutine)", err)
  end)

  for way, call in pairs(threads.ways) do
    it("is awaited " .. way .. ", in the host and in a job", function()
      for value, run in pairs { a = threads.ways["by itself"], b = msys.run, c = in_job } do
        -- What the job gives is sent while it is awaited.
        local fut, release = held "IO"
        msys.submit("CPU", release, value)
        assert.same(pack(true, value), run(call, outcome, fut))
      end
    end)
  end

  it("ends the waits of many sessions in several VMs", function()
    helper.with_two({}, function(a, b)
      local fut, release = held "CPU"
      local begun, got = thread.counter(), thread.channel()
      local function waiter()
        begun:add()
        got:send(select(2, fut:wait(LIMIT)))
      end
      for _ = 1, 10 do
        msys.spawn(waiter)
        msys.submit(a, waiter)
        msys.submit(b, waiter)
      end
      eventually(function()
        return begun:get() == 30
      end, "the waiters")
      release "value"
      for _ = 1, 30 do
        assert.equal("value", threads.take(got))
      end
      msys.run()
    end)
  end)

  it("gives nil and why when the time is over, and the job goes on", function()
    local fut, release = held "CPU"
    local expected = pack(nil, "timeout")
    for _, timeout in ipairs { 0, 1e-9, 0.01 } do
      assert.same(expected, pack(fut:wait(timeout)))
      assert.same(expected, pack(msys.run(fut.wait, fut, timeout)))
      assert.same(expected, pack(must("CPU", fut.wait, fut, timeout)))
    end
    assert.equal("running", fut:status())
    release "value"
    assert.same(pack(true, "value"), pack(fut:wait(math.huge)))
  end)

  it("says how far its job is", function()
    with_busy(function(pool, busy, release)
      local good, bad = msys.submit(pool, same, 1), msys.submit(pool, failing "bad")
      local function states()
        return { busy:status(), good:status(), bad:status() }
      end
      assert.same({ "running", "queued", "queued" }, states())
      assert.same({ "running", "queued", "queued" }, must("CPU", states))
      release()
      assert.is_false((bad:wait(LIMIT)))
      assert.same({ "done", "done", "failed" }, states())
      assert.matches("^msys%.future: 0x%x+ %(failed%)$", tostring(bad))
    end)
  end)

  it("crosses as an argument, in an upvalue, a channel, a shared table and results", function()
    local fut, release = held "IO"
    local t, ch, shared = { fut }, thread.channel(), thread.shared { list = { fut } }
    ch:send { fut }
    msys.submit("CPU", release, "value")
    local crossed = must("CPU", function(arg)
      local list = { arg, t[1], threads.take(ch)[1], shared.list[1] }
      for place = 1, 4 do
        list[place + 4] = select(2, list[place]:wait(LIMIT))
      end
      return list
    end, fut)
    assert.same({ fut, fut, fut, fut, "value", "value", "value", "value" }, crossed)
    assert.same(pack(true, "value"), outcome(crossed[1]))
  end)

  it("outlives the VM that has submitted its job", function()
    local fut = with_pool({}, function(pool)
      return must(pool, msys.submit, "CPU", same, { "kept" })
    end)
    assert.same(pack(true, { "kept" }), outcome(fut))
  end)
end)

describe("cancel", function()
  after_each(helper.clean)

  it("ends a job that is queued, which never runs, and no other", function()
    with_busy(function(pool, busy, release)
      local ran, waited = thread.counter(), nil
      local function count()
        ran:add()
      end
      local first, second = msys.submit(pool, count), msys.submit(pool, count)
      msys.spawn(function()
        waited = outcome(first)
      end)
      msys.yield()
      assert.same({ true, "failed" }, { first:cancel "not needed", first:status() })
      assert.is_true(must("CPU", second.cancel, second))
      msys.run()
      assert.same({ false, "cancelled" }, { waited[1], waited[3].kind })
      assert.matches("^msys: job %d+ of pool '.*' was cancelled: not needed %(it waited", waited[2])
      local ok, err, info = second:wait(0)
      assert.same({ false, "cancelled" }, { ok, info.kind })
      assert.matches("^msys: job %d+ of pool '.*' was cancelled %(it waited", err)
      assert.is_false(first:cancel())
      release "value"
      assert.same(pack(true, "value"), outcome(busy))
      -- The pool has come past both.
      assert.same(pack(true, 1), outcome(msys.submit(pool, same, 1)))
      assert.equal(0, ran:get())
    end)
  end)

  it("stops a job that runs, once, and gives false for one that has ended", function()
    local fut = held "CPU"
    assert.same({ true, false }, { fut:cancel "enough", fut:cancel() })
    local ended = outcome(fut)
    assert.same({ false, "cancelled" }, { ended[1], ended[3].kind })
    assert.matches("was cancelled: enough", ended[2])
    local done = msys.submit("CPU", same, 1)
    assert.same(pack(true, 1), outcome(done))
    assert.same({ false, "done" }, { done:cancel(), done:status() })
  end)
end)

describe("a failure", function()
  after_each(helper.clean)

  -- How often it is reported, after what was done with the only handle while the job was queued.
  local USES = {
    [""] = 1,
    ["fut:wait(0)"] = 1,
    ["release() eventually(function() return fut:status() == 'failed' end)"] = 1,
    ["fut:cancel()"] = 0,
    ["release() fut:wait()"] = 0,
    ["release() must('CPU', fut.wait, fut)"] = 0,
    ["release() msys.all { fut }"] = 0,
    ["release() msys.any { fut }"] = 0,
  }
  for code, expected in pairs(USES) do
    it(("is reported %d times after '%s'"):format(expected, code), function()
      local counts = { unasked = 0, text = 0 }
      local function count(errors)
        for place, report in ipairs(errors) do
          counts[report.err] = counts[report.err] + 1
          errors[place] = nil
        end
        return counts.unasked == 1 and counts.text >= expected
      end
      helper.catching(function(errors)
        with_pool({ sessions = 1 }, function(pool)
          local busy, release = held(pool)
          -- In a coroutine of its own: a slot of this stack may keep the handle.
          threads.within_coroutine(function()
            local fut = msys.submit(pool, failing "text")
            local env = { msys = msys, must = must, eventually = eventually, fut = fut, release = release }
            setfenv(assert(loadstring(code)), env)()
            msys.submit(pool, failing "unasked")
          end)
          release()
          outcome(busy)
          eventually(function()
            helper.collect()
            return count(errors)
          end, "the reports")
          -- Another of them has come by now.
          must(pool, function() end)
          msys.poll()
          count(errors)
        end)
      end)
      assert.same({ unasked = 1, text = expected }, counts)
    end)
  end

  it("is reported at the exit too, where jobs are finished first and cancelled ones never run", function()
    local out, err, status = helper.script [[
      local msys, thread = require "msys", require "thread"
      local pool = msys.threadpool.create { name = "one", concurrency = 1, sessions = 1 }
      local gate = thread.channel()
      kept = msys.submit("CPU", function() error("kept", 0) end)
      asked = msys.submit("CPU", function() error("asked", 0) end)
      asked:wait()
      late = msys.submit(pool, function() gate:receive() print "finished" end)
      assert(msys.submit(pool, function() print "never" end):cancel())
      gate:send(1)
    ]]
    assert.same({ "finished\n", 0 }, { out, status })
    assert.matches("^msys: error in job %d+ of pool CPU: kept\n", err)
    assert.is_nil(err:find "\nmsys: error")
  end)

  it("of kind shutdown is what a pool that ends leaves of its jobs", function()
    with_busy(function(pool, busy)
      local ran = thread.counter()
      local queued = msys.submit(pool, function()
        ran:add()
      end)
      pool:shutdown { drop = true }
      for _, fut in ipairs { busy, queued, msys.submit(pool, same, 1) } do
        local ok, err, info = fut:wait(LIMIT)
        assert.same({ false, "shutdown", pool.name }, { ok, info.kind, info.pool })
        assert.is_truthy(err:find "is shut down")
      end
      assert.equal(0, ran:get())
    end)
  end)
end)

describe("of several futures,", function()
  after_each(helper.clean)

  it("msys.all gives the first results in the order of the list", function()
    assert.same(pack(true, { n = 0 }), pack(msys.all {}))
    local first, release = held "CPU"
    local list = { first, msys.submit("CPU", same), msys.submit("CPU", same, "last", 2), first }
    local expected = pack(true, { n = 4, "first", nil, "last", "first" })
    msys.submit("CPU", release, "first")
    assert.same(expected, pack(msys.all(list)))
    assert.same(expected, pack(must("CPU", msys.all, list)))
  end)

  it("msys.all takes 1500", function()
    local list, expected = {}, { n = 1500 }
    for i = 1, 1500 do
      list[i], expected[i] = msys.submit("CPU", same, i), i
    end
    assert.same(pack(true, expected), pack(msys.all(list)))
  end)

  it("msys.all gives the first failure with its place, while others go on", function()
    local fut, release = held "CPU"
    local list = { msys.submit("CPU", same, 1), fut, msys.submit("CPU", failing "bad") }
    local ok, err, info, place = msys.all(list)
    assert.same({ false, "bad", "error", 3 }, { ok, err, info.kind, place })
    assert.equal("running", fut:status())
    release "value"
    assert.same(pack(true, "value"), outcome(fut))
  end)

  it("msys.any gives the first results with their place, after failures too", function()
    local fut, release = held "CPU"
    local failed, good = msys.submit("CPU", failing "bad"), msys.submit("CPU", same, 1, nil, 3, nil)
    assert.same(pack(true, 3, 1, nil, 3, nil), pack(msys.any { fut, failed, good }))
    eventually(function()
      return failed:status() == "failed"
    end)
    msys.submit("CPU", release, "value")
    assert.same(pack(true, 2, "value"), pack(msys.any { failed, fut }))
  end)

  it("msys.any gives a failure with its place when all have failed", function()
    local list = { msys.submit("CPU", failing "bad 1"), msys.submit("CPU", failing "bad 2") }
    local ok, err, info, place = msys.any(list)
    assert.same({ false, "bad " .. place, "error" }, { ok, err, info.kind })
  end)
end)

describe("msys.map", function()
  after_each(helper.clean)

  local function numbers(count)
    local list = {}
    for i = 1, count do
      list[i] = i
    end
    return list
  end

  local SIZES = { { 0 }, { 1 }, { 7, 1 }, { 7, 7 }, { 7, 100 }, { 1003, 10 }, { 20000 } }
  for _, size in ipairs(SIZES) do
    local count, chunk = unpack(size)
    it(
      ("gives %d results in order, chunk %s, and says how far it is"):format(count, chunk or "found"),
      function()
        local factor, last, calls = 2, 0, 0
        local function progress(done, of)
          assert.is_true(done > last and of == count)
          last, calls = done, calls + 1
        end
        local results = msys.map("CPU", numbers(count), function(item, index)
          return item * factor + index
        end, { chunk = chunk, progress = progress })
        assert.same({ count, count, count }, { results.n, #results, last })
        for i = 1, count do
          assert.equal(3 * i, results[i])
        end
        if chunk then assert.equal(math.ceil(count / chunk), calls) end
      end
    )
  end

  it("takes a list with n and holes, and keeps results that are nil", function()
    local results = msys.map("CPU", { n = 5, 1, nil, 3 }, function(item, index)
      return item or index == 5 and "five" or nil
    end, { chunk = 2 })
    assert.same({ n = 5, 1, nil, 3, nil, "five" }, results)
  end)

  it("raises the first error by its place in the list, whichever comes first", function()
    with_pool({ concurrency = 2 }, function(pool)
      local gate = thread.channel()
      local function map(count, chunk, fn)
        return pack(pcall(msys.map, pool, numbers(count), fn, { chunk = chunk }))
      end
      local results = map(4, 1, function(item)
        if item == 2 then threads.take(gate) end
        if item == 4 then gate:send(true) end
        if item % 2 == 0 then error("bad " .. item, 0) end
      end)
      assert.same(pack(false, "bad 2 (item 2)"), results)
      results = map(20, 10, function(item)
        if item >= 13 then error("bad " .. item, 0) end
      end)
      assert.same(pack(false, "bad 13 (item 13)"), results)
      -- What is no text stays as it is.
      assert.same(pack(false, { 7 }), map(1, nil, failing { 7 }))
    end)
  end)

  for way, call in pairs(threads.ways) do
    it("works " .. way .. ", in the host and nested in a job of its own pool", function()
      with_pool({}, function(pool)
        local function last(list)
          return msys.map(pool, list, same)[100]
        end
        assert.equal(100, call(last, numbers(100)))
        assert.equal(100, must(pool, call, last, numbers(100)))
      end)
    end)
  end
end)

describe("msys.sleep", function()
  after_each(helper.clean)

  it("ends in the order of the times", function()
    local order = {}
    for _, seconds in ipairs { 0.2, 0, 0.1 } do
      msys.spawn(function()
        msys.sleep(seconds)
        order[#order + 1] = seconds
      end)
    end
    msys.run()
    assert.same({ 0, 0.1, 0.2 }, order)
    assert.same(pack(), pack(msys.sleep(0)))
  end)

  it("is slept by 20000 sessions of a VM at once, and all wake", function()
    local function sleepers()
      local asleep, awake, most = 0, 0, 0
      for i = 1, 20000 do
        msys.spawn(function()
          asleep = asleep + 1
          most = math.max(most, asleep - awake)
          msys.sleep(0.5 + i % 7 / 1000)
          awake = awake + 1
        end)
      end
      threads.await(function()
        return awake == 20000
      end, "all to wake")
      return most
    end
    -- How many sleep before the first wakes is up to the machine.
    assert.is_true(sleepers() > 1000)
    assert.is_true(must("CPU", sleepers) > 1000)
  end)
end)

describe("what is refused:", function()
  after_each(helper.clean)

  local CASES = {
    ["fut:wait(-1)"] = "msys.future:wait: timeout must not be negative, got -1",
    ["fut:wait(0/0)"] = "msys.future:wait: timeout must not be negative, got nan",
    ["fut:wait '1'"] = "msys.future:wait: timeout must be a number, got string",
    ["fut.wait()"] = "msys.future:wait: called on nil (call it with a colon)",
    ["fut.status {}"] = "msys.future:status: called on table (call it with a colon)",
    ["fut.cancel 'x'"] = "msys.future:cancel: called on string (call it with a colon)",
    ["fut:cancel(5)"] = "msys.future:cancel: reason must be a string, got number",
    ["msys.submit('nowhere', f)"] = "msys.submit: unknown pool 'nowhere', known are: CPU, IO",
    ["msys.submit(nil, f)"] = "msys.submit: pool must be a name, an id or a pool, got nil",
    ["msys.submit('CPU')"] = "msys.submit: fn must be a Lua function, got nil",
    ["msys.submit('CPU', f, 1, coroutine.create(f))"] = "msys.submit: cannot send argument 2 (coroutine)",
    ["msys.all()"] = "msys.all: futures must be a list, got nil",
    ["msys.any 'x'"] = "msys.any: futures must be a list, got string",
    ["msys.all { fut, 5 }"] = "msys.all: item 2 must be a future, got number",
    ["msys.any { {} }"] = "msys.any: item 1 must be a future, got table",
    ["msys.any {}"] = "msys.any: the list is empty: none of its futures will ever end",
    ["msys.map('nowhere', {}, f)"] = "msys.map: unknown pool 'nowhere', known are: CPU, IO",
    ["msys.map('CPU', 5, f)"] = "msys.map: list must be a table, got number",
    ["msys.map('CPU', {})"] = "msys.map: fn must be a Lua function, got nil",
    ["msys.map('CPU', {}, f, 5)"] = "msys.map: options must be a table, got number",
    ["msys.map('CPU', {}, f, { chunk = 0 })"] = "msys.map: chunk must be a whole number from 1, got 0",
    ["msys.map('CPU', {}, f, { chunk = 1.5 })"] = "msys.map: chunk must be a whole number from 1, got 1.5",
    ["msys.map('CPU', {}, f, { chunk = 'x' })"] = "msys.map: chunk must be a whole number from 1, got x",
    ["msys.map('CPU', {}, f, { progress = 1 })"] = "msys.map: progress must be a function, got number",
    ["msys.map('CPU', {}, f, { size = 1 })"] = "msys.map: unknown option 'size', expected chunk or progress",
    ["msys.sleep()"] = "msys.sleep: seconds must be a number, got nil",
    ["msys.sleep '1'"] = "msys.sleep: seconds must be a number, got string",
    ["msys.sleep(-1)"] = "msys.sleep: seconds must not be negative, got -1",
    ["msys.sleep(0/0)"] = "msys.sleep: seconds must not be negative, got nan",
  }
  for code, text in pairs(CASES) do
    it(code, function()
      local fut = msys.submit("CPU", same, 1)
      -- LuaJIT writes NaN with the sign that the processor gives it.
      local err = threads.error_of(code, { fut = fut, f = same }):gsub("%-nan", "nan")
      -- Other specs' pools may be known too.
      if code:find "nowhere" then err = err:match "^.*CPU, IO" or err end
      assert.equal("case:3: " .. text, err)
    end)
  end
end)

describe("what a job does with futures on its own pool", function()
  after_each(helper.clean)

  it("does not wait for a session that it takes itself", function()
    with_pool({ name = "spec of futures", concurrency = 1, sessions = 1 }, function(pool)
      local function wait()
        return msys
          .submit("spec of futures", function()
            return 5
          end)
          :wait(helper.LIMIT)
      end
      assert.same({ true, 5 }, { must(pool, wait) })
      local function map()
        return unpack(msys.map("spec of futures", { 1, 2, 3 }, function(x)
          return x * x
        end))
      end
      assert.same({ 1, 4, 9 }, { must(pool, map) })
    end)
  end)
end)

describe("many futures", function()
  after_each(helper.clean)

  it("are all waited for at once", function()
    with_pool({ concurrency = 1 }, function(pool)
      local gate, list = thread.channel(), {}
      for i = 1, 1500 do
        list[i] = msys.submit(pool, function()
          return gate:receive()
        end)
      end
      list[1501] = msys.submit("CPU", function()
        error("boom", 0)
      end)
      local ok, err, _, place = msys.all(list)
      assert.same({ false, "boom", 1501 }, { ok, err, place })
      list[1501] = msys.submit("CPU", function()
        return "done"
      end)
      assert.same({ true, 1501, "done" }, { msys.any(list) })
      gate:close()
      assert.is_true((msys.all(list)))
    end)
  end)
end)

describe("msys.map says", function()
  after_each(helper.clean)

  local co = coroutine.create(print)
  local CASES = {
    ["which item cannot cross"] = {
      { { 1, 2, 3, co }, function() end, { chunk = 2 } },
      "msys.map: cannot send item 4 (coroutine)",
    },
    ["which result cannot"] = {
      {
        { 1, 2, 3, 4 },
        function(x)
          return x == 3 and coroutine.create(print) or x
        end,
        { chunk = 4 },
      },
      "msys.map: cannot send the result (coroutine) (item 3)",
    },
    ["that the list's length is none"] = {
      { { n = 0.5 }, function() end },
      "msys.map: list.n must be a whole number from 0, got 0.5",
    },
  }
  for what, case in pairs(CASES) do
    it(what, function()
      local ok, err = pcall(msys.map, "CPU", unpack(case[1]))
      assert.is_false(ok)
      assert.equal(case[2], (err:gsub("^%S+:%d+: ", "")))
    end)
  end

  it("nothing of a full pool that it has filled itself", function()
    local options = { concurrency = 1, sessions = 1, backlog = 1, when_full = "fail" }
    with_pool(options, function(pool)
      local list = { 1, 2, 3, 4, 5, 6, 7, 8 }
      local results = msys.map(pool, list, function(x)
        return x
      end, { chunk = 1 })
      results.n = nil
      assert.same(list, results)
    end)
  end)
end)

describe("wake-ups", function()
  after_each(helper.clean)

  it("of two VMs under one number are two: each gets its value", function()
    helper.with_two({}, function(a, b)
      local ch, begun = thread.channel(), thread.counter()
      local function receive()
        begun:add()
        return select(2, ch:receive())
      end
      -- The first wait in either VM, so that their tickets are equal.
      local futures = { msys.submit(a, receive), msys.submit(b, receive) }
      eventually(function()
        return begun:get() == 2
      end)
      for place, pool in ipairs { a, b } do
        -- The worker runs this when its job waits.
        must(pool, function() end)
        assert.equal("running", futures[place]:status())
      end
      ch:send(1)
      eventually(function()
        return #ch == 0
      end)
      ch:send(2)
      local got = { outcome(futures[1])[2], outcome(futures[2])[2] }
      ch:close()
      table.sort(got)
      assert.same({ 1, 2 }, got)
    end)
  end)

  it("keep no job waiting that comes while a worker that looks for one is woken", function()
    with_pool({ concurrency = 2 }, function(pool)
      local back, go, flag = thread.channel(), thread.channel(), thread.counter()
      for round = 1, 300 do
        flag:set(0)
        local first = msys.submit(pool, function()
          back:send(true)
          go:receive()
          -- It keeps its worker: only the other can run the job that sets the flag.
          local deadline = os.time() + 8
          while flag:get() == 0 do
            if os.time() > deadline then error("the other job has not run", 0) end
          end
        end)
        threads.take(back)
        go:send(true)
        local second = msys.submit(pool, function()
          flag:set(1)
        end)
        assert.same({ round, pack(true), pack(true) }, { round, outcome(first), outcome(second) })
      end
    end)
  end)
end)
