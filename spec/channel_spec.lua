-- `thread.channel`: what is sent, received and refused, in which order, and who waits.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local ffi = require "ffi"
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local LIMIT = helper.LIMIT
local must, eventually, in_sessions = helper.must, helper.eventually, helper.in_sessions
local in_session = msys.run

---@return table values with their count
local function pack(...)
  return { n = select("#", ...), ... }
end

--- What `fn` gives, in a session of the host that has begun to run; a function that gives it, or nil if it waits.
local function begun(fn, ...)
  local results
  msys.spawn(function(...)
    results = pack(fn(...))
  end, ...)
  msys.yield()
  return function()
    return results
  end
end

local function receive(channel, timeout)
  return channel:receive(timeout)
end

local function send(channel, value, timeout)
  return channel:send(value, timeout)
end

describe("a channel", function()
  after_each(helper.clean)

  it("gives values in the order in which they were sent", function()
    local ch = thread.channel()
    for i = 1, 1000 do
      ch:send(i % 3 == 0 and tostring(i) or i)
    end
    for i = 1, 1000 do
      assert.equal(i % 3 == 0 and tostring(i) or i, threads.take(ch))
    end
  end)

  it("gives true for send and trysend, and nothing else", function()
    local ch = thread.channel()
    for _, value in ipairs { 1, "text", { {} } } do
      assert.same(pack(true), pack(ch:send(value)))
      assert.same(pack(true), pack(ch:trysend(value)))
      assert.same(pack(true), pack(ch:send(value, 0)))
    end
  end)

  local VALUES = {
    ["nil"] = pack(nil),
    ["true"] = pack(true),
    ["false"] = pack(false),
    ["a number"] = pack(1.5),
    ["infinity"] = pack(-math.huge),
    ["a string"] = pack "text",
    ["an empty string"] = pack "",
    ["a string with zeros"] = pack "\0a\0\255",
    ["a string of a megabyte"] = pack(("0123456789abcdef"):rep(65536)),
    ["a table"] = pack { 1, { 2, a = "b" }, [true] = false },
    ["an int64"] = pack(2LL ^ 62),
  }
  for what, value in pairs(VALUES) do
    it("takes " .. what .. ", from and to every VM", function()
      local there, back = thread.channel(), thread.channel()
      for _, timeout in ipairs { 0, 1 } do
        there:send(value[1], timeout)
        assert.equal(1, #there)
        must("CPU", function()
          local _, got = there:receive(0)
          back:send(got)
        end)
        assert.same(pack(true, value[1]), pack(back:receive(timeout)))
      end
    end)
  end

  it("takes NaN and -0", function()
    local ch = thread.channel()
    ch:send(0 / 0)
    ch:send(-0)
    local _, nan = ch:receive()
    local _, zero = ch:tryreceive()
    assert.not_equal(nan, nan)
    assert.equal(-math.huge, 1 / zero)
  end)

  it("takes a table as it is then, and gives a copy with its shape", function()
    local ch = thread.channel()
    local t = { 1 }
    t.self, t.other = t, { t }
    ch:send(t)
    t[1] = 2
    local got = threads.take(ch)
    assert.equal(1, got[1])
    assert.not_equal(t, got)
    assert.equal(got, got.self)
    assert.equal(got, got.other[1])
  end)

  it("takes a table of any depth", function()
    local ch = thread.channel()
    local t = {}
    for _ = 1, 100000 do
      t = { t }
    end
    ch:send(t)
    local got, depth = threads.take(ch), 0
    while got[1] do
      got, depth = got[1], depth + 1
    end
    assert.equal(100000, depth)
  end)

  it("takes functions with their upvalues, modules and library functions by name", function()
    local ch = thread.channel()
    local count = 10
    ch:send(function(n)
      count = count + n
      return count
    end)
    ch:send(math)
    ch:send(string.rep)
    ch:send(thread)
    assert.equal(
      12,
      must("CPU", function()
        return threads.take(ch)(2)
      end)
    )
    assert.equal(math, threads.take(ch))
    assert.equal(string.rep, threads.take(ch))
    assert.equal(thread, threads.take(ch))
    assert.equal(10, count)
  end)

  it("takes handles of every kind, itself too, and gives the same ones", function()
    local ch = thread.channel()
    local m = thread.mutex()
    local handles = {
      m,
      thread.condition(m),
      thread.rwlock(),
      ch,
      thread.counter(),
      thread.shared {},
      thread.buffer("int", 1),
      msys.threadpool.create { name = "spec of channels", concurrency = 1 },
    }
    for _, handle in ipairs(handles) do
      ch:send(handle)
      ch:send { [handle] = handle }
      assert.is_true(rawequal(handle, threads.take(ch)) or handle == handles[8])
      assert.equal(handle, threads.take(ch)[handle])
    end
    handles[8]:shutdown()
  end)

  it("keeps what it has when the VM that sent it has ended", function()
    local ch = thread.channel()
    helper.with_pool({ concurrency = 1 }, function(pool)
      must(pool, function()
        local long = ("x"):rep(2 ^ 20)
        ch:send(long)
        ch:send { long, { long } }
        ch:send(function()
          return #long
        end)
        ch:send(thread.mutex())
      end)
    end)
    collectgarbage()
    assert.equal(2 ^ 20, #threads.take(ch))
    local t = threads.take(ch)
    assert.same({ 2 ^ 20, 2 ^ 20 }, { #t[1], #t[2][1] })
    assert.equal(2 ^ 20, threads.take(ch)())
    assert.is_true(threads.take(ch):trylock())
  end)

  it("says how many values it has, and for how many it has room", function()
    local function text(ch)
      return (tostring(ch):gsub("0x%x+", "0x"))
    end
    local ch = thread.channel(3)
    assert.equal("thread.channel: 0x (0 of 3 items)", text(ch))
    for i = 1, 2 do
      ch:send(i)
      assert.equal(i, #ch)
    end
    assert.equal("thread.channel: 0x (2 of 3 items)", text(ch))
    assert.equal(
      2,
      must("CPU", function()
        return #ch
      end)
    )
    ch:close()
    assert.equal("thread.channel: 0x (2 of 3 items, closed)", text(ch))
    assert.equal("thread.channel: 0x (0 items)", text(thread.channel()))
    assert.equal("thread.channel: 0x (0 of 0 items)", text(thread.channel(0)))
    assert.equal("thread.channel", getmetatable(ch))
  end)

  it("is the same object in every VM", function()
    local ch = thread.channel()
    local t = must("CPU", function(arg)
      return { [arg] = ch }
    end, ch)
    assert.equal(ch, t[ch])
  end)
end)

describe("receive", function()
  after_each(helper.clean)

  for _, timeout in ipairs { 0, 1e-9, 0.01 } do
    it(("gives false and why after %g s"):format(timeout), function()
      local ch = thread.channel()
      assert.same(pack(false, "timeout"), pack(ch:receive(timeout)))
      assert.same(pack(false, "timeout"), pack(in_session(receive, ch, timeout)))
      assert.same(pack(false, "timeout"), pack(must("CPU", receive, ch, timeout)))
    end)
  end

  for _, timeout in ipairs { 30, math.huge } do
    it(("gives what is sent within %g s"):format(timeout), function()
      for _, value in ipairs { 1, "text" } do
        local ch = thread.channel()
        local got = begun(receive, ch, timeout)
        assert.is_nil(got())
        ch:send(value)
        msys.run()
        assert.same(pack(true, value), got())
      end
    end)
  end

  it("suspends the session: its worker runs other jobs, its VM other sessions", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local ch, results = thread.channel(), thread.channel()
      msys.runInPool(pool, function()
        results:send "begun"
        results:send(threads.take(ch))
      end, true)
      threads.take(results)
      assert.equal(
        1,
        must(pool, function()
          return 1
        end)
      )
      local got = begun(receive, results)
      assert.is_nil(got())
      ch:send "value"
      msys.run()
      assert.same(pack(true, "value"), got())
    end)
  end)

  it("serves those who wait in the order in which they came", function()
    local ch, order = thread.channel(), {}
    for i = 1, 10 do
      msys.spawn(function()
        local value = threads.take(ch)
        order[#order + 1] = { i, value }
      end)
    end
    msys.yield()
    for i = 1, 10 do
      ch:send(i)
    end
    msys.run()
    for i = 1, 10 do
      assert.same({ i, i }, order[i])
    end
  end)

  for way, call in pairs(threads.ways) do
    it("works " .. way, function()
      local function within()
        local ch = thread.channel(1)
        msys.spawn(function()
          for i = 1, 3 do
            msys.yield()
            ch:send(i)
          end
        end)
        local sum = 0
        for _ = 1, 3 do
          local value = call(threads.take, ch)
          sum = sum + value
        end
        return sum
      end
      assert.equal(6, within())
      assert.equal(6, in_session(within))
      assert.equal(6, must("CPU", within))
    end)
  end

  it("gives up in time also when other waits that cannot suspend end later", function()
    local ch, got = thread.channel(), nil
    msys.spawn(threads.within_sort, msys.sleep, 0.03)
    msys.spawn(function()
      msys.sleep(0.02)
      -- Wakes the one that waits, whose time is over, and takes the item again.
      ch:send(1)
      ch:tryreceive()
      threads.await(function()
        return got
      end)
    end)
    got = pack(ch:receive(0.01))
    msys.run()
    assert.same(pack(false, "timeout"), got)
  end)

  it("does not keep a timer for each value that came in time", function()
    local ch, back = thread.channel(), thread.channel()
    local function ping(count, timeout)
      msys.spawn(function()
        for _ = 1, count do
          ch:receive(timeout)
          back:send(1)
        end
      end)
      in_session(function()
        for _ = 1, count do
          ch:send(1)
          back:receive(timeout)
        end
      end)
    end
    local function resident()
      collectgarbage()
      local file = assert(io.open "/proc/self/statm")
      local _, pages = file:read("*n", "*n")
      file:close()
      return pages * 4096
    end
    -- What allocators keep is there after the first.
    ping(100000, 3600)
    local before = resident()
    ping(100000, 3600)
    -- 200,000 timers would be five times this.
    assert.is_true(resident() - before < 2 ^ 21)
  end)
end)

describe("tryreceive", function()
  after_each(helper.clean)

  it("gives a value, or false and why there is none", function()
    local ch = thread.channel()
    assert.same(pack(false, "empty"), pack(ch:tryreceive()))
    for _, value in ipairs { 1, "text" } do
      ch:send(value)
      assert.same(pack(true, value), pack(ch:tryreceive()))
    end
    ch:close()
    assert.same(pack(false, "closed"), pack(ch:tryreceive()))
  end)
end)

describe("a channel with a capacity", function()
  after_each(helper.clean)

  for _, capacity in ipairs { 1, 2, 100 } do
    it(("holds %d values, and takes the next when one is received"):format(capacity), function()
      local ch = thread.channel(capacity)
      for i = 1, capacity do
        assert.is_true(ch:trysend(i))
      end
      for _, value in ipairs { 0, "text" } do
        assert.same(pack(false), pack(ch:trysend(value)))
        assert.same(pack(false, "timeout"), pack(ch:send(value, 0)))
        assert.same(pack(false, "timeout"), pack(ch:send(value, 0.001)))
        assert.same(pack(false, "timeout"), pack(must("CPU", send, ch, value, 0.001)))
      end
      local sent = begun(send, ch, "next")
      assert.is_nil(sent())
      assert.equal(1, threads.take(ch))
      msys.run()
      assert.same(pack(true), sent())
      assert.equal(capacity, #ch)
      for i = 2, capacity do
        assert.equal(i, threads.take(ch))
      end
      assert.equal("next", threads.take(ch))
    end)
  end

  it("takes from those who wait in the order in which they came", function()
    local ch = thread.channel(1)
    ch:send(0)
    for i = 1, 10 do
      begun(send, ch, i)
    end
    for i = 0, 10 do
      assert.equal(i, threads.take(ch))
      msys.yield()
    end
    msys.run()
  end)

  it("suspends the session that sends: its worker runs other jobs", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      local ch, results = thread.channel(1), thread.channel()
      msys.runInPool(pool, function()
        ch:send(1)
        results:send "begun"
        results:send(ch:send(2))
      end, true)
      threads.take(results)
      assert.equal(
        1,
        must(pool, function()
          return 1
        end)
      )
      assert.equal(0, #results)
      threads.take(ch)
      assert.is_true(threads.take(results))
    end)
  end)

  for way, call in pairs(threads.ways) do
    it("is sent through " .. way, function()
      local function within()
        local ch, sum = thread.channel(1), 0
        msys.spawn(function()
          for _ = 1, 3 do
            msys.yield()
            sum = sum + threads.take(ch)
          end
        end)
        for i = 1, 3 do
          call(send, ch, i, LIMIT)
        end
        threads.await(function()
          return sum == 6
        end)
        return sum
      end
      assert.equal(6, within())
      assert.equal(6, in_session(within))
      assert.equal(6, must("CPU", within))
    end)
  end
end)

describe("a channel without room", function()
  after_each(helper.clean)

  it("hands a value from one who sends to one who receives, whoever came first", function()
    for _, value in ipairs { 1, "text" } do
      local ch = thread.channel(0)
      local sent = begun(send, ch, value)
      assert.is_nil(sent())
      assert.equal(value, threads.take(ch))
      msys.run()
      assert.same(pack(true), sent())

      local got = begun(receive, ch)
      assert.is_nil(got())
      assert.is_true(ch:send(value, LIMIT))
      msys.run()
      assert.same(pack(true, value), got())
      assert.equal(0, #ch)
    end
  end)

  it("takes nothing when nobody receives", function()
    local ch = thread.channel(0)
    assert.same(pack(false), pack(ch:trysend(1)))
    assert.same(pack(false, "timeout"), pack(ch:send("text", 0)))
    assert.same(pack(false, "timeout"), pack(ch:send(1, 0.001)))
    assert.same(pack(false, "empty"), pack(ch:tryreceive()))
    assert.same(pack(false, "timeout"), pack(ch:receive(0.001)))
  end)

  it("takes from trysend what somebody waits for", function()
    for _, value in ipairs { 1, "text" } do
      local ch = thread.channel(0)
      local got = begun(receive, ch)
      assert.is_true(ch:trysend(value))
      assert.is_false(ch:trysend(value))
      msys.run()
      assert.same(pack(true, value), got())
    end
  end)

  it("gives what somebody waits to send also to one who does not wait", function()
    for _, value in ipairs { 1, "text" } do
      for _, take in ipairs {
        function(ch)
          return ch:tryreceive()
        end,
        function(ch)
          return ch:receive(0)
        end,
      } do
        local ch, got = thread.channel(0), nil
        local sent = begun(send, ch, value, 1)
        threads.await(function()
          got = got or pack(take(ch))
          if not got[1] and not sent() then got = nil end
          return got
        end)
        msys.run()
        assert.same(pack(true), sent())
        assert.same(pack(true, value), got)
      end
    end
  end)

  it("lets as many through as meet, from all VMs", function()
    helper.with_two({ concurrency = 2 }, function(a, b)
      local ch, sum = thread.channel(0), thread.counter()
      local function produce(from)
        for i = from, from + 99 do
          ch:send(i % 2 == 0 and i or tostring(i))
        end
        return true
      end
      local function consume()
        for _ = 1, 100 do
          sum:add(tonumber(threads.take(ch)))
        end
        return true
      end
      in_sessions(12, function(i)
        local pool = ({ [0] = false, a, b })[i % 3]
        local function fn()
          if i > 6 then return consume() end
          return produce(i * 100)
        end
        assert.is_true(pool and must(pool, fn) or not pool and fn())
      end)
      assert.equal((100 + 699) * 600 / 2, sum:get())
      assert.equal(0, #ch)
    end)
  end)
end)

describe("close", function()
  after_each(helper.clean)

  it("gives whether it was open", function()
    local ch = thread.channel()
    assert.same(pack(true), pack(ch:close()))
    assert.same(pack(false), pack(ch:close()))
    assert.same(
      pack(false),
      pack(must("CPU", function()
        return ch:close()
      end))
    )
  end)

  it("lets what is in it be received, and then says so", function()
    for _, capacity in ipairs { false, 2 } do
      local ch = thread.channel(capacity or nil)
      ch:send(1)
      ch:send "two"
      ch:close()
      assert.equal(2, #ch)
      assert.same(pack(true, 1), pack(ch:receive()))
      assert.same(pack(true, "two"), pack(ch:receive(0)))
      for _ = 1, 2 do
        assert.same(pack(false, "closed"), pack(ch:receive()))
        assert.same(pack(false, "closed"), pack(ch:receive(0)))
        assert.same(pack(false, "closed"), pack(ch:tryreceive()))
        assert.same(pack(false, "closed"), pack(must("CPU", receive, ch)))
      end
    end
  end)

  it("ends all waits for a value", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      for _, capacity in ipairs { false, 0, 1 } do
        local ch = thread.channel(capacity or nil)
        local host, limited = begun(receive, ch), begun(receive, ch, 30)
        local worker = begun(must, pool, receive, ch)
        must(pool, function() end)
        assert.is_nil(worker())
        ch:close()
        msys.run()
        for _, got in ipairs { host, limited, worker } do
          assert.same(pack(false, "closed"), got())
        end
      end
    end)
  end)

  it("raises where sessions wait for room, in each", function()
    helper.with_pool({ concurrency = 1 }, function(pool)
      for _, capacity in ipairs { 0, 1 } do
        local ch = thread.channel(capacity)
        if capacity == 1 then ch:send(1) end
        local function fails()
          return threads.error_of("ch:send(2)", { ch = ch })
        end
        local host, worker = begun(fails), begun(must, pool, fails)
        must(pool, function() end)
        assert.is_nil(worker())
        ch:close()
        msys.run()
        for _, got in ipairs { host, worker } do
          assert.matches("^case:3: thread.channel:send: thread.channel: 0x%x+ %(.*closed%)$", got()[1])
        end
      end
    end)
  end)
end)

describe("raises at the caller's line:", function()
  after_each(helper.clean)

  local CLOSED = ": thread.channel: 0x%x+ %(1 of 1 items, closed%)$"
  local NOT_WHOLE = "^case:3: thread.channel: capacity must be a whole number from 0, got "
  local co = coroutine.create(print)
  local CASES = {
    ["sending a number into a closed one"] = { "closed:send(1)", "^case:3: thread.channel:send" .. CLOSED },
    ["sending a string into a closed one"] = {
      "closed:send('x', 1)",
      "^case:3: thread.channel:send" .. CLOSED,
    },
    ["trying to send into a closed one"] = {
      "closed:trysend(1)",
      "^case:3: thread.channel:trysend" .. CLOSED,
    },
    ["trying to send a string into a closed one"] = {
      "closed:trysend 'x'",
      "^case:3: thread.channel:trysend" .. CLOSED,
    },
    ["sending a coroutine"] = {
      "ch:send(co)",
      "^case:3: thread.channel:send: cannot send the value %(coroutine%)$",
    },
    ["trying to send a coroutine"] = {
      "ch:trysend(co)",
      "^case:3: thread.channel:trysend: cannot send the value %(coroutine%)$",
    },
    ["sending one deep inside"] = {
      "ch:send { a = { [2] = { b = co } } }",
      "^case:3: thread.channel:send: cannot send the value%.a%[2%]%.b %(coroutine%)$",
    },
    ["sending a file"] = {
      "ch:send(io.stdout)",
      "^case:3: thread.channel:send: cannot send the value %(userdata 'file'%)$",
    },
    ["sending a pointer"] = {
      "ch:send(pointer)",
      "^case:3: thread.channel:send: cannot send the value %(cdata 'int %*'%)$",
    },
    ["sending a function with such an upvalue"] = {
      "ch:send(function() return co end)",
      "^case:3: thread.channel:send: cannot send",
    },
    ["a limit for sending that is no number"] = {
      "full:send('x', 'soon')",
      "^case:3: thread.channel:send: timeout must be a number, got string$",
    },
    ["such a limit, when there is room"] = {
      "ch:send(1, 'soon')",
      "^case:3: thread.channel:send: timeout must be a number, got string$",
    },
    ["a negative limit for sending"] = {
      "full:send(1, -1)",
      "^case:3: thread.channel:send: timeout must not be negative, got %-1$",
    },
    ["a limit for receiving that is no number"] = {
      "ch:receive {}",
      "^case:3: thread.channel:receive: timeout must be a number, got table$",
    },
    ["such a limit, when there is a value"] = {
      "full:receive {}",
      "^case:3: thread.channel:receive: timeout must be a number, got table$",
    },
    ["a negative limit for receiving"] = {
      "ch:receive(-1)",
      "^case:3: thread.channel:receive: timeout must not be negative, got %-1$",
    },
    ["a limit that is NaN"] = {
      "ch:receive(0/0)",
      "^case:3: thread.channel:receive: timeout must not be negative, got %-?nan$",
    },
    ["send without a colon"] = {
      "ch.send(1)",
      "^case:3: thread.channel:send: called on number %(call it with a colon%)$",
    },
    ["trysend without a colon"] = {
      "ch.trysend()",
      "^case:3: thread.channel:trysend: called on nil %(call it with a colon%)$",
    },
    ["receive without a colon"] = {
      "ch.receive()",
      "^case:3: thread.channel:receive: called on nil %(call it with a colon%)$",
    },
    ["tryreceive without a colon"] = {
      "ch.tryreceive {}",
      "^case:3: thread.channel:tryreceive: called on table %(call it with a colon%)$",
    },
    ["close of another handle"] = {
      "ch.close(thread.mutex())",
      "^case:3: thread.channel:close: called on userdata %(call it with a colon%)$",
    },
    ["a negative capacity"] = { "thread.channel(-1)", NOT_WHOLE .. "%-1$" },
    ["half a capacity"] = { "thread.channel(0.5)", NOT_WHOLE .. "0.5$" },
    ["a capacity that is NaN"] = { "thread.channel(0/0)", NOT_WHOLE .. "%-?nan$" },
    ["an infinite capacity"] = { "thread.channel(1/0)", NOT_WHOLE .. "inf$" },
    ["a capacity that is no number"] = { "thread.channel '3'", NOT_WHOLE .. "string$" },
  }

  for what, case in pairs(CASES) do
    it(what, function()
      local names = { ch = thread.channel(), full = thread.channel(1), closed = thread.channel(1), co = co }
      names.pointer = ffi.new "int *"
      names.full:send(1)
      names.closed:send(1)
      names.closed:close()
      assert.matches(case[2], threads.error_of(case[1], names))
      assert.same({ 0, 1, 1 }, { #names.ch, #names.full, #names.closed })
    end)
  end
end)

describe("many sessions of all VMs", function()
  after_each(helper.clean)

  local SENDERS, RECEIVERS, EACH = 6, 6, 300

  for _, capacity in ipairs { 0, 1, 7, false } do
    for what, limit in pairs { ["in time"] = LIMIT, ["with limits that are over all the time"] = 0.0002 } do
      it(("receive each value once, %s, capacity %s"):format(what, capacity or "unbounded"), function()
        helper.with_two({ concurrency = 2 }, function(a, b)
          local ch = thread.channel(capacity or nil)
          local sum, received, sent = thread.counter(), thread.counter(), thread.counter()
          local function produce(from)
            for i = from + 1, from + EACH do
              local value = i % 5 == 0 and { i } or i
              while not ch:send(value, limit) do
                if limit == LIMIT then error "no room within the limit" end
              end
              if sent:add() == SENDERS * EACH then ch:close() end
            end
            return true
          end
          local function consume()
            while true do
              local ok, value = ch:receive(limit)
              if ok then
                sum:add(type(value) == "table" and value[1] or value)
                received:add()
              elseif value == "closed" then
                return true
              elseif limit == LIMIT then
                error "no value within the limit"
              end
            end
          end
          in_sessions(SENDERS + RECEIVERS, function(i)
            local pool = ({ [0] = false, a, b })[i % 3]
            local function fn()
              if i > SENDERS then return consume() end
              return produce(i * EACH)
            end
            assert.is_true(pool and must(pool, fn) or not pool and fn())
          end)
          local count = SENDERS * EACH
          assert.equal(count, received:get())
          assert.equal(count * (EACH + 1 + EACH * (SENDERS + 1)) / 2, sum:get())
          assert.equal(0, #ch)
        end)
      end)
    end
  end

  it("lose no value and no room when one that waits is gone with its worker", function()
    local ch, full = thread.channel(), thread.channel(1)
    full:send(0)
    helper.with_pool({ concurrency = 1 }, function(pool)
      must(pool, function()
        for _ = 1, 3 do
          msys.spawn(function()
            ch:receive()
          end)
          msys.spawn(function()
            full:send(1)
          end)
        end
        msys.yield()
      end)
    end)
    local got, sent = begun(receive, ch, LIMIT), begun(send, full, 2, LIMIT)
    ch:send "value"
    assert.equal(0, threads.take(full))
    msys.run()
    assert.same(pack(true, "value"), got())
    assert.same(pack(true), sent())
    assert.equal(2, threads.take(full))
  end)

  it("do not end each other's waits when their own are over", function()
    -- In a process of its own, the first waits of both VMs are these.
    local out, err = helper.script [[
      local msys, thread = require "msys", require "thread"
      local threads = require "spec.threads"
      local pool = msys.threadpool.create { name = "one", concurrency = 1 }
      local ch, begun, done = thread.channel(), thread.counter(), thread.channel()
      msys.runInPool(pool, function()
        begun:set(1)
        done:send(select(2, ch:receive()))
      end, true)
      threads.await(function() return begun:get() == 1 end)
      -- The worker runs this when the job above waits.
      msys.runInPool(pool, function() end)
      print(ch:receive(0))
      print(ch:receive(0.001))
      ch:send "for the worker"
      print(threads.take(done))
    ]]
    assert.same({ "false\ttimeout\nfalse\ttimeout\nfor the worker\n", "" }, { out, err })
  end)

  it("make a pipeline through three VMs", function()
    helper.with_two({}, function(a, b)
      local first, second, third = thread.channel(4), thread.channel(4), thread.channel(4)
      local function stage(from, to)
        while true do
          local ok, value = from:receive(LIMIT)
          if not ok then break end
          to:send(value * 2, LIMIT)
        end
        to:close()
      end
      msys.runInPool(a, stage, { async = true, args = { first, second } })
      msys.runInPool(b, stage, { async = true, args = { second, third } })
      msys.spawn(function()
        for i = 1, 500 do
          if not first:send(i, LIMIT) then break end
        end
        first:close()
      end)
      local sum, count = 0, 0
      while true do
        local ok, value = third:receive(LIMIT)
        if not ok then
          assert.equal("closed", value)
          break
        end
        sum, count = sum + value, count + 1
      end
      msys.run()
      assert.same({ 500, 4 * 500 * 501 / 2 }, { count, sum })
    end)
  end)

  it("wait in thousands, and each gets its value", function()
    local ch, sum = thread.channel(), 0
    for _ = 1, 3000 do
      msys.spawn(function()
        local value = threads.take(ch)
        sum = sum + value
      end)
    end
    msys.yield()
    must("CPU", function()
      for i = 1, 3000 do
        ch:send(i)
      end
    end)
    eventually(function()
      return sum == 3000 * 3001 / 2
    end, "the sum")
    msys.run()
  end)
end)
