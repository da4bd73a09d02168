-- Random programs over random graphs: a job leaves behind what the same program leaves that runs in place, in the same
-- objects and cells.
--
-- A failure names its seed, and the part of the program that it needs: MSYS_SPEC_SEED=<seed> tries that one first.
-- MSYS_SPEC_CASES=<n> sets how many are tried.

-- luacheck: globals msys_spec_left msys_spec_right msys_spec_graph

local ffi = require "ffi"
local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

local CASES = tonumber(os.getenv "MSYS_SPEC_CASES") or helper.times(2000)

-- Functions of different code. Each takes an operation: "get" gives a cell's value, "set" assigns one, "make" gives a
-- new function with the label `x` that has some of the cells too. Every variable is assigned somewhere, as LuaJIT may
-- take one that never is for a constant.
local KINDS = {
  function(label)
    local a
    return function(what, x)
      if what == "get" then
        return a
      elseif what == "set" then
        a, label = x, label
      elseif what == "make" then
        -- The new one's own label, in an upvalue of that name.
        return (function(label) -- luacheck: ignore 431 432
          return function(inner_what, y)
            if inner_what == "get" then return a end
            if inner_what == "set" then
              a, label = y, label
            end
          end
        end)(x)
      end
    end
  end,
  function(label)
    local a, b
    return function(what, x)
      local function assign()
        a, b, label = x, a, label
      end
      if what == "get" then
        return b
      elseif what == "set" then
        assign()
      elseif what == "make" then
        return (function(label) -- luacheck: ignore 431 432
          local c = x
          return function(inner_what, y)
            if inner_what == "get" then return c end
            if inner_what == "set" then
              b, c, label = c, y, label
            end
          end
        end)(x)
      end
    end
  end,
  -- Reads only what others assign.
  function(label)
    local a
    if not label then
      a, label = 1, 2
    end
    return function(what)
      if what == "get" then return a, label end
    end
  end,
}

--- Globals of the script's: reads and assigns them.
local function by_global(what, which, value)
  if what == "set" then
    if which == 1 then
      msys_spec_left = value
    else
      msys_spec_right = value
    end
  end
  if which == 1 then return msys_spec_left end
  return msys_spec_right
end

local rawget, rawset, next, type, tostring, error = rawget, rawset, next, type, tostring, error
local setmetatable, setfenv, debug_getmetatable = setmetatable, setfenv, debug.getmetatable
local getupvalue, insert, remove, sort, format =
  debug.getupvalue, table.insert, table.remove, table.sort, string.format

