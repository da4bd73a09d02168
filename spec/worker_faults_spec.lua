-- Jobs that break what ends them: whatever a job does to its worker, it ends with an outcome, and so does the next job.
--
-- Where a fault would crash or hang the process, a child runs the script, and says nothing where all is right.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

--- What every child script begins with: `pool` has one worker, and `check` compares two lists.
local PRELUDE = [[
local msys, thread = require "msys", require "thread"
local pool = msys.threadpool.create { name = "one", concurrency = 1 }
local function check(what, expected, ...)
  local n = math.max(expected.n or #expected, select("#", ...))
  for place = 1, n do
    local value = select(place, ...)
    if value ~= expected[place] then
      print(what, "value " .. place, "expected", expected[place], "but has", value)
    end
  end
end
]]

--- Runs a script in a child, which finds these modules too, and fails where it says anything.
local function silent(script, modules)
  local path = package.path
  if modules then path = helper.folder(modules) .. "/?.lua;" .. path end
  local out, err, status = helper.script(PRELUDE .. script, { env = { LUA_PATH = path } })
  assert.same({ "", "", 0 }, { out, err, status })
end

--- Jobs whose outcomes cannot be made, the kind that they end with, and a part of the text.
---@type { what: string, job: string, kind: string, text: string }[]
local unmade = {
  {
    what = "a result whose __tostring raises",
    job = [[
      local ffi = require "ffi"
      return ffi.metatype("struct { void *p; }", { __tostring = function() error "boom" end })()
    ]],
    kind = "unsendable",
    text = "msys.runInPool: cannot send result 1",
  },
  {
    what = "an error value whose __tostring raises",
    job = [[
      local ffi = require "ffi"
      error(ffi.metatype("struct { void *p; }", { __tostring = function() error "boom" end })())
    ]],
    kind = "unsendable",
    text = "msys.runInPool: cannot send the error value",
  },
  {
    what = "an error value whose __name is no text",
    job = [[
      local value = newproxy(true)
      getmetatable(value).__name = setmetatable({}, { __tostring = error, __concat = error, __index = error })
      getmetatable(value).__tostring = error
      error(value)
    ]],
    kind = "unsendable",
    text = "userdata",
  },
  {
    what = "memory that runs out while the outcome is encoded",
    job = [[
      local list = {}
      for i = 1, 100000 do list[i] = {} end
      list[#list + 1] = coroutine.create(print)
      return list
    ]],
    kind = "memory",
    text = "not enough memory",
  },
}

--- What msys calls to say that a result is a coroutine.
for what, code in pairs {
  ["debug.getinfo"] = "debug.getinfo = nil",
  ["all of debug"] = "for name in pairs(debug) do debug[name] = nil end",
  ["table.sort"] = "table.sort = nil",
  ["table.concat"] = "table.concat, table.insert, table.remove = error, error, error",
  ["bit.bor"] = "bit.bor = nil",
  ["the methods of strings"] = [[getmetatable("").__index = nil]],
  ["package.loaded"] = "package.loaded = nil",
} do
  unmade[#unmade + 1] = {
    what = what .. " taken away by the job",
    job = code .. " return coroutine.create(print)",
    kind = "unsendable",
    text = "msys.runInPool: ",
  }
end

describe("a job whose outcome cannot be made ends with an error, and the pool goes on:", function()
  after_each(helper.clean)

  for _, case in ipairs(unmade) do
    it(case.what, function()
      silent(([=[
        local pool = msys.threadpool.create { name = "small", concurrency = 1, memory_limit = 16 * 2 ^ 20 }
        local kind, part = %q, %q
        for round = 1, 3 do
          local ok, err, info = msys.runInPool(pool, function() %s end)
          check("the job", { false, kind }, ok, info.kind)
          check("its text", { true }, tostring(err):find(part, 1, true) ~= nil)
          check("the next job", { true, round }, msys.runInPool(pool, function() return round end))
        end
      ]=]):format(case.kind, case.text, case.job))
    end)
  end

  it("it is refused at the caller's line, where the value is an upvalue", function()
    silent [=[
      local ffi = require "ffi"
      local value = ffi.metatype("struct { void *p; }", { __tostring = function() error "boom" end })()
      local ok, err = pcall(msys.runInPool, pool, function() return value end)
      check("the call", { false }, ok)
      check("its text", { 1 }, (err:find("msys.runInPool: cannot send upvalue 'value'", 1, true)))
    ]=]
  end)

  it("an error, and the changes that come with it, are no longer than max_message", function()
    helper.with_pool({ max_message = 1000 }, function(pool)
      local long = "takes at most 1000 (max_message)"
      local kept = {}
      for _, job in ipairs {
        function()
          return ("x"):rep(1e6)
        end,
        function()
          error(("x"):rep(1e6), 0)
        end,
        function()
          kept.text = ("x"):rep(1e6)
          error("short", 0)
        end,
      } do
        local ok, err, info = msys.runInPool(pool, job)
        assert.same({ false, "unsendable" }, { ok, info.kind })
        assert.matches(long, err, 1, true)
        assert.is_true(#err < 1000)
        assert.is_nil(kept.text)
      end
      assert.same({ true, 5 }, { msys.runInPool(pool, function()
        return 5
      end) })
    end)
  end)
end)

describe("a message far over max_message", function()
  after_each(helper.clean)

  for _, how in ipairs { "nil", "true" } do
    it(("is refused without being written: third = %s"):format(how), function()
      -- 1.2 GB, if it were written.
      silent(([=[
        local function peak()
          for line in io.lines "/proc/self/status" do
            local kib = line:match "^VmHWM:%%s*(%%d+)"
            if kib then return kib / 1024 end
          end
        end
        local small = msys.threadpool.create { name = "small", max_message = 2 ^ 20 }
        local list, text = {}, ("x"):rep(60000)
        for i = 1, 20000 do list[i] = text end
        local before = peak()
        local ok, err = pcall(msys.runInPool, small, function() return #list end, %s)
        check("the call", { false }, ok)
        check("its text", { true }, err:find("upvalue 'list' with more than 64 MiB", 1, true) ~= nil)
        check("the peak", { true }, peak() - before < 200)
      ]=]):format(how))
    end)
  end
end)

--- Packs and unpacks with a call of msys's in between, which `call` names.
local NESTING = [[
local msys = require "msys"
local nesting, meta = {}, {}
local calls = {
  runInPool = function(value)
    return select(2, msys.runInPool("one", function() return value end))
  end,
  yield = function(value)
    msys.yield()
    return value
  end,
  spawn = function(value)
    msys.spawn(function() msys.runInPool("one", function() return -1 end) end)
    msys.yield()
    return value
  end,
}
function meta.__msys_pack(object)
  local value = object.value
  if object.at == "pack" then value = calls[object.call](value) end
  return { value = value, at = object.at, call = object.call }, "nesting"
end
function nesting.__msys_unpack(object)
  if object.at == "unpack" then object.value = calls[object.call](object.value) end
  return nesting.new(object.value, object.at, object.call)
end
function nesting.new(value, at, call)
  return setmetatable({ value = value, at = at, call = call }, meta)
end
return nesting
]]

describe("calls of msys's while an outcome is packed or unpacked leave it with its caller:", function()
  after_each(helper.clean)

  for _, at in ipairs { "pack", "unpack" } do
    for _, call in ipairs { "runInPool", "yield", "spawn" } do
      it(("%s in __msys_%s"):format(call, at), function()
        -- One session at a time: what is nested must be let in beside the one that waits for it.
        silent(
          ([=[
            pool:shutdown()
            pool = msys.threadpool.create { name = "one", concurrency = 1, sessions = 1 }
            local nesting, at, call = require "nesting", %q, %q
            local ended = 0
            for i = 1, 20 do
              msys.spawn(function()
                local object = nesting.new(i, at, call)
                local ok, there, sent, back = msys.runInPool(pool, function()
                  return i, object.value, require("nesting").new(-i, at, call)
                end, { in_place = i %% 2 == 0 })
                check("session " .. i, { true, i, i, -i }, ok, there, sent, ok and back.value)
                ended = ended + 1
              end)
            end
            msys.run()
            check("sessions", { 20 }, ended)
          ]=]):format(at, call),
          { ["nesting.lua"] = NESTING }
        )
      end)
    end
  end
end)

describe("a worker that has met its memory_limit outside of jobs", function()
  after_each(helper.clean)

  it("is replaced, where what fills it is kept between jobs", function()
    silent [=[
      local small = msys.threadpool.create { name = "small", concurrency = 1, memory_limit = 8 * 2 ^ 20 }
      local function fill()
        _OSTLS.kept = _OSTLS.kept or {}
        local kept = _OSTLS.kept
        while true do kept[#kept + 1] = {} end
      end
      local function strings()
        _OSTLS.texts = {}
        for i = 1, 1e9 do _OSTLS.texts[i] = ("y"):rep(1000) .. i end
      end
      for _ = 1, 2 do
        local ok, err, info = msys.runInPool(small, strings)
        check("strings", { false, "not enough memory", "memory" }, ok, err, info.kind)
        for round = 1, 10 do
          ok, err, info = msys.runInPool(small, fill)
          check("fill " .. round, { false, "not enough memory", "memory" }, ok, err, info.kind)
        end
        local fine
        -- What is left may fail a few more; a new worker has nothing of it.
        for _ = 1, 5 do
          fine, err = msys.runInPool(small, function() return 1 end)
          if fine then break end
        end
        check("afterwards", { true, 1 }, fine, err)
      end
    ]=]
  end)

  it("fails none for other reasons than memory, where thousands wait", function()
    silent [=[
      -- Many more than there is room for at once.
      local COUNT = 8000
      local small = msys.threadpool.create {
        name = "small", concurrency = 1, sessions = COUNT, memory_limit = 2 * 2 ^ 20,
      }
      local kinds, ended = {}, 0
      msys.onError(function(err, info) kinds[info.kind .. ": " .. tostring(err)] = true end)
      for _ = 1, COUNT do
        msys.runInPool(small, function() msys.sleep(0.03) end, true)
      end
      for i = 1, 100 do
        msys.spawn(function()
          local ok, value, info = msys.runInPool(small, function()
            msys.sleep(0.03)
            return i
          end)
          if not ok or value ~= i then kinds[(info and info.kind or "?") .. ": " .. tostring(value)] = true end
          ended = ended + 1
        end)
      end
      msys.run()
      kinds["memory: not enough memory"] = nil
      check("other kinds", { nil, n = 1 }, (next(kinds)))
      check("sessions", { 100 }, ended)
      check("afterwards", { true, 1 }, msys.runInPool(small, function() return 1 end))
    ]=]
  end)

  it("ends the one that grows, while others wait, begin and end beside it", function()
    silent [=[
      local small = msys.threadpool.create { name = "small", concurrency = 1, memory_limit = 8 * 2 ^ 20 }
      local go, ended = thread.channel(), 0
      local function outcome(what, expected, fn)
        msys.spawn(function()
          local ok, value, info = msys.runInPool(small, fn)
          check(what, expected, ok, value, info and info.kind)
          ended = ended + 1
        end)
      end
      for _ = 1, 5 do
        outcome("waiting", { true, "gone" }, function()
          go:receive()
          return "gone"
        end)
      end
      outcome("growing", { false, "not enough memory", "memory" }, function()
        local list = {}
        while true do
          for _ = 1, 100 do list[#list + 1] = {} end
          msys.yield()
        end
      end)
      for _ = 1, 1000 do
        outcome("small", { true, 1 }, function() return 1 end)
      end
      msys.spawn(function()
        while ended < 1001 do msys.yield() end
        go:close()
      end)
      msys.run()
      check("sessions", { 1006 }, ended)
    ]=]
  end)
end)

--- Modules that say how often they have been loaded, and wait inside.
local LOADERS = {
  ["runs_a_job.lua"] = [[
    local msys = require "msys"
    msys.shareGet("loads"):add()
    local ok, value = msys.runInPool("IO", function() return 42 end)
    return { value = ok and value }
  ]],
  ["yields.lua"] = [[
    local msys = require "msys"
    msys.shareGet("loads"):add()
    for _ = 1, 100 do msys.yield() end
    return { value = 42 }
  ]],
}

describe("a module that waits while it is loaded is loaded once, and waited for:", function()
  after_each(helper.clean)

  for file in pairs(LOADERS) do
    local name = file:match "^[%l_]+"
    for how, job in pairs {
      ["required"] = [[require(name).value]],
      ["captured"] = [[module.value]],
      ["given back"] = [[(function() local loaded = require(name) return loaded.value, loaded end)()]],
    } do
      it(("%s, %s"):format(name, how), function()
        silent(
          ([=[
            local name, loads = %q, thread.counter()
            msys.shareSet("loads", loads)
            local ended, module = 0, require(name)
            loads:set(0)
            for i = 1, 5 do
              msys.spawn(function()
                local ok, value, loaded = msys.runInPool(pool, function()
                  return %s
                end)
                check("session " .. i, { true, 42, true }, ok, value, loaded == nil or loaded == module)
                ended = ended + 1
              end)
            end
            msys.run()
            check("sessions and loads", { 5, 1 }, ended, loads:get())
          ]=]):format(name, job),
          LOADERS
        )
      end)
    end
  end
end)

describe("an error out of a wait that cannot suspend", function()
  after_each(helper.clean)

  it("leaves no count of it", function()
    -- More of them than may be inside each other.
    silent [=[
      local raised = 0
      for _ = 1, 450 do
        debug.sethook(function()
          local info = debug.getinfo(2, "nS")
          if info and info.what == "C" and info.name == "next_event" then
            debug.sethook()
            raised = raised + 1
            error("interrupted", 0)
          end
        end, "c")
        local ok, err = pcall(msys.runInPool, pool, function() return 1 end)
        debug.sethook()
        check("interrupted", { false, "interrupted" }, ok, err)
      end
      check("raised", { 450 }, raised)
      check("afterwards", { true, 1 }, msys.runInPool(pool, function() return 1 end))
    ]=]
  end)
end)

describe("a hook that a job has set", function()
  after_each(helper.clean)

  for what, arguments in pairs {
    ["every instruction"] = [["", 1]],
    ["every 10 instructions"] = [["", 10]],
    ["every 100 instructions"] = [["", 100]],
    ["lines"] = [["l"]],
    ["calls"] = [["c"]],
    ["returns"] = [["r"]],
  } do
    it("is gone for the next one: " .. what, function()
      silent(([=[
        for round = 1, 20 do
          local _, err = msys.runInPool(pool, function()
            debug.sethook(function() error("hooked", 0) end, %s)
            return "hooked"
          end)
          -- It may well meet its own outcome.
          check("the job", { true }, tostring(err):find "hooked" ~= nil)
          check("the next", { true, round, "", 0 }, msys.runInPool(pool, function()
            return round, select(2, debug.gethook())
          end))
        end
      ]=]):format(arguments))
    end)
  end
end)
