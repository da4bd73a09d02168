-- `memory_limit`: what a job may use of its worker's memory, and what is left of a worker whose job has used more.

local helper = require "spec.helper"
local msys = require "msys"
local thread = require "thread"
local threads = require "spec.threads"

local describe, it, _, after_each, assert = helper.busted()
local with_pool = helper.with_pool

local MIB = 2 ^ 20

--- Jobs that need more memory than there is.
---@type table<string, fun()>
local gluttons = {
  ["a table that grows"] = function()
    local list, count = {}, 0
    while count >= 0 do
      list[count], count = count, count + 1
    end
    return list
  end,
  ["many small tables"] = function()
    local list
    while true do
      list = { list }
    end
  end,
  ["strings that are kept"] = function()
    local list = {}
    while true do
      list[#list + 1] = ("x"):rep(1000) .. #list
    end
  end,
  ["a string that is doubled"] = function()
    local text = "x"
    while true do
      text = text .. text
    end
  end,
  ["string.rep"] = function()
    return #("x"):rep(2 ^ 30)
  end,
  ["closures"] = function()
    local last
    while true do
      local before = last
      last = function()
        return before
      end
    end
  end,
  ["coroutines"] = function()
    local list = {}
    while true do
      list[#list + 1] = coroutine.create(print)
    end
  end,
  ["an FFI array"] = function()
    return require("ffi").new("char[?]", 2 ^ 28)
  end,
}
for what, glutton in pairs(gluttons) do
  gluttons[what] = setfenv(glutton, _G)
end

describe("a job that uses more than memory_limit", function()
  after_each(helper.clean)

  for what, glutton in pairs(gluttons) do
    it(('ends with kind "memory", and its worker goes on: %s'):format(what), function()
      with_pool({ memory_limit = 8 * MIB }, function(pool)
        for round = 1, 3 do
          local ok, err, info = msys.runInPool(pool, glutton)
          assert.same({ false, "not enough memory", "memory" }, { ok, err, info and info.kind })
          -- There is room again for what needs half of it.
          assert.same({ true, 50000, round }, {
            msys.runInPool(pool, function()
              local list = {}
              for i = 1, 50000 do
                list[i] = { i }
              end
              return #list, round
            end),
          })
        end
        assert.equal(1, pool:stat().threads_started)
      end)
    end)
  end

  it("may see that itself, and go on with less", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local ok, fine, err, after = msys.runInPool(pool, function()
        local fine, err = pcall(string.rep, "x", 2 ^ 30)
        return fine, err, ("y"):rep(10)
      end)
      assert.same({ true, false, "not enough memory", "yyyyyyyyyy" }, { ok, fine, err, after })
    end)
  end)

  it("leaves jobs that wait on the same worker alone", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local others = {}
      for i = 1, 10 do
        msys.spawn(function()
          others[i] = {
            msys.runInPool(pool, function()
              local list = { i }
              msys.sleep(0.05)
              return list[1]
            end),
          }
        end)
      end
      helper.eventually(function()
        return pool:stat().job_num_running == 10
      end)
      local ok, _, info = msys.runInPool(pool, gluttons["many small tables"])
      assert.same({ false, "memory" }, { ok, info.kind })
      helper.eventually(function()
        return #others == 10
      end)
      for i = 1, 10 do
        assert.same({ true, i }, others[i])
      end
    end)
  end)

  it("is not one that fits when what the last has left is collected", function()
    for _, sizes in ipairs { { 12, 7 }, { 20, 11 }, { 9, 5.25 }, { 24, 13 } } do
      local limit, size = sizes[1] * MIB, sizes[2] * MIB
      with_pool({ concurrency = 1, memory_limit = limit }, function(pool)
        for i = 1, 6 do
          local text = string.char(64 + i):rep(size + i)
          local ok, got = msys.runInPool(pool, function()
            return #text
          end)
          assert.same({ true, size + i }, { ok, got }, ("of %g MiB, job %d"):format(sizes[1], i))
        end
      end)
    end
  end)

  it("need not be the one that has left the garbage", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      for _ = 1, helper.times(200) do
        local ok, err = msys.runInPool(pool, function()
          local list = {}
          for i = 1, 40000 do
            list[i] = { i }
          end
          return #list
        end)
        assert.is_true(ok, tostring(err))
      end
    end)
  end)
