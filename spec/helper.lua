--- What the specs share: bounded waits, scripts run as child processes, and a check that a test left nothing behind.
---
--- `.busted` loads this before any spec, so `msys` is loaded once for all of them: busted forgets, after each file, the
--- modules that the file has loaded, and specs are to test one msys in one VM.

local msys = require "msys"
local native = require "msys.native"
local scheduler = require "msys.scheduler"

local helper = {}
package.loaded["spec.helper"] = helper

--- What a spec file calls first: gives busted's functions, and puts the file into the global environment.
---
--- busted gives files and tests an environment of its own, from which all that it has loaded can be reached. A
--- function's environment crosses with it, so that each job of a test would take all other tests along.
function helper.busted()
  local busted = getfenv(2)
  setfenv(2, _G)
  -- Tail calls: busted takes a test's line from its caller.
  local function describe(name, fn)
    return busted.describe(name, function()
      setfenv(fn, _G)()
    end)
  end
  local function it(name, fn)
    return busted.it(name, function()
      setfenv(fn, _G)()
    end)
  end
  return describe, it, busted.before_each, busted.after_each, busted.assert
end

--- How often to do what takes long: with `MSYS_SPEC_SHORT`, where the specs run once more, a fifth of the times.
---@param count integer
---@return integer
function helper.times(count)
  return os.getenv "MSYS_SPEC_SHORT" and math.ceil(count / 5) or count
end

--- Park and Miller's generator: the same in every LuaJIT, and nobody else's.
---@param seed integer
---@return fun(most: integer): integer
function helper.generator(seed)
  local state = seed % 2147483646 + 1
  --- An integer from 1 to `most`.
  local function random(most)
    state = state * 16807 % 2147483647
    return state % most + 1
  end
  -- The first numbers of near seeds are near too.
  for _ = 1, 5 do
    random(1)
  end
  return random
end

--- Collects all garbage; also what compiled code of specs has for a constant, such as a closure with all its upvalues.
function helper.collect()
  jit.flush()
  collectgarbage()
  collectgarbage()
end

--- The longest that a spec waits for anything, in seconds.
helper.LIMIT = 10

--- Waits until `fn` gives a true value, and gives that; fails at the limit. Other sessions run meanwhile.
---@generic T
---@param fn fun(): T
---@param what? string  what is waited for, for the failure
---@return T
function helper.eventually(fn, what)
  local polls, deadline = 0, os.time() + helper.LIMIT + 1
  while true do
    local value = fn()
    if value then
      return value
    elseif os.time() >= deadline then
      error(("%s: not within %d s (%d polls)"):format(what or "eventually", helper.LIMIT, polls), 2)
    end
    polls = polls + 1
    msys.sleep(0.001)
  end
end

