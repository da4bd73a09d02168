-- Random graphs of tables, functions and cells: what comes back has the same contents and is shared in the same places.
--
-- A failure names its seed: MSYS_SPEC_SEED=<seed> tries that graph first.

local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

local CASES = tonumber(os.getenv "MSYS_SPEC_CASES") or helper.times(500)

-- Functions of different code, whose cells can be tied to each other's. All cells are assigned somewhere, as LuaJIT may
-- take a cell that never is for a constant.
local KINDS = {
  function(label)
    local a
    return function(x)
      if x then
        a, label = x, label
      end
      return label, a
    end
  end,
  function(label)
    local a, b, c
    return function(x, ...)
      if x then
        a, b, c, label = x, a, ..., label
      end
      return label, a, b, c
    end
  end,
  function(label)
    local a, b
    return function(x)
      local function inner()
        a, b, label = b, x, label
        return a
      end
      return label, inner
    end
  end,
}

-- busted gives this file an environment, which is not to be part of the graphs.
for _, kind in ipairs(KINDS) do
  setfenv(kind, _G)
end

--- A random graph with about `size` objects; each has a label of its own: a table under the key "label", a function in
--- its upvalue of that name.
local function graph_of(random, size)
  local objects, tables, functions = {}, {}, {}
  for label = 1, size do
    local object
    if random(3) == 1 then
      object = KINDS[random(#KINDS)](label)
      if random(6) == 1 then setfenv(object, { label = -label, print = print }) end
      functions[#functions + 1] = object
    else
      object = { label = label }
      tables[#tables + 1] = object
    end
    objects[label] = object
  end
  -- Some graphs are deep, others wide.
  local reach = random(3) == 1 and 2 or size

  local function scalar()
    local what = random(9)
    if what == 1 then
      return random(2) == 1
    elseif what == 2 then
      return ("\0%d"):format(random(50))
    elseif what == 3 then
      return ("long"):rep(random(100))
    elseif what == 4 then
      return random(1000) / 8 - 60
    elseif what == 5 then
      return -1 / math.huge
    elseif what == 6 then
      return ({ string.rep, print, string, _G, msys, msys.runInPool, require, math.sin })[random(8)]
    end
    return (random(3) - 2) * random(2 ^ 30) * random(2 ^ 10)
  end
  local function value(near)
    if random(5) <= 2 then return scalar() end
    return objects[math.min(size, math.max(1, near + random(2 * reach) - reach))]
  end

  for place, tbl in ipairs(tables) do
    for _ = 1, random(6) - 1 do
      local where = random(3)
      if where == 1 then
        tbl[#tbl + 1] = value(tbl.label)
      elseif where == 2 then
        tbl["key" .. random(150)] = value(tbl.label)
      else
        tbl[value(tbl.label)] = value(tbl.label)
      end
    end
    if random(4) == 1 then setmetatable(tbl, tables[random(#tables)]) end
    -- The chain that makes all reachable, and some graphs as deep as large.
    tbl.next = tables[place + 1]
  end
  for place, fn in ipairs(functions) do
    for up = 1, 5 do
      local name = debug.getupvalue(fn, up)
      if name and name ~= "label" then
        debug.setupvalue(fn, up, value(place))
        local other = functions[random(#functions)]
        local theirs = random(4)
        local their_name = debug.getupvalue(other, theirs)
        if random(2) == 1 and their_name and their_name ~= "label" then
          debug.upvaluejoin(fn, up, other, theirs)
        end
      end
    end
  end
  return { label = 0, tables[1] or false, functions, objects[random(size)] }
end

--- A graph in words, the same for the same graph in any VM; or an error if two objects have one label. Goes along into
--- jobs, and does not go by the order in which `next` gives keys.
local function describe_graph(root)
  local named = {}
  for _, name in ipairs { "string", "msys", "_G", "math" } do
    local module = require(name)
    named[module] = name
    for field, fn in next, module do
      if
        type(fn) == "function" and (name ~= "_G" or field == "require" or debug.getinfo(fn, "S").what == "C")
      then
        named[fn] = name .. "." .. tostring(field)
      end
    end
  end

  local labels, queue, cells, count = {}, {}, {}, 0
  local function label_of(object)
    local label
    if type(object) == "table" then
      -- What has no label is the list of functions, or a function's environment, which has one.
      label = "T" .. tostring(rawget(object, "label"))
    else
      for up = 1, 60 do
        local name, value = debug.getupvalue(object, up)
        if name == "label" then label = "F" .. value end
      end
    end
    return label
  end
  local function text(value)
    local kind = type(value)
    if named[value] then
      return named[value]
    elseif kind == "table" or kind == "function" then
      local label = label_of(value)
      if not labels[label] then
        labels[label] = value
        queue[#queue + 1] = value
      elseif labels[label] ~= value then
        error("two objects are " .. label, 0)
      end
      return label
    elseif kind == "number" then
      return value == 0 and ("%g"):format(1 / value) or ("%.17g"):format(value)
    end
    return ("%s %q"):format(kind, tostring(value))
  end

  local lines = { text(root) }
  local at = 1
  while queue[at] do
    local object = queue[at]
    at = at + 1
    local parts = {}
    if type(object) == "table" then
      -- Texts first, in an order of their own: what is met first is described first.
      local keys = {}
      for key in next, object do
        local object_key = (type(key) == "table" or type(key) == "function") and not named[key]
        keys[#keys + 1] = { object_key and label_of(key) or text(key), key }
      end
      table.sort(keys, function(a, b)
        return a[1] < b[1]
      end)
      for place, key in ipairs(keys) do
        parts[place] = text(key[2]) .. "=" .. text(rawget(object, key[2]))
      end
      local meta = debug.getmetatable(object)
      parts[#parts + 1] = meta and "meta=" .. text(meta) or nil
    else
      parts[1] = "line " .. debug.getinfo(object, "S").linedefined
      for up = 1, 60 do
        local name, value = debug.getupvalue(object, up)
        if not name then break end
        local id = tostring(debug.upvalueid(object, up))
        if not cells[id] then
          count = count + 1
          cells[id] = count
        end
        parts[#parts + 1] = ("%s: cell %d=%s"):format(name, cells[id], text(value))
      end
      local env = getfenv(object)
      parts[#parts + 1] = env ~= _G and "env=" .. text(env) or nil
    end
    lines[#lines + 1] = text(object) .. " {" .. table.concat(parts, ", ") .. "}"
  end
  return table.concat(lines, "\n")
end

setfenv(describe_graph, _G)

--- Values that are no objects, at the borders of how they are written.
local ATOMS = {
  false,
  true,
  0,
  -0,
  1,
  -1,
  2 ^ 31 - 1,
  2 ^ 31,
  -2 ^ 31,
  -2 ^ 31 - 1,
  2 ^ 53 + 1,
  0.1,
  1 / 0,
  -1 / 0,
  0 / 0,
}
for _, length in ipairs { 0, 1, 255, 256, 2 ^ 16 - 1, 2 ^ 16, 2 ^ 16 + 1 } do
  ATOMS[#ATOMS + 1] = ("x\0"):rep(length):sub(1, length)
end

--- What a value that is no object is; differs for values that differ.
local function atom_text(value)
  if value == 0 then
    return 1 / value > 0 and "0" or "-0"
  elseif type(value) == "number" then
    return ("%.17g"):format(value)
  elseif type(value) == "string" then
    return #value .. value:sub(-2)
  end
  return tostring(value)
end

--- Functions that give their upvalues, and what they are called with.
local GIVERS = {
  function()
    return function(...)
      return ...
    end
  end,
  function(a)
    return function(...)
      return a, ...
    end
  end,
  function(a, b, c, d, e)
    return function(...)
      return a, b, c, d, e, ...
    end
  end,
  function(a, b)
    return function(...)
      a, b = b, a
      return a, b, ...
    end
  end,
  function(a, b)
    return function(...)
      return (function()
        return a
      end)(), b, ...
    end
  end,
}
for _, giver in ipairs(GIVERS) do
  setfenv(giver, _G)
end

local function pack(...)
  return { n = select("#", ...), ... }
end

local first_seed = tonumber(os.getenv "MSYS_SPEC_SEED") or os.time() % 1000000 * 1000

describe("a graph of values", function()
  after_each(helper.clean)

  it(("keeps its contents and what is shared in it, for %d random graphs"):format(CASES), function()
    for seed = first_seed, first_seed + CASES - 1 do
      local random = helper.generator(seed)
      local graph = graph_of(random, random(seed % 10 == 0 and 400 or 40))
      local before = describe_graph(graph)
      local ok, back, there
      if random(2) == 1 then
        ok, back, there = msys.runInPool("CPU", function(given)
          return given, describe_graph(given)
        end, { args = { graph }, in_place = false })
      else
        ok, back, there = msys.runInPool("CPU", function()
          return graph, describe_graph(graph)
        end, { in_place = false })
      end
      local which = ("MSYS_SPEC_SEED=%d"):format(seed)
      assert(ok, which .. ": " .. tostring(back))
      assert.equal(before, there, which .. ", in the job")
      assert.equal(before, describe_graph(back), which .. ", back from the job")
    end
  end)

  it(("that are no objects are the same there and back, for %d random calls"):format(CASES), function()
    for seed = first_seed, first_seed + CASES - 1 do
      local random = helper.generator(seed)
      local function atoms(count)
        local list = {}
        for place = 1, count do
          -- Beyond them: nil.
          list[place] = ATOMS[random(#ATOMS + 1)]
        end
        return list
      end
      local upvalues, args, count = atoms(5), atoms(20), random(21) - 1
      local fn = GIVERS[random(#GIVERS)](unpack(upvalues, 1, 5))
      local waits = random(2) == 1
      -- What is sent with a completion has no arguments.
      count = waits and count or 0
      local expected = pack(fn(unpack(args, 1, count)))
      -- Back to what it was, where it has changed.
      fn()
      local got
      if waits then
        args.n = count
        got = { msys.runInPool("CPU", fn, { args = args }) }
      else
        msys.runInPool("CPU", fn, function(...)
          got = { ... }
        end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
        msys.run()
      end
      local which = ("MSYS_SPEC_SEED=%d"):format(seed)
      assert(got[1], which .. ": " .. tostring(got[2]))
      for place = 1, expected.n do
        assert.equal(atom_text(expected[place]), atom_text(got[place + 1]), which .. ", result " .. place)
      end
    end
  end)

  it("that differs is told apart by this test", function()
    local shared = { label = 1 }
    local function fn(label)
      local a
      return function()
        a, label = label, label
        return a
      end
    end
    local one, two = fn(2), fn(3)
    local graph = { label = 0, shared, shared, one, two }
    local before = describe_graph(graph)
    assert.equal(before, describe_graph { label = 0, shared, shared, one, two })
    assert.not_equal(before, describe_graph { label = 0, shared, shared, one, fn(4) })
    assert.error_matches(function()
      describe_graph { label = 0, shared, { label = 1 }, one, two }
    end, "two objects are T1")
    debug.upvaluejoin(one, 1, two, 1)
    assert.not_equal(before, describe_graph(graph))
  end)
end)
