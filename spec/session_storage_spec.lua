-- `_TLS`, a session's own table, and `_OSTLS`, a VM's.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"

local runInPool = msys.runInPool

describe("_TLS", function()
  after_each(helper.clean)

  it("is each session's own, and stays it over waits", function()
    local seen = {}
    for i = 1, 20 do
      msys.spawn(function()
        assert(next(msys._TLS) == nil)
        msys._TLS.i = i
        for _ = 1, 3 do
          runInPool("CPU", function() end)
          msys.yield()
        end
        seen[i] = msys._TLS.i
      end)
    end
    msys.run()
    for i = 1, 20 do
      assert.equal(i, seen[i])
    end
  end)

  it("outside of sessions is another", function()
    msys._TLS.spec = "main"
    msys.run(function()
      assert.is_nil(msys._TLS.spec)
      msys._TLS.spec = "session"
    end)
    assert.equal("main", msys._TLS.spec)
    msys._TLS.spec = nil
  end)

  it("is empty when a job starts, also on a worker that others have used", function()
    helper.with_pool({}, function(pool)
      for i = 1, 50 do
        assert.same({ true, true, i }, {
          runInPool(pool, function()
            local empty = next(_TLS) == nil
            _TLS.mark = i
            msys.sleep(0)
            return empty and _TLS == msys._TLS, _TLS.mark
          end),
        })
      end
    end)
  end)

  it("is each job's own when jobs interleave on one worker", function()
    helper.with_pool({}, function(pool)
      local right = 0
      for i = 1, 50 do
        msys.spawn(function()
          local _, mark = runInPool(pool, function()
            _TLS.mark = i
            for _ = 1, 3 do
              msys.yield()
              msys.runInPool("IO", function() end)
            end
            return _TLS.mark
          end)
          right = right + (mark == i and 1 or 0)
        end)
      end
      msys.run()
      assert.equal(50, right)
    end)
  end)
end)

describe("_OSTLS", function()
  after_each(helper.clean)

  it("is kept from job to job on a worker", function()
    helper.with_pool({}, function(pool)
      local count
      for _ = 1, 10 do
        _, count = runInPool(pool, function()
          _OSTLS.count = (_OSTLS.count or 0) + 1
          return _OSTLS == msys._OSTLS and _OSTLS.count
        end)
      end
      assert.equal(10, count)
    end)
  end)

  it("is each VM's own, where a job names it as a field of msys, too", function()
    msys._OSTLS.mark = "the host's"
    local home = msys._OSTLS
    helper.with_pool({}, function(pool)
      assert.same({ true, nil, true }, {
        runInPool(pool, function()
          return msys._OSTLS.mark, home == _OSTLS
        end),
      })
    end)
    assert.equal("the host's", msys._OSTLS.mark)
    msys._OSTLS.mark = nil
  end)
end)