local function quoted(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end
helper.quoted = quoted

local function contents(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

--- Paths that the next `helper.clean` removes.
local scratch = {}

--- Makes a file with this text, which `helper.clean` removes.
---@param text? string
---@return string path
function helper.file(text)
  local path = os.tmpname()
  scratch[#scratch + 1] = path
  local file = assert(io.open(path, "wb"))
  file:write(text or "")
  file:close()
  return path
end

--- A folder of the same kind, with these files in it.
---@param files table<string, string>  texts by name
---@return string path
function helper.folder(files)
  local path = os.tmpname()
  scratch[#scratch + 1] = path
  assert(os.remove(path))
  assert(os.execute("mkdir " .. quoted(path)) == 0)
  for name, text in pairs(files) do
    local file = assert(io.open(path .. "/" .. name, "wb"))
    file:write(text)
    file:close()
  end
  return path
end

--- Runs a script in a LuaJIT of its own, the one under test, and waits for its end.
---@param script string  Lua code, or the path of a file that ends in `.lua`
---@param options? { args?: string[], flags?: string, env?: table<string, string>, stdin?: string }
---@return string stdout
---@return string stderr
---@return integer status  of the shell: 128 + n after signal n, 124 or 137 when it did not end by twice the limit
function helper.script(script, options)
  options = options or {}
  local path = script:match "^[^\n]+%.lua$" or helper.file(script)
  local out, err = helper.file(), helper.file()
  local words = {
    -- A bare `busted` has its paths from .busted, which its child processes do not read.
    "LUA_PATH=" .. quoted(package.path),
    "LUA_CPATH=" .. quoted(package.cpath),
  }
  for name, value in pairs(options.env or {}) do
    words[#words + 1] = name .. "=" .. quoted(value)
  end
  words[#words + 1] = ("timeout -k 1 %d"):format(2 * helper.LIMIT)
  words[#words + 1] = quoted(os.getenv "LUAJIT" or "luajit")
  words[#words + 1] = os.getenv "LUAJIT_FLAGS" or ""
  words[#words + 1] = options.flags or ""
  words[#words + 1] = quoted(path)
  for _, arg in ipairs(options.args or {}) do
    words[#words + 1] = quoted(arg)
  end
  local command = ("%s <%s >%s 2>%s"):format(
    table.concat(words, " "),
    options.stdin and quoted(helper.file(options.stdin)) or "/dev/null",
    out,
    err
  )
  -- LuaJIT's pipe:close() gives no status. The shell's own word about a signal is not the script's.
  local pipe = assert(io.popen(("exec 2>/dev/null; (exec env %s); echo $?"):format(command)))
  local status = tonumber((pipe:read "*a"))
  pipe:close()
  return contents(out), contents(err), assert(status)
end

--- How many threads this process has.
---@return integer
function helper.threads()
  local pipe = assert(io.popen(("ls /proc/%d/task | wc -l"):format(helper.pid())))
  local count = tonumber((pipe:read "*a"))
  pipe:close()
  return assert(count)
end

---@return integer
function helper.pid()
  local stat = contents "/proc/self/stat"
  return assert(tonumber(stat:match "^%d+"))
end

local pools = 0

--- Runs `fn(pool)`, and shuts the pool down.
local function with(pool, fn)
  local function finish(ok, ...)
    pool:shutdown { drop = not ok }
    if not ok then error((...), 0) end
    return ...
  end
  return finish(xpcall(fn, function(err)
    -- busted tells failures from errors by tables, which stay as they are.
    return type(err) == "string" and debug.traceback(err, 2) or err
  end, pool))
end

--- Runs `fn` with a pool of its own, which is shut down afterwards, also when `fn` fails.
---@param options? table  for `msys.threadpool.create`; a name is found where none is given
---@param fn fun(pool: msys.Pool): ...
---@return any ...
function helper.with_pool(options, fn)
  local all = {}
  for key, value in pairs(options or {}) do
    all[key] = value
  end
  pools = pools + 1
  all.name = all.name or ("spec-%d"):format(pools)
  all.concurrency = all.concurrency or 1
  return with(msys.threadpool.create(all), fn)
end

--- Runs `fn` with a pool of isolated workers, which is shut down afterwards, also when `fn` fails.
---@param count integer
---@param options? table  for `msys.workers.newPool`
---@param fn fun(pool: msys.IsolatedPool): ...
---@return any ...
function helper.with_workers(count, options, fn)
  return with(assert(msys.workers.newPool(count, options)), fn)
end

--- Runs `fn(a, b)` with two pools like `options`.
---@param options? table
---@param fn fun(a: msys.Pool, b: msys.Pool)
function helper.with_two(options, fn)
  helper.with_pool(options, function(a)
    helper.with_pool(options, function(b)
      fn(a, b)
    end)
  end)
end

--- Runs `fn` in the pool with these arguments, gives what it gives, and raises where that failed.
---@param pool any  as `msys.runInPool` takes it
---@param fn fun(...): ...
---@return any ...
function helper.must(pool, fn, ...)
  local function checked(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return checked(msys.runInPool(pool, fn, { args = { n = select("#", ...), ... } }))
end

--- Runs `fn` in that many sessions, and waits for all.
---@param count integer
---@param fn fun(i: integer)
function helper.in_sessions(count, fn)
  local ended = 0
  for i = 1, count do
    msys.spawn(function()
      fn(i)
      ended = ended + 1
    end)
  end
  helper.eventually(function()
    return ended == count
  end, "the end of all sessions")
end

--- What was reported outside of any `helper.catching`: a failure that its test is to catch, or that comes too late.
local uncaught = {}
if not native.is_worker then
  msys.onError(function(err, info)
    uncaught[#uncaught + 1] = info.traceback or tostring(err)
  end)
end

--- Runs `fn` with an `msys.onError` that keeps what it gets, and sets the old one again.
---@param fn fun(errors: { err: any, info: table }[])  the list grows as failures are reported
---@param count? integer  how many reports to wait for after `fn`; some may be under way when what they are of is over
---@return { err: any, info: table }[]
function helper.catching(fn, count)
  -- What earlier tests have left is theirs.
  collectgarbage()
  msys.poll()
  local errors = {}
  local old = msys.onError(function(err, info)
    errors[#errors + 1] = { err = err, info = info }
  end)
  local ok, err = pcall(fn, errors)
  if ok and count then
    ok, err = pcall(helper.eventually, function()
      return #errors >= count
    end, "the reports")
  end
  msys.onError(old)
  if not ok then error(err, 0) end
  return errors
end

--- The number of sessions and of completions that the host's scheduler has not finished.
local function unfinished()
  local counts = {}
  for place = 1, 60 do
    local name, value = debug.getupvalue(scheduler.run, place)
    if not name then break end
    counts[name] = value
  end
  return assert(counts.sessions), native.completions(0)
end

local function in_flight(pool)
  local stat = msys.threadpool.stat(pool)
  return stat.job_num_queued + stat.job_num_running
end

--- What earlier tests have leaked, which is not to fail the others too.
local leaked = { pools = 2, sessions = 0, completions = 0 }

--- Fails a test that leaves a job, a pool, a session or a completion behind. Every spec has `after_each(helper.clean)`.
function helper.clean()
  for place = 1, #scratch do
    os.execute("rm -rf " .. quoted(scratch[place]))
    scratch[place] = nil
  end
  local ok = pcall(helper.eventually, function()
    return in_flight "CPU" + in_flight "IO" == 0
  end)
  -- What a job has left is reported before it counts as done.
  msys.poll()
  local reports = table.concat(uncaught, "\n")
  uncaught = {}
  if not ok then error(("leaked jobs: CPU has %d, IO %d"):format(in_flight "CPU", in_flight "IO"), 2) end
  if reports ~= "" then error("reported, and not caught: " .. reports, 2) end
  local now = { pools = msys.threadpool.count() }
  now.sessions, now.completions = unfinished()
  local before = leaked
  leaked = now
  for what, count in pairs(now) do
    if count > before[what] then error(("leaked %d %s"):format(count - before[what], what), 2) end
  end
end

return helper
