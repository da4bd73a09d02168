-- Cause: LuaJIT, closing a state, runs finalizers with the compiler off and never leaves a loop over `next` that was
-- compiled before. The exit runs completions in a finalizer; one that sent new code made msys scan the modules there.
-- Cure: msys's own Lua is not compiled.

local helper = require "spec.helper"

describe("a script whose modules were scanned so often that the scan could be compiled", function()
  after_each(helper.clean)

  -- After more scans the compiled code has grown, and had a way out.
  for _, scans in ipairs { 2, 3, 4 } do
    it(("ends after %d scans, though its last completion sends new code"):format(scans), function()
      local out, err, status = helper.script(
        [[
        local msys = require "msys"
        for i = 1, tonumber(arg[1]) do
          -- New code each time, for which the modules are looked through.
          assert(msys.runInPool("CPU", loadstring("return " .. i)))
        end
        msys.runInPool("CPU", function() end, function()
          for i = 1, 20 do
            assert(msys.runInPool("CPU", loadstring("return " .. 1000 + i)))
          end
          print "done"
        end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
      ]],
        { args = { tostring(scans) } }
      )
      assert.same({ "done\n", "", 0 }, { out, err, status })
    end)
  end
end)
