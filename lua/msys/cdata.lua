--- FFI objects without pointers in them, as a type's name and bytes, and back: numbers, enums, structs, unions, arrays.
---
--- `src/encode/values.rs` and `src/decode.rs` call `pack`, `unpack` and `fill`, which they find in the registry: LuaJIT
--- has no C API for cdata. What LuaJIT knows of a type comes from `ffi.typeinfo`: `info` has the kind in its upper four
--- bits, and the number of the type that it is made of in its lower sixteen.

local native = require "msys.native"

-- This may run at exit: see msys.names.
jit.off(true, true)

local cdata = {
  --- Handles by cdata that stands for them (`msys.shared`).
  ---@type table<any, any>
  handles = {},
}

-- Kinds, as LuaJIT numbers them.
local NUMBER, STRUCT, ARRAY, ENUM, ATTRIBUTE, FIELD, BITFIELD = 0, 1, 3, 5, 8, 9, 10

---@type any
local ffi

--- Whether a type holds nothing but numbers; `open` allows an array whose length each object has of its own.
local function is_plain(id, open)
  local info = ffi.typeinfo(id)
  local kind, of = bit.rshift(info.info, 28), bit.band(info.info, 0xffff)
  if kind == NUMBER or kind == ENUM then
    return true
  elseif kind == ARRAY then
    return (info.size ~= nil or open) and is_plain(of, false)
  elseif kind == ATTRIBUTE then
    return is_plain(of, open)
  elseif kind ~= STRUCT or not info.size then
    return false
  end
  local member = info.sib
  while member do
    local of_member = ffi.typeinfo(member)
    local what, its_type = bit.rshift(of_member.info, 28), bit.band(of_member.info, 0xffff)
    if what ~= BITFIELD and not ((what == FIELD or what == ATTRIBUTE) and is_plain(its_type, false)) then
      return false
    end
    member = of_member.sib
  end
  return true
end

--- By a type's number: its name, and whether its objects are boxed numbers; false for types that cannot cross.
---@type table<integer, { name: string, scalar: boolean } | false>
local known = {}

---@return { name: string, scalar: boolean } | false
local function learn(ctype, id)
  local name = tostring(ctype):match "^ctype<(.*)>$"
  -- A struct without a name has a number in its place, which `typeof` does not take.
  local ok, named = pcall(ffi.typeof, name)
  ---@type { name: string, scalar: boolean } | false
  local found = false
  if ok and tonumber(named) == id and is_plain(id, true) then
    local kind = bit.rshift(ffi.typeinfo(id).info, 28)
    -- What is made of many numbers can be addressed as it is; LuaJIT counts complex numbers among arrays.
    ---@cast name string
    found = { name = name, scalar = kind ~= STRUCT and not name:find("[", 1, true) }
  end
  known[id] = found
  return found
end

--- The type's name and the bytes of a cdata object, or nothing where it cannot cross.
---@param value any
---@return any name  as `ffi.typeof` takes it; or the handle that it stands for
---@return string? bytes
function cdata.pack(value)
  ffi = ffi or require "ffi"
  local handle = cdata.handles[value]
  if handle then return handle end
  local ctype = ffi.typeof(value)
  if not ffi.istype(ctype, value) then return nil end
  local id = tonumber(ctype) --[[@as integer]]
  local of = known[id]
  if of == nil then of = learn(ctype, id) end
  if not of then return nil end
  if of.scalar then
    -- A ctype is a cdata object too, which `istype` takes for a number.
    if tostring(value):find "^ctype<" then return nil end
    -- By name: busted remembers what `ffi.typeof "$[1]"` gave, whatever the parameter.
    local box = ffi.new(of.name .. "[1]")
    box[0] = value
    value = box
  end
  return of.name, ffi.string(value, ffi.sizeof(value))
end

local function mismatch(name, why)
  error(("msys: cdata '%s' cannot be made in this VM: %s"):format(name, why), 0)
end

--- The cdata object that `pack` was given.
---@param name string
---@param bytes string
---@return any
function cdata.unpack(name, bytes)
  ffi = ffi or require "ffi"
  local ok, ctype = pcall(ffi.typeof, name)
  if not ok then mismatch(name, ctype) end
  local id = tonumber(ctype) --[[@as integer]]
  local of = known[id]
  if of == nil then of = learn(ctype, id) end
  if not of then mismatch(name, "the type has pointers or no size here") end
  ---@cast of { name: string, scalar: boolean }
  local value, target
  if of.scalar then
    target = ffi.new(name .. "[1]")
  elseif name:find("[?]", 1, true) then
    -- What follows the open bound is the size of one item.
    local item = ffi.sizeof(ffi.typeof((name:gsub("%[%?%]", "[1]"))))
    value = ffi.new(ctype, #bytes / item)
    target = value
  else
    value = ffi.new(ctype)
    target = value
  end
  if ffi.sizeof(target) ~= #bytes then
    mismatch(name, ("it has %d bytes here, and %d where it comes from"):format(ffi.sizeof(target), #bytes))
  end
  ffi.copy(target, bytes, #bytes)
  if of.scalar then value = ffi.new(ctype, target[0]) end
  return value
end

--- Copies bytes that `pack` gave into an object of that type.
---@param value any
---@param bytes string
function cdata.fill(value, bytes)
  ffi = ffi or require "ffi"
  ffi.copy(value, bytes, math.min(#bytes, ffi.sizeof(value) --[[@as integer]]))
end

native.set_cdata(cdata.pack, cdata.unpack, cdata.fill)

return cdata
