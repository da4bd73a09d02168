-- For `luarocks make`. A rockspec's own version must be that of its file name, so the crate's version stands here;
-- a test compares it with Cargo.toml, and the list of modules below with lua/.
local crate_version = "0.1.0"

rockspec_format = "3.0"
package = "msys"
version = "dev-1"

source = {
  -- Required, and read only by a LuaRocks that fetches; `luarocks make` builds the directory it is in.
  url = "git+file://.",
}

description = {
  summary = "Threads for LuaJIT that feel like a function call",
  detailed = [[
msys ]] .. crate_version .. [[ hands closures to named pools of worker threads, each with a LuaJIT VM of its own, and
gives their results back to the coroutine that asked.]],
  license = "MIT",
  labels = { "threads", "luajit", "concurrency" },
}

supported_platforms = { "linux" }

-- LuaJIT is a Lua 5.1 to LuaRocks, and brings its own entry for it.
dependencies = { "lua == 5.1" }

-- A command, because `type = "make"` packs an empty binary rock.
build = {
  type = "command",
  build_command = "scripts/build.sh",
  install = {
    lib = { ["msys.native"] = "build/lib/msys/native.so" },
    lua = {
      ["msys"] = "lua/msys/init.lua",
      ["thread"] = "lua/thread.lua",
      ["msys.base"] = "lua/msys/base.lua",
      ["msys.boot"] = "lua/msys/boot.lua",
      ["msys.cancel"] = "lua/msys/cancel.lua",
      ["msys.cdata"] = "lua/msys/cdata.lua",
      ["msys.channel"] = "lua/msys/channel.lua",
      ["msys.core"] = "lua/msys/core.lua",
      ["msys.environment"] = "lua/msys/environment.lua",
      ["msys.future"] = "lua/msys/future.lua",
      ["msys.globals"] = "lua/msys/globals.lua",
      ["msys.handles"] = "lua/msys/handles.lua",
      ["msys.loader"] = "lua/msys/loader.lua",
      ["msys.locks"] = "lua/msys/locks.lua",
      ["msys.names"] = "lua/msys/names.lua",
      ["msys.refusal"] = "lua/msys/refusal.lua",
      ["msys.scheduler"] = "lua/msys/scheduler.lua",
      ["msys.shared"] = "lua/msys/shared.lua",
      ["msys.submit"] = "lua/msys/submit.lua",
      ["msys.threadpool"] = "lua/msys/threadpool.lua",
      ["msys.worker"] = "lua/msys/worker.lua",
      ["msys.workers"] = "lua/msys/workers.lua",
    },
  },
}
