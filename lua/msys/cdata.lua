--- FFI numbers and arrays of numbers, as a type's name and bytes, and back.
---
--- `src/encode.rs` and `src/decode.rs` call `pack` and `unpack`, which they find in the registry: LuaJIT has no C API for
--- cdata. Pointers, references and structs are refused: nothing tells which members of a struct are pointers.

local native = require "msys.native"

-- This may run at exit: see msys.names.
jit.off(true, true)

local cdata = {}

local NUMBERS = {}
for name in
  ("bool char short int long float double complex signed unsigned int8_t uint8_t int16_t uint16_t int32_t uint32_t int64_t uint64_t"):gmatch "%S+"
do
  NUMBERS[name] = true
end

--- The numbers' type of an array's or a number's type, if the type is one.
local function element_of(name)
  local element = name:gsub("%s*%[[%d?]+%]", "")
  for word in element:gmatch "%S+" do
    if not NUMBERS[word] then return nil end
  end
  return element
end

--- The type's name and the bytes of a cdata object, or nothing where it cannot cross.
---@param value any
---@return string? name  as `ffi.typeof` takes it
---@return string? bytes
function cdata.pack(value)
  local ffi = require "ffi"
  -- A ctype is a cdata object too, but no value of its type.
  if tostring(value):find "^ctype<" then return nil end
  local ctype = ffi.typeof(value)
  local name = tostring(ctype):match "^ctype<(.*)>$"
  if not name or not element_of(name) then return nil end
  if name:find("[", 1, true) then return name, ffi.string(value, ffi.sizeof(value)) end
  -- By name: busted remembers what `ffi.typeof "$[1]"` gave, whatever the parameter.
  local box = ffi.new(name .. "[1]")
  box[0] = value
  return name, ffi.string(box, ffi.sizeof(box))
end

--- The cdata object that `pack` was given.
---@param name string
---@param bytes string
---@return any
function cdata.unpack(name, bytes)
  local ffi = require "ffi"
  local element = element_of(name)
  if not element then error("msys: malformed message", 0) end
  local ctype = ffi.typeof(name)
  local value, target
  if name:find("[?]", 1, true) then
    -- What follows the open bound is the size of one item.
    local item = ffi.sizeof(ffi.typeof((name:gsub("%[%?%]", "[1]"))))
    value = ffi.new(ctype, #bytes / item)
    target = value
  elseif name:find("[", 1, true) then
    value = ffi.new(ctype)
    target = value
  else
    target = ffi.new(name .. "[1]")
  end
  if ffi.sizeof(target) ~= #bytes then error("msys: malformed message", 0) end
  ffi.copy(target, bytes, #bytes)
  if value == nil then value = ffi.new(ctype, target[0]) end
  return value
end

native.set_cdata(cdata.pack, cdata.unpack)

return cdata
