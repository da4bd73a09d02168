-- The spec runner's entry, started by scripts/busted.sh under the LuaJIT to be tested. The `busted` command would start
-- as plain Lua and go on in an interpreter that it picks itself; this never leaves the VM, and says which one it is.

-- Both LuaJITs call themselves by the same version; only OpenResty's has this module built in.
local fork = package.preload["table.isarray"] and "OpenResty's fork" or "the original"
print(("%s (%s), JIT %s, %s"):format(jit.version, fork, jit.status() and "on" or "off", os.getenv("LUAJIT")))

require("busted.runner")({ standalone = false })
