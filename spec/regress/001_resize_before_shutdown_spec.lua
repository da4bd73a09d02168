-- Cause: a worker asks whether it is superfluous before it takes a job, and in a pool that had just been resized that
-- question also answered yes when the pool was shut down. So a worker left the queue to a new one, which did the same:
-- threads without end.
-- Cure: superfluous is only who is one too many.

local helper = require "spec.helper"

describe("a pool that is resized and then shut down while jobs wait", function()
  after_each(helper.clean)

  for _, size in ipairs { 1, 3 } do
    it(("finishes them, with %d workers"):format(size), function()
      local out, err, status = helper.script(
        [[
        local msys = require "msys"
        local pool = msys.threadpool.create { name = "resized", concurrency = 1 }
        local path, size = arg[1], tonumber(arg[2])
        local done = 0
        msys.runInPool(pool, function()
          repeat
            local file = io.open(path)
          until not (file and file:close())
        end, true)
        repeat msys.sleep(0.001) until pool:stat().job_num_running == 1
        for _ = 1, 5 do
          msys.runInPool(pool, function() end, function(ok) done = done + (ok and 1 or 0) end,
            msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
        end
        msys.spawn(function()
          pool:resize(size)
          pool:shutdown()
          print(done .. " done, " .. (pool:stat().threads_started <= size and "no thread too many" or "too many threads"))
        end)
        msys.poll()
        os.remove(path)
        msys.run()
      ]],
        { args = { helper.file(), tostring(size) } }
      )
      assert.same({ "5 done, no thread too many\n", "", 0 }, { out, err, status })
    end)
  end
end)