end)

--- Jobs whose compiled code needs more, with functions of theirs compiled into the loop.
local COMPILED = [[
  local ffi = require "ffi"
  local jobs = {
    tables = function()
      local list = {}
      local function make(i) return { i, { i } } end
      local function put(to, value) to[#to + 1] = value end
      while true do for i = 1, 100 do put(list, make(i)) end end
    end,
    methods = function()
      local class = {}
      class.__index = class
      function class:add(x)
        self[#self + 1] = { x = x, y = { x } }
        return self
      end
      local object = setmetatable({}, class)
      while true do object:add(1):add(2) end
    end,
    strings = function()
      local list, i = {}, 0
      local function name(n) return "item " .. n .. ("y"):rep(50) end
      while true do i = i + 1 list[i] = name(i) end
    end,
    objects = function()
      local ctype = ffi.typeof "struct { double a[8]; }"
      local list, i = {}, 0
      local function new() return ctype() end
      while true do i = i + 1 list[i] = new() end
    end,
    integers = function()
      local list, i = {}, 0LL
      local function after(x) return x + 1LL end
      while true do i = after(i) list[tonumber(i)] = i end
    end,
    ["a long string"] = function()
      local text = "x"
      local function twice(s) return s .. s end
      while true do for _ = 1, 3 do text = twice(text) end end
    end,
    keys = function()
      local set, i = {}, 0
      local function put(key) set["k" .. key] = key end
      while true do i = i + 1 put(i) end
    end,
    yields = function()
      local list = {}
      while true do
        for _ = 1, 100 do list[#list + 1] = {} end
        msys.yield()
      end
    end,
    branches = function()
      local list, i = {}, 0
      local function one(n)
        if n % 3 == 0 then return { n } elseif n % 3 == 1 then return { n, n } else return { { n } } end
      end
      local function other(n)
        if n % 5 == 0 then return one(n + 1) end
        local made = one(n)
        return made
      end
      while true do i = i + 1 list[#list + 1] = other(i) end
    end,
  }
  local function caught()
    for _ = 1, 3 do
      local ok, err = pcall(function()
        local list = {}
        local function put(value) list[#list + 1] = { value } end
        while true do put(1) end
      end)
      if ok or err ~= "not enough memory" then return err end
      collectgarbage()
    end
    return "caught"
  end
  local function sum()
    local result = 0
    for i = 1, 1000 do result = result + i end
    return result
  end
  for _, interruptible in ipairs { true, false } do
    local pool = msys.threadpool.create {
      name = "small", concurrency = 1, memory_limit = 8 * 2 ^ 20, interruptible = interruptible,
    }
    for name, job in pairs(jobs) do
      local ok, err, info = msys.runInPool(pool, job)
      if ok or info.kind ~= "memory" then print(name, interruptible, ok, err, info and info.kind) end
      local _, result = msys.runInPool(pool, sum)
      if result ~= 500500 then print("after", name, interruptible, result) end
    end
    local _, result = msys.runInPool(pool, caught)
    if result ~= "caught" then print("caught", interruptible, result) end
    pool:shutdown()
  end
]]

describe("compiled code that meets memory_limit", function()
  after_each(helper.clean)

  it("ends with that error, and crashes and hangs nowhere", function()
    local script = 'local msys = require "msys" ' .. COMPILED
    for _ = 1, helper.times(10) do
      -- Each process has its code elsewhere.
      assert.same({ "", "", 0 }, { helper.script(script) })
    end
  end)
end)

describe("compiled code that meets memory_limit, in odd places,", function()
  after_each(helper.clean)

  --- Runs a script with a pool of one small worker.
  local function says(expected, script)
    local out, err, status = helper.script([[
      local msys = require "msys"
      local pool = msys.threadpool.create { name = "small", concurrency = 1, memory_limit = 4 * 2 ^ 20 }
    ]] .. script)
    assert.same({ expected, "", 0 }, { out, err, status })
  end

  it("may be leaving a trace, for which a table is made after all", function()
    says(
      "false\tnot enough memory\tmemory\n",
      [[
        local ok, err, info = msys.runInPool(pool, function()
          require("jit.opt").start "hotexit=10000"
          local list = require "table.new"(60000, 0)
          local function last(count, at, a, b, c, d, e, f, g, h)
            for i = 1, count do
              local made = { x = i, y = a }
              a = a + 1.5 b = b * 1.0001 c = c + a d = d + b e = e + c f = f + d g = g + e h = h + f
              if i == at then return made, a + b + c + d + e + f + g + h end
            end
          end
          last(100, 1000, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5)
          local function all()
            for i = 1, 60000 do list[i] = last(100, 3, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5) end
          end
          jit.off(all)
          all()
          return #list
        end)
        print(ok, err, info and info.kind)
      ]]
    )
  end)

  it("keeps the job's own hook", function()
    says(
      "100000\tfalse\tnot enough memory\t100000\n",
      [[
        print(select(2, msys.runInPool(pool, function()
          local last
          local function fill()
            for i = 1, 1e6 do last = { i, last } end
          end
          debug.sethook(function() end, "", 100000)
          local before = select(3, debug.gethook())
          local ok, err = pcall(fill)
          return before, ok, err, select(3, debug.gethook())
        end)))
      ]]
    )
  end)
end)

describe("a message that does not fit into memory_limit", function()
  after_each(helper.clean)

  local function big()
    local list = {}
    for i = 1, 200000 do
      list[i] = { i, tostring(i) }
    end
    return list
  end
  setfenv(big, _G)

  it('is an outcome of kind "memory", when it is sent there', function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local list = big()
      for _ = 1, 3 do
        local ok, err, info = msys.runInPool(pool, function()
          return #list
        end)
        assert.same({ false, "not enough memory", "memory" }, { ok, err, info and info.kind })
        assert.same({ true, 5 }, { msys.runInPool(pool, function()
          return 5
        end) })
      end
    end)
  end)

  it("is one for what it waits for, and releases the job's locks, and says so", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local text, channel = ("x"):rep(16 * MIB), thread.channel()
      local function long()
        return ("x"):rep(16 * 2 ^ 20)
      end
      for what, wait in pairs {
        channel = function()
          return channel:receive()
        end,
        future = function()
          return msys.submit("CPU", long):wait()
        end,
      } do
        local mutex = thread.mutex()
        channel:send(text)
        local errors = helper.catching(function()
          local ok, err, info = msys.runInPool(pool, function()
            mutex:lock()
            msys.yield()
            return wait()
          end)
          assert.same({ what, false, "memory" }, { what, ok, info and info.kind or err })
          assert.is_true(mutex:trylock())
        end, 1)
        mutex:unlock()
        assert.is_table(threads.report_of(errors, mutex))
        assert.equal(1, #errors)
        channel:tryreceive()
      end
    end)
  end)

  it("is one for a long string, too", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local text = ("0123456789abcdef"):rep(2 ^ 20)
      for _ = 1, 3 do
        local ok, err, info = msys.runInPool(pool, function()
          return #text
        end)
        assert.same({ false, "not enough memory", "memory" }, { ok, err, info and info.kind })
      end
    end)
  end)

  it("is reported for a job that nobody waits for", function()
    with_pool({ memory_limit = 8 * MIB }, function(pool)
      local list = big()
      local errors = helper.catching(function(errors)
        msys.runInPool(pool, function()
          return #list
        end, true)
        helper.eventually(function()
          return errors[1]
        end)
      end)
      assert.same({ "not enough memory", "memory" }, { errors[1].err, errors[1].info.kind })
    end)
  end)
end)

describe("a job that fills its worker's memory to the brim, and then waits,", function()
  after_each(helper.clean)

  --- Leaves room for some small values, and waits in many ways. Draws its numbers as `helper.generator` does, but here:
  --- with one that was sent to it, none of these jobs leaves the scheduler without memory.
  local function fill_and_wait(seed, mutex, channel)
    local state = seed + 1
    local function random(most)
      state = state * 16807 % 2147483647
      return state % most + 1
    end
    for _ = 1, 5 do
      random(2)
    end
    if random(2) == 1 then msys.yield() end
    mutex:lock()
    local list, count, least, size = nil, 0, random(128) + 8, 2 ^ 16
    local reserve = ("z"):rep(random(20000))
    while size > least do
      pcall(function()
        while true do
          list = { list, ("x"):rep(size) .. count }
          count = count + #reserve
        end
      end)
      size = size / 2
    end
    reserve = nil
    collectgarbage()
    local waits = {
      msys.yield,
      function()
        msys.sleep(0)
      end,
      function()
        msys.sleep(0.0001)
      end,
      function()
        channel:send(1)
        channel:receive()
      end,
      function()
        msys.runInPool("CPU", function() end)
      end,
      function()
        msys.submit("CPU", function() end):wait()
      end,
      function()
        table.sort({ 2, 1 }, function(a, b)
          msys.yield()
          return a < b
        end)
      end,
      function()
        coroutine.wrap(function()
          msys.yield()
        end)()
      end,
    }
    for i = 1, random(60) do
      local wait = waits[random(#waits)]
      if random(4) == 1 then
        pcall(wait)
      else
        wait()
      end
      list = { list, i }
    end
    return random(2) == 1 and error("failed", 0) or count
  end

  it("ends, and so do others; its lock is released, and reported once", function()
    with_pool({ memory_limit = 2 * MIB }, function(pool)
      local allowed = { ["not enough memory"] = "memory", failed = "error" }
      for seed = 1, helper.times(200) do
        local mutex, channel = thread.mutex(), thread.channel()
        local errors = helper.catching(function()
          local ok, err, info =
            msys.runInPool(pool, fill_and_wait, { args = { seed, mutex, channel }, timeout = helper.LIMIT })
          assert.same({ seed, ok or allowed[err] }, { seed, ok or info.kind })
          assert.is_true(mutex:lock(helper.LIMIT))
        end, 1)
        assert.equal(1, #errors)
        assert.is_table(threads.report_of(errors, mutex))
        mutex:unlock()
      end
      assert.same({ true, 7 }, { msys.runInPool(pool, function()
        return 7
      end) })
    end)
  end)
end)

describe("memory_limit", function()
  after_each(helper.clean)

  it("is each worker's own", function()
    with_pool({ memory_limit = 16 * MIB, concurrency = 2 }, function(pool)
      local done = 0
      helper.in_sessions(2, function()
        local ok, err = msys.runInPool(pool, function()
          local list = {}
          for i = 1, 100000 do
            list[i] = { i }
          end
          return #list
        end)
        assert.is_true(ok, tostring(err))
        done = done + 1
      end)
      assert.equal(2, done)
    end)
  end)

  it("holds for a pool's init", function()
    local pool = msys.threadpool.create {
      name = "spec-glutton",
      concurrency = 1,
      memory_limit = 4 * MIB,
      init = function()
        return ("x"):rep(2 ^ 24)
      end,
    }
    local ok, err = msys.runInPool(pool, function() end)
    pool:shutdown()
    assert.is_false(ok)
    assert.matches("not enough memory", err, 1, true)
  end)
end)
