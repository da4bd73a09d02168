-- Many stops of mixed runaways in one process: none is missed, nothing grows, and jobs between them are right.
--
-- `MSYS_SPEC_CANCELS` says how many; `make stress-cancel` takes ten thousand.

local helper = require "spec.helper"
local msys = require "msys"
local native = require "msys.native"
local runaways = require "spec.runaways"

local describe, it, _, after_each, assert = helper.busted()

local TOTAL = tonumber(os.getenv "MSYS_SPEC_CANCELS") or 400
local SESSIONS = 6

--- The resident memory of this process, in MiB.
local function memory()
  local file = assert(io.open "/proc/self/statm")
  local pages = tonumber(file:read("*a"):match "%d+ (%d+)")
  file:close()
  return pages * 4096 / 2 ^ 20
end

describe("many stops", function()
  after_each(helper.clean)

  it(("(%d, by timeouts, futures and tokens) are all made, and leave nothing"):format(TOTAL), function()
    local seed = tonumber(os.getenv "MSYS_SPEC_SEED") or os.time()
    math.randomseed(seed)
    local shapes = {}
    for _, runaway in ipairs(runaways) do
      -- Those in C are stopped by giving a thread up, and these need a pool of that name.
      if not runaway.in_c and not runaway.source:find "'CPU'" and not runaway.source:find "ffi" then
        shapes[#shapes + 1] = { runaway.name, assert(loadstring(runaway.source)) }
      end
    end
    helper.with_pool({ concurrency = 4, sessions = 4 }, function(pool)
      local done, first_third = 0, nil
      local began, used = native.clock(), os.clock()
      local function stop_one()
        local shape = shapes[math.random(#shapes)]
        local after = 0.001 + math.random() * 0.004
        local how, started = math.random(3), native.clock()
        local ok, err, info
        if how == 1 then
          ok, err, info = msys.runInPool(pool, shape[2], { timeout = after })
        elseif how == 2 then
          local future = msys.submit(pool, shape[2])
          msys.sleep(after)
          future:cancel()
          ok, err, info = future:wait()
        else
          local token = msys.canceller()
          msys.spawn(function()
            msys.sleep(after)
            token:cancel()
          end)
          ok, err, info = msys.runInPool(pool, shape[2], { cancel = token })
        end
        local expected = how == 1 and "timeout" or "cancelled"
        assert.same({ seed, shape[1], false, expected }, { seed, shape[1], ok, info and info.kind or err })
        assert.is_true(native.clock() - started < after + 2, shape[1])
      end
      for _ = 1, SESSIONS do
        msys.spawn(function()
          while done < TOTAL do
            done = done + 1
            if done == math.floor(TOTAL / 3) then first_third = memory() end
            stop_one()
            if done % 3 == 0 then
              assert.same({ true, 50005000 }, {
                msys.runInPool(pool, function()
                  local sum = 0
                  for i = 1, 1e4 do
                    sum = sum + i
                  end
                  return sum
                end),
              })
            end
          end
        end)
      end
      msys.run()
      local last = memory()
      -- Runaways use all the cores. Where other processes have their part of these, heaps are filled for long before
      -- that is stopped, and LuaJIT may work on one for so long that its worker is taken for stuck until it comes back.
      local share = (os.clock() - used) / (native.clock() - began)
      local has_cores = share > 0.75 * math.min(4, msys.threadpool.stat("CPU").concurrency)
      local stat, most = pool:stat(), has_cores and 0 or math.ceil(TOTAL / 100)
      assert.same({ seed, 0 }, { seed, stat.killed })
      assert.is_true(stat.abandoned <= most, stat.abandoned)
      assert.is_true(stat.threads_started <= 4 + most, stat.threads_started)
      -- Heaps that runaways have filled are kept by the system's allocator.
      assert.is_true(last < first_third + 64, ("grew from %.0f to %.0f MiB"):format(first_third, last))
    end)
  end)
end)
