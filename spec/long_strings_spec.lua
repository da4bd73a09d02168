-- Strings of 64 KiB and more, which stay with their sender until they are read: they must be the same wherever they
-- stand, and stay what they are whatever becomes of the sender's own.

local gate = require "spec.gate"
local helper = require "spec.helper"
local msys = require "msys"

local describe, it, _, after_each, assert = helper.busted()

local SIZES = { 65535, 65536, 65537, 200000, 2 ^ 20, 5 * 2 ^ 20 }

--- A string of its own for each seed.
local function long(size, seed)
  local text = ("%08x\0\255"):format(seed * 2654435761 % 2 ^ 32)
  return text:rep(math.ceil(size / #text)):sub(1, size)
end
setfenv(long, _G)

describe("a long string", function()
  after_each(helper.clean)

  for _, size in ipairs(SIZES) do
    for _, in_place in ipairs { true, false } do
      it(
        ("of %d bytes is the same there and back, %s"):format(size, in_place and "in place" or "as a copy"),
        function()
          local text, other, list = long(size, 1), long(size, 2), { long(size, 3) }
          local function is_right(arg, tbl, key_of)
            return text == long(size, 1)
              and arg == text
              and tbl[1] == text
              and tbl.deep[1][2] == other
              and other == long(size, 2)
              and list[1] == long(size, 3)
              and tbl[4] == list
              and key_of[text] == other
          end
          local tbl = { text, 2, 3, list, deep = { { text, other } } }
          local options = { args = { text, tbl, { [text] = other } }, in_place = in_place }
          local ok, right, a, b, c, new = msys.runInPool("CPU", function(...)
            local arg, its = ...
            return is_right(...), arg, its, its.deep[1], long(size, 4)
          end, options)
          assert(ok, right)
          assert.is_true(right)
          assert.is_true(
            a == text and b[1] == text and c[1] == text and c[2] == other and new == long(size, 4)
          )
          assert.equal(in_place, rawequal(b, tbl))
        end
      )
    end
  end

  it("may be one of many", function()
    local many = {}
    for i = 1, 100 do
      many[i] = long(65536 + i, i)
      many["key" .. i] = many[i]
    end
    local ok, count, back = msys.runInPool("CPU", function()
      local right = 0
      for i = 1, 100 do
        if many[i] == long(65536 + i, i) and many["key" .. i] == many[i] then right = right + 1 end
      end
      return right, { many[7], many[100], many[1] }
    end)
    assert.same({ true, 100 }, { ok, count })
    assert.is_true(back[1] == many[7] and back[2] == many[100] and back[3] == many[1])
  end)

  it("that a job changes, adds and removes is changed in the caller's table, and no other", function()
    local text, new = long(100000, 1), long(100000, 9)
    local tbl = { text, text, text, a = text, b = text }
    gate.holding(nil, function(pool, hold, open)
      local done
      msys.spawn(function()
        done = {
          msys.runInPool(pool, function()
            hold()
            tbl[2], tbl.a, tbl.c = new, nil, text
          end),
        }
      end)
      helper.eventually(function()
        return pool:stat().job_num_running == 1
      end)
      -- What the job leaves alone is the caller's to change.
      tbl[1], tbl.b = "mine", "mine too"
      open()
      helper.eventually(function()
        return done
      end)
      assert.is_true(done[1], tostring(done[2]))
      assert.is_true(tbl[2] == new and tbl.a == nil and tbl.c == text and tbl[3] == text)
      assert.same({ "mine", "mine too" }, { tbl[1], tbl.b })
    end)
  end)

  it("reaches a job that begins when the caller has long dropped it", function()
    gate.holding(nil, function(pool, hold, open)
      msys.runInPool(pool, hold, true)
      local box = { long(2 ^ 20, 5) }
      local results, ended = {}, 0
      for i = 1, 5 do
        local function job()
          return box[1] == long(2 ^ 20, 5) and #box[1] + i
        end
        msys.spawn(function()
          results[i] = select(2, msys.runInPool(pool, job))
          ended = ended + 1
        end)
        msys.runInPool(pool, job, function(_, value)
          results[i + 5] = value
          ended = ended + 1
        end, msys.core.ECTP_COMPLETE_CALLBACK_SCHED)
      end
      helper.eventually(function()
        return pool:stat().job_num_queued == 10
      end)
      box[1] = nil
      collectgarbage()
      collectgarbage()
      -- In the place of what would have been freed.
      local others = {}
      for i = 1, 20 do
        others[i] = long(2 ^ 20, 100 + i)
      end
      open()
      helper.eventually(function()
        return ended == 10
      end)
      local expected = {}
      for i = 1, 5 do
        expected[i], expected[i + 5] = 2 ^ 20 + i, 2 ^ 20 + i
      end
      assert.same(expected, results)
      assert.equal(20, #others)
    end)
  end)

  it("is kept by nobody when the job has ended", function()
    helper.with_pool(nil, function(pool)
      local function rounds(count)
        for i = 1, count do
          local text = long(2 ^ 20, i)
          assert(#select(
            2,
            msys.runInPool(pool, function()
              return text .. "!"
            end)
          ) == 2 ^ 20 + 1)
        end
        collectgarbage()
        collectgarbage()
        local _, there = msys.runInPool(pool, function()
          collectgarbage()
          collectgarbage()
          return collectgarbage "count"
        end)
        return collectgarbage "count", there
      end
      local here, there = rounds(5)
      local here_later, there_later = rounds(50)
      assert.is_true(here_later < here + 1024, ("%d KB, then %d"):format(here, here_later))
      assert.is_true(there_later < there + 1024, ("%d KB, then %d there"):format(there, there_later))
    end)
  end)

  it("goes through jobs of jobs", function()
    local text = long(300000, 3)
    local ok, back, deep = msys.runInPool("CPU", function(arg)
      local _, inner, same = msys.runInPool("CPU", function(...)
        return ..., arg == text
      end, { args = { text } })
      return inner, same and inner == text
    end, { args = { text } })
    assert.is_true(ok and deep and back == text, tostring(back))
  end)

  it("counts as its size where a message is limited", function()
    helper.with_pool({ max_message = 100000 }, function(pool)
      local fits, large = long(99000, 1), long(100001, 1)
      assert.is_true((msys.runInPool(pool, function()
        return #fits
      end)))
      assert.error_matches(
        function()
          msys.runInPool(pool, function()
            return #large
          end)
        end,
        "the message has 100%d%d%d bytes, pool '[^']+' takes at most 100000 %(max_message%); "
          .. "the largest part is upvalue 'large'"
      )
    end)
  end)

  it("waits in a queue for a script that ends: the exit is none the worse", function()
    for _ = 1, 5 do
      local out, err, status = helper.script [[
        local msys = require "msys"
        local pool = msys.threadpool.create { name = "one", concurrency = 1 }
        for i = 1, 20 do
          local text = ("%08x"):format(i):rep(100000)
          msys.spawn(function()
            msys.runInPool(pool, function() return #text + #text:upper() end)
          end)
        end
        msys.yield()
        print "end"
      ]]
      assert.same({ "end\n", "", 0 }, { out, err, status })
    end
  end)
end)