--- Interprets a program, a list of steps: a name and its operands. It works on `graph.slots`, of which each step takes
--- some and sets one at most; a step that does not fit what is there does nothing. `variable` and `global` read and
--- assign what is outside of the graph; `call(fn)` calls like pcall. Names no global itself, so that a job with it gets
--- none.
local function interpret(program, graph, variable, global, call)
  local slots = graph.slots

  -- Modules and the globals are none: what a job changes there is the worker's.
  local function is_table(value)
    local named = type(value) ~= "table"
      or rawget(value, "_G")
      or rawget(value, "rep")
      or rawget(value, "runInPool")
    return not named and value
  end
  --- The length of what has no holes, else nil: a table with holes has several. Keeps no key for the next turn, where
  --- LuaJITs before July 2022 may compare it with a wrong one (spec/luajit/fused_next.lua).
  local function length(list)
    local count = 0
    for key in next, list do
      if type(key) == "number" and key >= 1 and key % 1 == 0 then count = count + 1 end
    end
    for key in next, list do
      if type(key) == "number" and key > count and key % 1 == 0 then return nil end
    end
    return count
  end
  local function rank(value)
    local kind = type(value)
    if kind == "number" then return format("a%30.17g", value) end
    if kind == "table" then return "b" .. tostring(rawget(value, "label")) end
    if kind == "function" then
      for up = 1, 9 do
        local name, label = getupvalue(value, up)
        if name == "label" then return "c" .. label end
      end
    end
    if kind == "cdata" then return "d" .. tostring(value[0]) end
    if kind == "string" then return "e" .. value end
    return "f" .. kind .. (value == true and "t" or "")
  end

  --- An operand: a slot, or a literal.
  local function get(operand)
    if operand.slot then return slots[operand.slot] end
    return operand.literal
  end

  local steps = {}
  function steps.move(to, from)
    slots[to] = get(from)
  end
  function steps.read(to, from, key)
    local tbl, at = is_table(get(from)), get(key)
    if tbl and at ~= nil and at ~= "label" then slots[to] = rawget(tbl, at) end
  end
  function steps.write(to, key, value)
    local tbl, at = is_table(get(to)), get(key)
    if not tbl or at == "label" then return end
    -- In words of our own: LuaJIT's differ where the code is compiled.
    if at == nil or at ~= at then error(at == nil and "a nil as key" or "a NaN as key", 0) end
    rawset(tbl, at, get(value))
  end
  function steps.clear(from)
    local tbl = is_table(get(from))
    if not tbl then return end
    for key in next, tbl do
      if key ~= "label" then tbl[key] = nil end
    end
  end
  function steps.negate(from)
    local tbl = is_table(get(from))
    if not tbl then return end
    for key, value in next, tbl do
      if type(value) == "number" and key ~= "label" then tbl[key] = -value end
    end
  end
  function steps.insert(to, value, place)
    local tbl = is_table(get(to))
    local count = tbl and length(tbl)
    if count then insert(tbl, place % (count + 1) + 1, get(value)) end
  end
  function steps.remove(to, from, place)
    local tbl = is_table(get(from))
    local count = tbl and length(tbl)
    if count and count > 0 then slots[to] = remove(tbl, place % count + 1) end
  end
  function steps.sort(from, down)
    local tbl = is_table(get(from))
    if not (tbl and length(tbl)) then return end
    sort(tbl, function(a, b)
      if down > 1 then
        a, b = b, a
      end
      return rank(a) < rank(b)
    end)
  end
  function steps.metatable(to, from)
    local tbl, meta = is_table(get(to)), get(from)
    if tbl and (meta == nil or is_table(meta)) then setmetatable(tbl, meta) end
  end
  function steps.metatable_of(to, from)
    local tbl = is_table(get(from))
    if tbl then slots[to] = debug_getmetatable(tbl) end
  end
  function steps.environment(to, from)
    local fn, env = get(to), get(from)
    if type(fn) == "function" and rank(fn):find "^c" and type(env) == "table" then setfenv(fn, env) end
  end
  function steps.table(to, label)
    slots[to] = { label = label }
  end
  function steps.array(to, label, first, second)
    slots[to] = { get(first), get(second), label = label }
  end
  steps["function"] = function(to, label, kind)
    slots[to] = KINDS[kind](label)
  end
  function steps.make(to, from, label)
    local fn = get(from)
    if type(fn) == "function" and rank(fn):find "^c" then slots[to] = fn("make", label) end
  end
  function steps.assign(to, value)
    local fn = get(to)
    if type(fn) == "function" and rank(fn):find "^c" then fn("set", get(value)) end
  end
  function steps.fetch(to, from)
    local fn = get(from)
    if type(fn) == "function" and rank(fn):find "^c" then slots[to] = fn "get" end
  end
  function steps.bytes(to, place, number)
    local array = get(to)
    if type(array) == "cdata" then array[place % 4] = number end
  end
  function steps.set_variable(which, value)
    variable("set", which, get(value))
  end
  function steps.get_variable(to, which)
    slots[to] = variable("get", which)
  end
  function steps.set_global(which, value)
    if global then global("set", which, get(value)) end
  end
  function steps.get_global(to, which)
    if global then slots[to] = global("get", which) end
  end
  function steps.fail(value)
    error(get(value), 0)
  end
  function steps.call(to, inner)
    local _, result = call(function()
      return interpret(inner, graph, variable, global, call)
    end)
    slots[to] = result
  end

  for at = 1, #program do
    local step = program[at]
    steps[step[1]](step[2], step[3], step[4], step[5])
  end
  return get(program.results[1]), get(program.results[2])
end

