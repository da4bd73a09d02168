--- A million jobs with closures, tables, strings, functions and errors: host and workers must be as large afterwards as
--- after ten thousand, within 5 %; the process may have 2 MB more, which are the most that its VMs' allocators have
--- needed at any time. Then jobs whose code no VM has seen, a tenth as many: caches of code are bounded, so that the
--- last nine tenths of those may add no more than 3 MB, the size of a cache.
---
--- `make soak` (minutes), or `luajit bench/soak.lua <jobs>`; fails if they are not.

local ffi = require "ffi"
local msys = require "msys"

ffi.cdef "int malloc_trim(size_t pad);"

local JOBS = tonumber(arg and arg[1]) or 1000000
local FIRST = 10000
local WORKERS, SESSIONS = 2, 50

local pool = msys.threadpool.create { name = "soak", concurrency = WORKERS }

--- Jobs of all kinds, by what they are given; each tells whether it came out right.
local kinds = {
  function(i)
    local ok, sum = msys.runInPool(pool, function()
      return i + 1
    end)
    return ok and sum == i + 1
  end,
  function(i)
    local list = { i, { name = "n" .. i } }
    local ok, back = msys.runInPool(pool, function()
      list[3], list[2].name = i, nil
      return list
    end)
    return ok and back == list and list[3] == i and list[2].name == nil
  end,
  function(i)
    local records = {}
    for place = 1, 20 do
      records[place] = { id = place, name = "name " .. i + place }
    end
    local ok, copy = msys.runInPool(pool, function(given)
      return given, { given }
    end, { args = { records }, in_place = false })
    return ok and copy ~= records and copy[20].name == records[20].name
  end,
  function(i)
    local count = 0
    local function add(n)
      count = count + n
      return function()
        return count
      end
    end
    local ok, get = msys.runInPool(pool, function()
      return add(i)
    end)
    return ok and get() == i and count == i
  end,
  function(i)
    local ok, err, info = msys.runInPool(pool, function()
      error { code = i }
    end)
    return not ok and err.code == i and info.kind == "error"
  end,
  function(i)
    local text = ("%08d"):format(i):rep(i % 100 == 0 and 20000 or 10)
    local ok, back = msys.runInPool(pool, function()
      return text
    end)
    return ok and back == text
  end,
  function(i)
    local right
    msys.runInPool(pool, function()
      return { i }
    end, function(ok, value)
      right = ok and value[1] == i
    end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
    msys.runInPool(pool, function()
      return i
    end, true)
    while right == nil do
      msys.yield()
    end
    return right
  end,
}

local function any(i)
  return kinds[i % #kinds + 1](i)
end

local function with_new_code(i)
  local fn = assert(loadstring(("return function() return %d end"):format(i)))()
  local ok, value = msys.runInPool(pool, fn)
  return ok and value == i
end

local done, wrong = 0, 0
local function run(job, upto)
  for session = 1, SESSIONS do
    msys.spawn(function()
      for i = done + session, upto, SESSIONS do
        if not job(i) then wrong = wrong + 1 end
      end
    end)
  end
  msys.run()
  done = upto
end

--- Kilobytes: of the process, of the host's heap, of the workers' heaps.
local function sizes()
  local heaps, threads = {}, 0
  local barrier = 0
  for worker = 1, WORKERS do
    msys.spawn(function()
      -- One job on each worker: none ends before all have begun.
      local _, kb, thread = msys.runInPool(pool, function()
        collectgarbage()
        collectgarbage()
        _OSTLS.name = _OSTLS.name or tostring {}
        return collectgarbage "count", _OSTLS.name
      end)
      heaps[thread], barrier = kb, barrier + worker
    end)
  end
  msys.run()
  for _, kb in pairs(heaps) do
    threads = math.max(threads, kb)
  end
  -- LuaJIT's table of strings has one of two sizes for as many, by what was there before: always the larger one here.
  do
    local many = {}
    for i = 1, 20000 do
      many[i] = "string " .. i
    end
    assert(#many == 20000)
  end
  for _ = 1, 8 do
    collectgarbage()
  end
  -- What malloc holds without need is nobody's.
  ffi.C.malloc_trim(0)
  local file = assert(io.open "/proc/self/status")
  local rss = tonumber(file:read("*a"):match "VmRSS:%s*(%d+)")
  file:close()
  return {
    process = rss,
    ["the host's heap"] = collectgarbage "count",
    ["the largest worker's heap"] = threads,
  }
end

local grown = false
local function compare(before, after, jobs, most)
  for what, kb in pairs(before) do
    local by = (after[what] / kb - 1) * 100
    print(("%s: %d KB, after %d jobs more %d KB (%+.1f %%)"):format(what, kb, jobs, after[what], by))
    grown = grown or after[what] > kb + most(kb, what)
  end
end

run(any, FIRST)
local before = sizes()
local started = os.time()
run(any, JOBS)
local after = sizes()
compare(before, after, JOBS - FIRST, function(kb, what)
  return kb * 0.05 + (what == "process" and 2048 or 0)
end)
print(("%d jobs in %d s, %d of them wrong"):format(JOBS - FIRST, os.time() - started, wrong))

run(with_new_code, JOBS * 1.01)
before = sizes()
run(with_new_code, JOBS * 1.1)
print "with new code:"
compare(before, sizes(), JOBS * 0.09, function()
  return 3 * 1024
end)
if grown or wrong > 0 then os.exit(1) end
