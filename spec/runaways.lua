--- Jobs that do not end by themselves, for specs and for `make bench-cancel`: by name, as source, since some run where
--- there is nothing but LuaJIT's libraries.

---@class spec.Runaway
---@field name string
---@field source string  of a function's body
---@field in_c? boolean  it is stuck in a C call, which no signal ends
---@field needs_msys? boolean

---@type spec.Runaway[]
local runaways = {
  { name = "while true", source = "while true do end" },
  { name = "for to 1e18", source = "local x = 0 for i = 1, 1e18 do x = x + i end return x" },
  { name = "repeat until false", source = "local x repeat x = math.sin(1) until false" },
  {
    name = "a recursive function",
    source = "local function f(n) return n < 2 and n or f(n - 1) + f(n - 2) end return f(100)",
  },
  {
    name = "an endless recursion, caught",
    source = "local function f(n) return 1 + f(n + 1) end while true do pcall(f, 1) end",
  },
  { name = "while true do pcall(error) end", source = "while true do pcall(error) end" },
  { name = "an endless loop, caught", source = "while true do pcall(function() while true do end end) end" },
  {
    name = "a handler that does not end",
    source = "return xpcall(function() while true do end end, function() while true do end end)",
  },
  {
    name = "a caught loop as the last call",
    source = "return pcall(function() while true do end end)",
  },
  {
    name = "an infinite coroutine",
    source = "local co = coroutine.wrap(function() while true do coroutine.yield() end end) while true do co() end",
  },
  {
    name = "coroutines, each caught",
    source = [[
      while true do
        local co = coroutine.create(function() while true do end end)
        coroutine.resume(co)
      end]],
  },
  { name = "string building", source = "local s = '' while true do s = s .. 'x' end" },
  {
    name = "table growth",
    source = "local t = {} while true do t[#t + 1] = {} if #t > 1e6 then t = {} end end",
  },
  {
    name = "a loop in __gc",
    source = [[
      local p = newproxy(true)
      getmetatable(p).__gc = function() while true do end end
      p = nil
      collectgarbage()]],
  },
  {
    name = "a loop in __index",
    source = "return setmetatable({}, { __index = function() while true do end end }).x",
  },
  {
    name = "a loop in a hook",
    source = "debug.sethook(function() while true do end end, '', 1) while true do end",
  },
  { name = "string.rep", source = "while true do local s = ('x'):rep(1e6) end" },
  {
    name = "gsub with a function",
    source = "while true do ('x'):rep(1000):gsub('.', function() return 'y' end) end",
  },
  {
    name = "gsub with a function that does not end",
    source = "('x'):rep(10):gsub('.', function() while true do end end)",
  },
  {
    name = "table.sort",
    source = "local t = { 3, 2, 1 } while true do table.sort(t, function(a, b) return a < b end) end",
  },
  { name = "loadstring", source = "while true do loadstring('return 1')() end" },
  {
    name = "pairs",
    source = [[
      local t = {}
      for i = 1, 100 do t['k' .. i] = i end
      while true do
        local sum = 0
        for _, v in pairs(t) do sum = sum + v end
      end]],
  },
  {
    name = "FFI calls",
    source = [[
      local ffi = require 'ffi'
      pcall(ffi.cdef, 'int getppid(void);')
      while true do ffi.C.getppid() end]],
  },
  {
    name = "short FFI sleeps",
    source = [[
      local ffi = require 'ffi'
      pcall(ffi.cdef, 'int usleep(unsigned);')
      while true do ffi.C.usleep(500) end]],
  },
  {
    name = "an FFI sleep",
    source = [[
      local ffi = require 'ffi'
      pcall(ffi.cdef, 'unsigned sleep(unsigned);')
      ffi.C.sleep(5)]],
  },
  -- A second or so: with 2,000, as people meet it, for ever.
  { name = "a pathological pattern", source = "return ('a'):rep(90):find('.-.-.-.-b')", in_c = true },
  { name = "os.execute 'sleep 1'", source = "os.execute 'sleep 1'", in_c = true },
  {
    name = "sleeps, each caught",
    source = "while true do pcall(msys.sleep, 0.001) end",
    needs_msys = true,
  },
  { name = "plain yields", source = "while true do coroutine.yield() end", needs_msys = true },
  {
    name = "a chunk by a name like one of msys's",
    source = "loadstring('while true do end', '=[msys x]')()",
  },
  {
    name = "a loop in what makes its error value sendable",
    source = [[
      local looping = function() while true do end end
      error(setmetatable({}, { __msys_pack = looping, __tostring = looping }))]],
    needs_msys = true,
  },
  { name = "yields", source = "while true do msys.yield() end", needs_msys = true },
  {
    name = "a nested job",
    source = "return msys.runInPool('CPU', function() while true do end end)",
    needs_msys = true,
  },
  {
    name = "a wait below a C function",
    source = "return (('x'):gsub('x', function() msys.sleep(1000) end))",
    needs_msys = true,
  },
  {
    name = "a map",
    source = "return msys.map('CPU', { 1, 2, 3 }, function() while true do end end)",
    needs_msys = true,
  },
}

return runaways
