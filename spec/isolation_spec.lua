-- What an isolated execution leaves behind: nothing that the next one sees.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()
local workers = msys.workers

--- Describes the world that a script finds, as a list of texts: it calls and reads whatever an attack may have changed.
local PROBE = [==[
local out = {}
local function say(...) out[#out + 1] = table.concat({ ... }, " ") end
local function keys(t)
  local list = {}
  for k in next, t do list[#list + 1] = tostring(k) end
  table.sort(list)
  return table.concat(list, ",")
end
say("globals", keys(_G), tostring(getmetatable(_G)), tostring(getfenv(0) == _G), tostring(_G._G == _G))
for _, name in ipairs { "string", "table", "math", "io", "os", "coroutine", "debug", "bit", "jit", "package" } do
  local library = _G[name]
  say(name, keys(library), tostring(getmetatable(library)), tostring(package.loaded[name] == library))
end
say("loaded", keys(package.loaded), tostring(package.loaded._G == _G), keys(package.preload), #package.loaders)
say("paths", package.path, package.cpath)
say("string", ("x"):rep(3), string.format("%d", 3), ("ab"):upper(), tostring(getmetatable("").__index == string))
say("string metatable", keys(getmetatable "") , tostring(pcall(function() return "a" + "b" end)))
say("types", tostring(pcall(function() return (1)() end)), tostring(pcall(function() return (nil).x end)),
  tostring(pcall(function() return (print).x end)), tostring(pcall(function() return (true).x end)),
  tostring(pcall(function() return (coroutine.create(print)).x end)))
say("jit", tostring(jit.status()), select("#", jit.status()))
say("environments", tostring(getfenv(table.foreach).leftover), tostring(getfenv(table.foreach).print == print))
say("hook", tostring(debug.gethook()))
say("random", ("%.17g %.17g"):format(math.random(), math.random()))
say("io", tostring(io.output() == io.stdout), tostring(io.input() == io.stdin), tostring(getmetatable(io.stdout).__index.write == io.stdout.write))
say("file metatable", keys(getmetatable(io.stdout)))
-- A running collector takes this away.
local weak = setmetatable({ {} }, { __mode = "v" })
for i = 1, 5000 do out.garbage = ("x"):rep(1000) .. i end
out.garbage = nil
say("collector", tostring(weak[1] == nil))
say("functions", tostring(select(2, pcall(string.rep))), tostring(rawget(_G, "leftover")), tostring(ctx and ctx.x))
say("print", tostring(debug.getinfo(print).what), tostring(pcall(require, "ffi") and require "ffi".abi "64bit"))
say("cdef", tostring(pcall(require "ffi".typeof, "struct isolation_attack")))
say("int64", tostring(pcall(function() return (1LL).attacked end)))
say("registry", type(debug.getregistry()), tostring(debug.getregistry().attacked))
return table.concat(out, "\n")
]==]

--- What is done, by what it is called.
local ATTACKS = {
  ["a global"] = "leftover = 5",
  ["a global of the libraries"] = "print = nil tostring = 5",
  ["a global by rawset"] = "rawset(_G, 'leftover', 5)",
  ["a global through getfenv(0)"] = "getfenv(0).leftover = 5",
  ["a global through a library function's environment"] = "local env = getfenv(print) env.leftover = 5",
  ["a global through debug.getfenv"] = "debug.getfenv(print).leftover = 5 debug.getfenv(string.rep).leftover = 6",
  ["string.rep"] = "string.rep = function() return 'attacked' end",
  ["a new field of string"] = "function string.trim() end",
  ["a removed field of table"] = "table.concat = nil",
  ["a field of every library"] = [[
    for _, l in pairs(_G) do
      if type(l) == 'table' and l ~= _G then l.leftover = 1 end
    end]],
  ["a field set and removed"] = "string.leftover = 1 string.leftover = nil",
  ["a metatable of a library"] = "setmetatable(string, { __index = function() return 5 end })",
  ["a metatable of package.loaded"] = "setmetatable(package.loaded, { __index = function() return 5 end })",
  ["the string metatable's __index"] = "getmetatable('').__index = function() return 5 end",
  ["the string metatable's __add"] = "getmetatable('').__add = function() return 5 end",
  ["the string metatable, replaced"] = "debug.setmetatable('', { __index = { rep = 5 } })",
  ["the metatable of numbers"] = "debug.setmetatable(0, { __call = function() return 5 end, __index = {} })",
  ["the metatable of nil"] = "debug.setmetatable(nil, { __index = {} })",
  ["the metatable of functions"] = "debug.setmetatable(print, { __index = {} })",
  ["the metatable of booleans"] = "debug.setmetatable(true, { __index = {} })",
  ["the metatable of coroutines"] = "debug.setmetatable(coroutine.create(print), { __index = {} })",
  ["the metatable of files"] = "getmetatable(io.stdout).__index = { write = 5 }",
  ["a module in package.loaded"] = "package.loaded.attacked = {} package.loaded.string = 5",
  ["package.loaded._G"] = "package.loaded._G = nil",
  ["package.path"] = "package.path = '/attacked' package.cpath = '/attacked'",
  ["package.preload"] = "package.preload.attacked = function() end",
  ["package.loaders"] = "table.insert(package.loaders, 1, function() return function() return 5 end end)",
  ["package.loaders, replaced"] = "package.loaders[2] = nil",
  ["_G's metatable"] = "setmetatable(_G, { __index = function() return 5 end, __newindex = function() end })",
  ["_G._G"] = "_G._G = nil",
  ["jit.off"] = "jit.off()",
  ["jit.off, and on again"] = "jit.off() jit.on() jit.flush()",
  ["jit.opt.start"] = "jit.opt.start(0) jit.opt.start('hotloop=1', '-fold')",
  ["jit.attach"] = "pcall(jit.attach, function() end, 'trace')",
  ["debug.sethook"] = [[
    debug.sethook(function() end, 'l')
    debug.sethook(coroutine.create(print), function() end, '', 1)]],
  ["math.randomseed"] = "math.randomseed(42)",
  ["math.random"] = "for _ = 1, 100 do math.random() end",
  ["collectgarbage 'stop'"] = "collectgarbage 'stop'",
  ["collectgarbage 'setpause'"] = "collectgarbage('setpause', 100000) collectgarbage('setstepmul', 1)",
  ["setfenv(0)"] = "setfenv(0, { leftover = 5 })",
  ["setfenv(1)"] = "setfenv(1, { leftover = 5 })",
  ["setfenv of a library's Lua function"] = "setfenv(table.foreach, { leftover = 5 })",
  ["setfenv of a library's Lua function by its level"] = [[
    table.foreach({ 1 }, function() setfenv(2, { leftover = 5 }) end)
    table.foreachi({ 1 }, function() setfenv(2, { leftover = 5 }) end)]],
  ["the environment of a library's Lua function"] = "getfenv(table.foreach).leftover = 5",
  ["setfenv of its own functions"] = [[
    local function f() leftover = 5 setfenv(1, { a = 1 }) end
    setfenv(f, { setfenv = setfenv }) f()
    local function g() setfenv(2, { leftover = 6 }) end g()]],
  ["jit.off of a function"] = "jit.off(table.foreach) jit.off(true, true) local function f() jit.off(true) end f()",
  ["debug.setfenv of a library function"] = "debug.setfenv(string.rep, { leftover = 5 })",
  ["io.output"] = "io.output(io.stderr)",
  ["io.input"] = "io.input('/dev/null')",
  ["the registry"] = "debug.getregistry().attacked = 5",
  ["the registry's _LOADED"] = "debug.getregistry()._LOADED.attacked = 5",
  ["an upvalue of a library function"] = [[
    for _, f in pairs { math.random, newproxy, io.output, collectgarbage } do
      for place = 1, 3 do pcall(debug.setupvalue, f, place, 5) end
    end]],
  ["a guarded function got by debug.getupvalue"] = "local _, f = debug.getupvalue(newproxy, 2) if f then f(true) end",
  ["a leftover coroutine"] = [[
    local co = coroutine.wrap(function() while true do leftover = 5 string.leftover2 = nil coroutine.yield() end end)
    co() kept = co]],
  ["a finalizer"] = [[
    local p = newproxy(true)
    getmetatable(p).__gc = function() string.rep = nil leftover = 5 end
    p = nil]],
  ["a finalizer of the FFI's"] = "require 'ffi'.gc(require 'ffi'.new('int[1]'), function() string.rep = nil end)",
  ["an FFI cdef"] = "require 'ffi'.cdef 'struct isolation_attack { int x; };'",
  ["an FFI metatype"] = "require 'ffi'.metatype('struct { int x; }', { __index = function() return 5 end })",
  ["an FFI type's own metatable"] = [[
    local m = debug.getmetatable(1LL)
    if m then m.__index = function() return 5 end end]],
  ["the FFI from package.preload"] = [[
    local ffi = package.preload.ffi()
    package.loaded.ffi = nil
    ffi.cdef 'struct isolation_attack { int y; };']],
  ["ctx"] = "ctx.x = 5 ctx = nil",
  ["an error"] = "leftover = 5 string.rep = nil error 'attack'",
  ["a module that is loaded"] = "require 'table.new' require 'string.buffer'",
  ["module()"] = "module('attacked', package.seeall)",
  ["coroutine functions"] = "coroutine.wrap = nil coroutine.yield = print",
  ["os functions"] = "os.exit = function() end os.getenv = nil",
  ["bit functions"] = "bit.band = bit.bor",
  ["functions of jit"] = "jit.status = function() return 5 end",
  ["a table constructor's template"] = [[
    local function f() return { a = 1, b = { c = 2 } } end
    local t = f() t.b.c = 3 setmetatable(t.b, { __index = _G })]],
  ["its own code, again and again"] = "local s = 0 for i = 1, 1e5 do s = s + i end leftover = s",
}

local probe = assert(workers.compile(PROBE, "probe"))

local function with_workers(options, fn)
  return helper.with_workers(1, options, fn)
end

local function world(pool)
  local ok, text = pool:submit(probe)
  assert(ok, text)
  return text
end

describe("an isolated execution leaves nothing of", function()
  after_each(helper.clean)

  local pristine
  with_workers({ fresh = true }, function(pool)
    pristine = world(pool)
  end)

  it("(the probe sees the same in two new VMs, and what is done in its own)", function()
    with_workers({ fresh = true }, function(pool)
      assert.equal(pristine, world(pool))
      local ok, text = pool:submit(assert(workers.compile("leftover = 5 string.trim = 1 " .. PROBE, "p")))
      assert.is_true(ok)
      assert.not_equal(pristine, text)
    end)
  end)

  for what, code in pairs(ATTACKS) do
    it(what, function()
      with_workers(nil, function(pool)
        assert.equal(pristine, world(pool))
        local attack = assert(workers.compile(code, "attack"))
        for _ = 1, 3 do
          local ctx = workers.newContext()
          ctx:set("y", 1)
          local ok, err, info = pool:submit(attack, ctx)
          if what == "an error" then
            assert.same({ false, "attack:1: attack", "error" }, { ok, err, info.kind })
          else
            assert.same({ true }, { ok, err })
          end
          assert.equal(pristine, world(pool))
        end
      end)
    end)
  end
end)
