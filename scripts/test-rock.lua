-- The program that scripts/test-rock.sh runs from an installed rock: test-rock.lua <tree> <module>...
local tree = arg[1]

local function from_tree(module, path)
  local file =
    assert(package.searchpath(module, path), "the rock lacks " .. module .. ": list it in the rockspec")
  assert(file:sub(1, #tree) == tree, module .. " comes from " .. file .. ", not from the rock")
end

from_tree("msys.native", package.cpath)
for i = 2, #arg do
  from_tree(arg[i], package.path)
end

local msys = require("msys")
local six = 6
local ok, answer = msys.runInPool("CPU", function()
  return six * 7
end)
assert(ok and answer == 42, answer)
print(("test-rock: %d modules in %s, and a job ran"):format(#arg, tree))
