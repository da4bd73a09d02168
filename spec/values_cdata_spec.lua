--- FFI numbers and arrays cross by their bytes; pointers and structs are refused.

local helper = require "spec.helper"
local describe, it, _, _, assert = helper.busted()

local ffi = require "ffi"
local msys = require "msys"

local function echo(...)
  local function inner(...)
    return ...
  end
  local args = { n = select("#", ...), ... }
  return select(2, assert(msys.runInPool("CPU", inner, { args = args })))
end

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
      local back = echo { deep = { array } }.deep[1]
      assert.equal(ffi.sizeof(array), ffi.sizeof(back))
      assert.is_true(ffi.istype(ffi.typeof(array), back))
      for place = 0, 2 do
        assert.equal(place * 7 + 1, tonumber(back[place]))
      end
      back[0] = 99
      assert.equal(1, tonumber(array[0]))
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

  ffi.cdef "typedef struct { int a; char *p; } msys_spec_struct;"
  for _, case in ipairs {
    { "a pointer", ffi.cast("int *", 0), "int *" },
    { "an array of pointers", ffi.new "char *[2]", "char *[2]" },
    { "a struct", ffi.new "msys_spec_struct" },
    { "a ctype", ffi.typeof "int", "int" },
  } do
    it("is refused with its path: " .. case[1], function()
      local ok, err = pcall(msys.runInPool, "CPU", print and function() end, { args = { { x = case[2] } } })
      assert.is_false(ok)
      local kind = case[3] and ("cdata '%s'"):format(case[3]) or "cdata 'struct "
      assert.truthy(err:find("cannot send argument 1.x (" .. kind, 1, true), err)
    end)
  end
end)
