--- What a VM of isolated executions begins with (`src/isolate` runs it there, before any script).
---
--- An execution must leave nothing behind. Its globals are a table of its own; and what it may change besides is either
--- found out afterwards (the tables of the libraries are compared with what they were) or not at all: then the function
--- that changes it is put behind a guard, which notes that it was called. A VM in which anything was changed is thrown
--- away.
---
--- The guards are C functions: `guard(fn)` notes each call, `guard_arguments(fn)` one with arguments,
--- `guard_mode(fn)` one of `jit.on`, `off` or `flush`, `guard_options(fn)` one of `collectgarbage` that sets something,
--- `guard_environment(fn)` one of `setfenv` for a function.
---
--- Gives a list of all tables that a script can reach, a function that makes the globals of an execution, and what
--- `math.random` keeps its state in.

local guard, guard_arguments, guard_mode, guard_options, guard_environment = ...

local getupvalue = debug.getupvalue
local _, random_state = getupvalue(math.random, 1)

for name in pairs {
  setmetatable = true,
  setupvalue = true,
  upvaluejoin = true,
  setfenv = true,
  -- What gives away what a script must not have: what is behind the guards, the globals of this file, the registry.
  getupvalue = true,
  getfenv = true,
  getregistry = true,
  sethook = true,
  setuservalue = true,
} do
  if debug[name] then debug[name] = guard(debug[name]) end
end
newproxy = guard(newproxy)
collectgarbage = guard_options(collectgarbage)
setfenv = guard_environment(setfenv)
io.input, io.output = guard_arguments(io.input), guard_arguments(io.output)
for _, name in ipairs { "on", "off", "flush" } do
  jit[name] = guard_mode(jit[name])
end
jit.attach = guard(jit.attach)
jit.opt.start = guard(jit.opt.start)
package.loadlib = guard(package.loadlib)
-- Those of C libraries.
for place = 3, #package.loaders do
  package.loaders[place] = guard(package.loaders[place])
end
for name, open in pairs(package.preload) do
  package.preload[name] = guard(open)
end
-- The profiler is the process's.
package.preload["jit.profile"] = nil
if type(random_state) ~= "userdata" then
  random_state = nil
  math.random, math.randomseed = guard(math.random), guard(math.randomseed)
end

local all, seen = {}, {}
local function visit(value)
  if type(value) ~= "table" or seen[value] then return end
  seen[value] = true
  all[#all + 1] = value
  visit(debug.getmetatable(value))
  for key, item in next, value do
    visit(key)
    visit(item)
  end
end

-- The globals of an execution, made by a table constructor, which is a copy of one with the keys.
local names, values = {}, {}
for name, value in next, _G do
  if name ~= "_G" and type(name) == "string" and name:find "^[%a_][%w_]*$" then
    names[#names + 1] = name
    values[#values + 1] = value
  end
end
local fields = {}
for place, name in ipairs(names) do
  fields[place] = ("%s = v%d"):format(name, place)
end
local source = ("local %s = ... return function() local g = { %s } g._G = g return g end"):format(
  "v"
    .. table.concat(
      (function()
        local list = {}
        for place = 1, #names do
          list[place] = tostring(place)
        end
        return list
      end)(),
      ", v"
    ),
  table.concat(fields, ", ")
)
local make = assert(loadstring(source, "=[msys.isolated]"))(unpack(values))

visit(_G)
visit(debug.getmetatable "")
visit(debug.getmetatable(io.stdout))
return all, make, random_state
