-- Dumps for the fuzzer of the dump's reader to begin with: luajit scripts/splice-corpus.lua <directory> <source>...

local directory = arg[1]
for place = 2, #arg do
  local chunk = assert(loadfile(arg[place]))
  for strip = 0, 1 do
    local file = assert(io.open(("%s/%d-%d"):format(directory, place, strip), "wb"))
    file:write(string.dump(chunk, strip == 1))
    file:close()
  end
end
for place, source in ipairs {
  "return function() end",
  "local a, b return function() a, b = b, a return g, _G.x end",
  "local u return function(a) u = a u = 's' u = 1 u = true g = g a = u return _G.f end",
} do
  local file = assert(io.open(("%s/template-%d"):format(directory, place), "wb"))
  file:write(string.dump(assert(loadstring(source))))
  file:close()
end
