std = "luajit"
-- For comments; StyLua keeps code at 110.
max_line_length = 120
max_string_line_length = false
exclude_files = { "build", "lua_modules", "target" }

-- The globals that msys.globals sets, and that always stand in a worker's VM.
globals = { "_TLS", "_OSTLS" }
read_globals = { "msys", "thread" }

-- `table.unpack` is there in a LuaJIT with the extensions of Lua 5.2.
files["lua/msys/globals.lua"].globals = { "msys", "thread", "table.unpack" }

-- Sessions wait through these in a worker.
files["lua/msys/worker.lua"].globals = { "coroutine.resume", "coroutine.status", "coroutine.wrap" }

files["spec"].std = "+busted"

-- Declarations without bodies: parameters are there for their names.
files["types"].unused_args = false

-- It changes the libraries of the VM that it runs in, before any script.
files["src/isolate/prelude.lua"].std = "none"
files["src/isolate/prelude.lua"].globals = {
  "_G", "assert", "collectgarbage", "debug", "io", "ipairs", "jit", "loadstring", "math", "newproxy", "next", "package",
  "pairs", "setfenv", "table", "tostring", "type", "unpack",
}
