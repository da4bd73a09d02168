--- FFI objects cross by their bytes: numbers, and arrays and structs of them; pointers are refused.

local helper = require "spec.helper"
local values = require "spec.values"
local describe, it, _, _, assert = helper.busted()

local ffi = require "ffi"
local msys = require "msys"

local echo = values.echo

describe("cdata", function()
  for _, case in ipairs {
    { 1LL, "1LL" },
    { -9223372036854775807LL - 1, "-9223372036854775808LL" },
    { 18446744073709551615ULL, "18446744073709551615ULL" },
    { ffi.new("complex", 3, 4), "3+4i" },
    { ffi.new("complex float", 1, -2), "1-2i" },
  } do
    it("crosses as the number " .. case[2], function()
      local back = echo(case[1])
      assert.equal("cdata", type(back))
      assert.equal(case[2], tostring(back))
      assert.is_true(ffi.istype(ffi.typeof(case[1]), back))
    end)
  end

  it("crosses as a boxed number, which stays one", function()
    local back = echo(ffi.new("int", 5))
    assert.equal("cdata", type(back))
    assert.equal(5, tonumber(back))
    assert.equal(true, echo(ffi.new("bool", true)) == ffi.new("bool", true))
  end)

  for _, name in ipairs { "int[3]", "double[3]", "uint8_t[3]", "int64_t[3]", "unsigned short[3]", "float[?]" } do
    it("crosses as an array " .. name, function()
      local array = name == "float[?]" and ffi.new(name, 3) or ffi.new(name)
      for place = 0, 2 do
        array[place] = place * 7 + 1
      end
      local back = values.run(function(t)
        return { deep = { t.deep[1] } }
      end, { deep = { array } }).deep[1]
      assert.equal(ffi.sizeof(array), ffi.sizeof(back))
      assert.is_true(ffi.istype(ffi.typeof(array), back))
      for place = 0, 2 do
        assert.equal(place * 7 + 1, tonumber(back[place]))
      end
    end)
  end

  it("crosses as an array of arrays", function()
    local array = ffi.new("int[2][3]", { { 1, 2, 3 }, { 4, 5, 6 } })
    assert.equal(6, echo(array)[1][2])
    local open = ffi.new("int[?][3]", 2)
    open[1][2] = 8
    local back = echo(open)
    assert.equal(24, ffi.sizeof(back))
    assert.equal(8, back[1][2])
  end)

  ffi.cdef [[
    struct msys_spec_point { int x; double y; struct { uint8_t a; int b[3]; } in; union { int u; float f; }; unsigned bits: 3; };
    enum msys_spec_colour { MSYS_SPEC_RED, MSYS_SPEC_BLUE };
    struct msys_spec_node { int a; struct msys_spec_node *next; };
    struct msys_spec_open { int n; double items[?]; };
    struct msys_spec_here { int only; };
    typedef struct { int a; } msys_spec_nameless;
  ]]
  -- As a module or an init would.
  local function declare()
    require("ffi").cdef [[
      struct msys_spec_point { int x; double y; struct { uint8_t a; int b[3]; } in; union { int u; float f; }; unsigned bits: 3; };
      enum msys_spec_colour { MSYS_SPEC_RED, MSYS_SPEC_BLUE };
    ]]
  end

  it("crosses as a struct, an array of structs and an enum that both VMs declare", function()
    local pool = msys.threadpool.create { name = "structs", concurrency = 1, init = declare }
    local point = ffi.new "struct msys_spec_point"
    point.x, point.y, point["in"].b[2], point.f, point.bits = 3, 0.5, 7, 1.5, 5
    local points = ffi.new "struct msys_spec_point[2]"
    points[1] = point
    local ok, one, many, colour = msys.runInPool(pool, function(p, ps, c)
      local new = p.x == 3 and require("ffi").new "struct msys_spec_point"
      new.x, new.y, new["in"].b[2], new.f, new.bits = ps[1].x + 1, p.y, p["in"].b[2], p.f, p.bits
      return new, ps, c
    end, { args = { point, points, ffi.new("enum msys_spec_colour", "MSYS_SPEC_BLUE") } })
    pool:shutdown()
    assert.is_true(ok, tostring(one))
    assert.is_true(ffi.istype("struct msys_spec_point", one))
    assert.same({ 4, 0.5, 7, 1.5, 5 }, { one.x, one.y, one["in"].b[2], one.f, one.bits })
    assert.equal(3, many[1].x)
    assert.is_true(colour == ffi.new("enum msys_spec_colour", "MSYS_SPEC_BLUE"))
  end)

  it("of a type that the other VM lacks fails with the type's name", function()
    local here = ffi.new("struct msys_spec_here", 1)
    local ok, err = msys.runInPool("CPU", function()
      return here
    end)
    assert.is_false(ok)
    assert.truthy(
      tostring(err):find("cdata 'struct msys_spec_here' cannot be made in this VM", 1, true),
      tostring(err)
    )
  end)

  it("named twice in a message is one object there", function()
    local array, number = ffi.new "int[2]", 7LL
    local ok, same, also, value = msys.runInPool("CPU", function()
      local t = { array, array, [number] = number }
      array[1] = 3
      local key, other = next(t, 2)
      return rawequal(t[1], t[2]), rawequal(key, other), t[2][1]
    end)
    assert.is_true(ok, tostring(same))
    assert.same({ true, true, 3 }, { same, also, value })
    local out = echo { array, array, number, number }
    assert.is_true(rawequal(out[1], out[2]))
    assert.is_true(rawequal(out[3], out[4]))
  end)

  local points = ffi.new "struct msys_spec_point[2]"
  for _, case in ipairs {
    { "a pointer", ffi.cast("int *", 0), "int *" },
    { "an array of pointers", ffi.new "char *[2]", "char *[2]" },
    { "a struct with a pointer", ffi.new "struct msys_spec_node", "struct msys_spec_node" },
    { "a struct of open length", ffi.new("struct msys_spec_open", 3), "struct msys_spec_open" },
    { "a reference into an array", points[0], "struct msys_spec_point &" },
    { "a struct without a name", ffi.new "msys_spec_nameless", "struct " },
    { "a ctype", ffi.typeof "int", "int", "ctype" },
  } do
    it("is refused with its path: " .. case[1], function()
      local ok, err = pcall(msys.runInPool, "CPU", function() end, { args = { { x = case[2] } } })
      assert.is_false(ok)
      local text = ("cannot send argument 1.x (%s '%s"):format(case[4] or "cdata", case[3])
      assert.truthy(err:find(text, 1, true), err)
    end)
  end
end)