--- How many slots there are, and so how many objects a program has at hand.
local SLOTS = 10

local SCALARS = {
  function(random)
    return random(6)
  end,
  function(random)
    return (random(3) - 2) * random(2 ^ 30) / 8
  end,
  function(random)
    return "key" .. random(4)
  end,
  function(random)
    return ("long"):rep(random(100))
  end,
  function(random)
    return ({ "__index", "__newindex", "__eq", "__call", "__len" })[random(5)]
  end,
  function(random)
    return ({ -1 / math.huge, 0, 0 / 0, math.huge, 2 ^ 53, 1e300 })[random(6)]
  end,
  function(random)
    return random(2) == 1
  end,
  function(random)
    return ({ print, string.rep, string, msys, msys.runInPool, _G, "\0\1" })[random(7)]
  end,
  function() end,
}

local function scalar(random)
  return SCALARS[random(#SCALARS)](random)
end

--- A random graph of `size` objects and two; each has a label of its own: most tables under the key "label", a function
--- in its upvalue of that name. `originals` has them by label, and is no part of the graph, as are some of the objects.
local function world_of(random, size)
  local originals, functions = {}, {}
  local graph = { label = size + 1, slots = { label = size + 2 } }
  for label = 1, size do
    local what = random(10)
    local object
    if what <= 6 then
      -- Some are empty.
      object = random(4) > 1 and { label = label } or {}
    elseif what <= 9 then
      object = KINDS[random(#KINDS)](label)
      functions[#functions + 1] = object
    else
      object = ffi.new("int[4]", label, random(3))
    end
    originals[label] = object
  end
  local function value()
    if random(3) == 1 then return scalar(random) end
    return originals[random(size)]
  end
  for label = 1, size do
    local object = originals[label]
    if type(object) == "table" then
      for _ = 1, random(4) - 1 do
        local key = random(3) == 1 and value() or "key" .. random(4)
        if random(2) == 1 then
          rawset(object, #object + 1, (value()))
        elseif key ~= nil and key == key then
          rawset(object, key, (value()))
        end
      end
      local meta = originals[random(size)]
      if random(4) == 1 and type(meta) == "table" then setmetatable(object, meta) end
    elseif type(object) == "function" then
      for up = 1, 5 do
        local name = debug.getupvalue(object, up)
        if name and name ~= "label" then
          debug.setupvalue(object, up, (value()))
          local other, theirs = functions[random(#functions)], random(4)
          local their_name = debug.getupvalue(other, theirs)
          if random(2) == 1 and their_name and their_name ~= "label" then
            debug.upvaluejoin(object, up, other, theirs)
          end
        end
      end
      local env = originals[random(size)]
      if random(8) == 1 and type(env) == "table" then setfenv(object, env) end
    end
  end
  for slot = 1, SLOTS - 2 do
    graph.slots[slot] = value()
  end
  if size > 50 and random(2) == 1 then
    -- As deep as large.
    local last = graph.slots
    for label = 1, size do
      local object = originals[label]
      if type(object) == "table" then
        rawset(last, "key4", object)
        last = object
      end
    end
    graph.slots[SLOTS] = last
  end
  local left, right = value(), value()
  originals[size + 1], originals[size + 2] = graph, graph.slots
  return { graph = graph, originals = originals, left = left, right = right }
end

--- A random program of `size` steps; `new_label` gives each object that it makes a label of its own.
local function program_of(random, size, new_label, depth)
  local function slot()
    return random(SLOTS)
  end
  local function operand()
    if random(4) == 1 then return { literal = scalar(random) } end
    return { slot = slot() }
  end
  local function taken()
    return { slot = slot() }
  end
  local makers = {
    function()
      return { "move", slot(), operand() }
    end,
    function()
      return { "read", slot(), taken(), operand() }
    end,
    function()
      return { "write", taken(), random(2) == 1 and { literal = "key" .. random(4) } or operand(), operand() }
    end,
    function()
      return { "write", taken(), { literal = random(4) }, operand() }
    end,
    function()
      return { "insert", taken(), operand(), random(5) }
    end,
    function()
      return { "remove", slot(), taken(), random(5) }
    end,
    function()
      return { "sort", taken(), random(2) }
    end,
    function()
      return { "metatable", taken(), random(4) == 1 and { literal = nil } or taken() }
    end,
    function()
      return { "metatable_of", slot(), taken() }
    end,
    function()
      return { "environment", taken(), random(4) == 1 and { literal = _G } or taken() }
    end,
    function()
      return { "table", slot(), new_label() }
    end,
    function()
      return { "array", slot(), new_label(), operand(), operand() }
    end,
    function()
      return { "function", slot(), new_label(), random(#KINDS) }
    end,
    function()
      return { "make", slot(), taken(), new_label() }
    end,
    function()
      return { "assign", taken(), operand() }
    end,
    function()
      return { "fetch", slot(), taken() }
    end,
    function()
      return { "bytes", taken(), random(4), random(3) }
    end,
    function()
      return { "set_variable", random(2), operand() }
    end,
    function()
      return { "get_variable", slot(), random(2) }
    end,
    function()
      return { "set_global", random(2), operand() }
    end,
    function()
      return { "get_global", slot(), random(2) }
    end,
    function()
      if random(4) > 1 then return { "negate", taken() } end
      return { "clear", taken() }
    end,
    function()
      if random(4) > 1 then return { "assign", taken(), operand() } end
      return { "fail", operand() }
    end,
    function()
      if depth > 1 or random(3) > 1 then return { "make", slot(), taken(), new_label() } end
      return { "call", slot(), program_of(random, random(4), new_label, depth + 1) }
    end,
  }
  local program = { results = { operand(), operand() } }
  for place = 1, size do
    program[place] = makers[random(#makers)]()
  end
  return program
end

local MODULES = {}
for _, name in ipairs { "string", "msys", "_G" } do
  local module = require(name)
  MODULES[module] = name
  for field, fn in next, module do
    if type(fn) == "function" then MODULES[fn] = name .. "." .. tostring(field) end
  end
end

--- A world in words, the same for the same one; or an error if two objects have one label, or if there is a copy of an
--- original. Does not go by the order in which `next` gives keys.
local function describe_world(world, roots)
  local labels, queue, cells, count = {}, {}, {}, 0
  local places = {}
  for label, object in next, world.originals do
    places[object] = label
  end
  local function label_of(object)
    if type(object) == "cdata" then
      return "C" .. (places[object] or "0, a copy,")
    elseif type(object) == "table" then
      return "T" .. (rawget(object, "label") or places[object] or "0, a copy")
    end
    for up = 1, 60 do
      local name, value = debug.getupvalue(object, up)
      if name == "label" then return "F" .. value end
    end
    return "F0"
  end
  local function is_object(value)
    local kind = type(value)
    return (kind == "table" or kind == "function" or kind == "cdata") and not MODULES[value]
  end
  local function text(value)
    if MODULES[value] then
      return MODULES[value]
    elseif is_object(value) then
      local label = label_of(value)
      if not labels[label] then
        labels[label] = value
        queue[#queue + 1] = value
        local original = world.originals[tonumber((label:match "%d+"))]
        if original and not rawequal(original, value) then error(label .. " is a copy", 0) end
      elseif not rawequal(labels[label], value) then
        error("two objects are " .. label, 0)
      end
      return label
    elseif type(value) == "number" then
      return value == 0 and ("zero %g"):format(1 / value)
        or value ~= value and "nan"
        or ("%.17g"):format(value)
    end
    return ("%s %q"):format(type(value), tostring(value))
  end

  local lines = {}
  for place = 1, roots.n do
    lines[place] = text(roots[place])
  end
  for _, object in ipairs(world.originals) do
    text(object)
  end
  local at = 1
  while queue[at] do
    local object = queue[at]
    at = at + 1
    local parts = {}
    if type(object) == "cdata" then
      parts[1] = ("%d %d %d %d"):format(object[0], object[1], object[2], object[3])
    elseif type(object) == "table" then
      -- Texts first, in an order of their own: what is met first is described first.
      local keys = {}
      for key in next, object do
        keys[#keys + 1] = { is_object(key) and label_of(key) or text(key), key }
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

local function pack(...)
  return { n = select("#", ...), ... }
end

local POOL = "programs"

--- Runs `fn` with the pool of the programs, whose workers compile without what makes Debian's LuaJIT compare the wrong
--- keys in `length`, in one of some 60,000 programs (see spec/luajit/fused_next.lua).
local function with_programs(fn)
  local function init()
    jit.opt.start "-fuse"
  end
  helper.with_pool({ name = POOL, concurrency = 2, init = init }, fn)
end

local function in_job(fn, options)
  local function second(ok, value, other)
    if ok then return ok, value, other end
    -- What comes third is msys's own.
    return ok, value
  end
  return second(msys.runInPool(POOL, fn, options))
end

--- As pcall, with the function as a job of the job's.
local function nested(fn)
  local function first(ok, value)
    return ok, value
  end
  return first(msys.runInPool(POOL, fn))
end

local function in_place(fn, options)
  return pcall(fn, unpack(options and options.args or {}))
end

-- Different ways for a job to have the graph. Each gives what is outside of it.
local SHAPES = {
  --- In upvalues, two of which are assigned; another function that stays here has those too.
  function(world, program, run, call)
    local graph, left, right = world.graph, world.left, world.right
    local function variable(what, which, value)
      if what == "set" then
        if which == 1 then
          left = value
        else
          right = value
        end
      end
      if which == 1 then return left end
      return right
    end
    local results = pack(run(function()
      return interpret(program, graph, variable, nil, call)
    end))
    return results, left, right
  end,
  --- As arguments, and in upvalues of the closure itself.
  function(world, program, run, call)
    local left, right = world.left, world.right
    local results = pack(run(function(graph, unused)
      return interpret(program, graph, function(what, which, value)
        if what == "set" then
          if which == 1 then
            left = value
          else
            right = value
          end
        end
        if which == 1 then return left end
        return right
      end, unused, call)
    end, { args = { world.graph } }))
    return results, left, right
  end,
  --- As globals.
  function(world, program, run, call)
    msys_spec_graph, msys_spec_left, msys_spec_right = world.graph, world.left, world.right
    local results = pack(run(function()
      return interpret(program, msys_spec_graph, by_global, by_global, call)
    end))
    local left, right = msys_spec_left, msys_spec_right
    msys_spec_graph, msys_spec_left, msys_spec_right = nil, nil, nil
    return results, left, right
  end,
}

--- Runs the program of a case in one of the ways, and describes what it has left.
local function left_behind(case, run, call)
  local world = world_of(helper.generator(case.seed), case.size)
  local results, left, right = SHAPES[case.shape](world, case.program, run, call)
  -- What the functions of msys itself say is no part of it.
  local ok, text = pcall(describe_world, world, {
    n = 6,
    world.graph,
    left,
    right,
    results[1],
    results[2],
    results[3],
  })
  return text, ok
end

local function case_of(seed)
  local random = helper.generator(seed * 7 + 3)
  local size = seed % 20 == 0 and 80 or random(14)
  local label = 1000
  local function new_label()
    label = label + 1
    return label
  end
  return {
    seed = seed,
    size = size,
    shape = random(#SHAPES),
    program = program_of(random, random(seed % 10 == 0 and 60 or 14), new_label, 0),
  }
end

--- What the case leaves in place, and what a job leaves.
local function both(case)
  local here, fine = left_behind(case, in_place, pcall)
  if not fine then error(("MSYS_SPEC_SEED=%d, in place: %s"):format(case.seed, here), 0) end
  return here, (left_behind(case, in_job, nested))
end

--- A case whose program has lost all steps that its failure does not need.
local function shortest(case)
  local short = { seed = case.seed, size = case.size, shape = case.shape, program = case.program }
  local at = #short.program
  while at > 0 do
    local program = { results = case.program.results }
    for place, step in ipairs(short.program) do
      if place ~= at then program[#program + 1] = step end
    end
    local shorter = { seed = case.seed, size = case.size, shape = case.shape, program = program }
    local here, there = both(shorter)
    if here ~= there then short = shorter end
    at = at - 1
  end
  return short
end

local function program_text(program)
  local function operand_text(value)
    if type(value) ~= "table" then return tostring(value) end
    if value[1] or value.results then return "(" .. program_text(value) .. ")" end
    return value.slot and "$" .. value.slot
      or type(value.literal) == "string" and ("%q"):format(value.literal)
      or tostring(value.literal)
  end
  local lines = {}
  for place, step in ipairs(program) do
    local words = { step[1] }
    for operand = 2, 5 do
      if step[operand] ~= nil then words[#words + 1] = operand_text(step[operand]) end
    end
    lines[place] = table.concat(words, " ")
  end
  lines[#lines + 1] = "return "
    .. operand_text(program.results[1])
    .. ", "
    .. operand_text(program.results[2])
  return table.concat(lines, "; ")
end

local first_seed = tonumber(os.getenv "MSYS_SPEC_SEED") or os.time() % 1000000 * 1000

describe("a random program", function()
  after_each(helper.clean)

  it(("leaves behind in a job what it leaves in place, for %d of them"):format(CASES), function()
    with_programs(function()
      for seed = first_seed, first_seed + CASES - 1 do
        local case = case_of(seed)
        local here, there = both(case)
        if here ~= there then
          local short = shortest(case)
          local short_here, short_there = both(short)
          local which = "MSYS_SPEC_SEED=%d, shape %d, %d objects: %s"
          if short_here ~= short_there then
            case, here, there = short, short_here, short_there
          else
            which = which .. " (not each time)"
          end
          assert.equal(here, there, which:format(seed, case.shape, case.size, program_text(case.program)))
        end
      end
    end)
  end)

  it("that leaves something else is told apart by this test", function()
    with_programs(function()
      local function run_alone(fn, options)
        options = options or {}
        options.in_place = false
        return in_job(fn, options)
      end
      local told, all = 0, 100
      for seed = 1, all do
        local case = case_of(seed)
        if left_behind(case, in_place, pcall) ~= left_behind(case, run_alone, nested) then told = told + 1 end
      end
      -- Some programs change nothing.
      assert.is_true(told > all / 2 and told < all, told)
    end)
  end)

  for name, change in pairs {
    ["another key"] = function(world)
      world.originals[1].extra = 1
    end,
    ["a key of another sign"] = function(world)
      world.originals[1].number = -1 / math.huge
    end,
    ["another metatable"] = function(world)
      setmetatable(world.originals[1], {})
    end,
    ["a copy of an object"] = function(world)
      world.graph.slots[1] = { label = 1, number = 0 }
    end,
    ["an original that is gone"] = function(world)
      world.originals[1] = { label = 1, number = 0 }
    end,
    ["a copy of a new object"] = function(world)
      world.graph.slots[4] = { label = 1001 }
    end,
    ["an upvalue of another value"] = function(world)
      world.originals[2]("set", 2)
    end,
    ["another cell of the same value"] = function(world)
      world.graph.slots[2] = KINDS[1](2)
    end,
    ["a cell that is shared no more"] = function(world)
      debug.upvaluejoin(world.originals[3], 1, KINDS[1](9), 1)
    end,
    ["another environment"] = function(world)
      setfenv(world.originals[2], world.originals[1])
    end,
    ["other bytes"] = function(world)
      world.originals[4][2] = 5
    end,
  } do
    it("that leaves " .. name .. " is told apart", function()
      local function described(changed)
        local one = { label = 1, number = 0 }
        local get, set = KINDS[1](2), KINDS[1](3)
        debug.upvaluejoin(set, 1, get, 1)
        get("set", 1)
        local array, new = ffi.new "int[4]", { label = 1001 }
        local graph = { label = 5, slots = { one, get, new, new, label = 6 } }
        local world = { originals = { one, get, set, array, graph, graph.slots }, graph = graph }
        if changed then change(world) end
        return select(2, pcall(describe_world, world, { n = 1, world.graph }))
      end
      assert.equal(described(false), described(false))
      assert.not_equal(described(false), described(true))
    end)
  end
end)
