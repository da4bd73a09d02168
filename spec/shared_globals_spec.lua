--- `luajit -lmsys.globals`: scripts of one Lua universe with many threads, unchanged.

local helper = require "spec.helper"

local describe, it, _, after_each, assert = helper.busted()

local function printed(script)
  local out, err, status = helper.script(script, { flags = "-lmsys.globals" })
  assert.same({ "", 0 }, { err, status })
  return out
end

local function lines(script)
  local list = {}
  for line in printed(script):gmatch "[^\n]+" do
    list[#list + 1] = line
  end
  table.sort(list)
  return list
end

describe("with msys.globals,", function()
  after_each(helper.clean)

  describe("the family's examples", function()
    local guards = {
      ["counter_lock:lock()"] = {
        "counter_lock = thread.mutex()",
        "counter_lock:lock()",
        "counter_lock:unlock()",
      },
      ["msys.lock"] = { "", 'msys.lock "counter"', 'msys.unlock "counter"' },
    }
    for what, guard in pairs(guards) do
      it("count to exactly 100,000 from eight workers, guarded by " .. what, function()
        local out = printed(([[
          counter = 0
          done = 0
          %s
          local pool = msys.threadpool.create { name = "eight", concurrency = 8 }
          function count()
            for _ = 1, 12500 do
              %s
              counter = counter + 1
              %s
            end
          end
          for _ = 1, 8 do
            msys.spawn(function()
              local ok, err = msys.runInPool("eight", function() count() end)
              if not ok then print(err) end
            end)
          end
          msys.run()
          print(counter)
          pool:shutdown()
        ]]):format(unpack(guard)))
        assert.equal("100000\n", out)
      end)
    end

    it("find the _OSTLS marker on the thread that has it, and nothing on others", function()
      assert.equal(
        "in cpu\tnil\nhere\t42\ncpu again\ttrue\n",
        printed [[
        _OSTLS.async_t_marker = 42;
        msys.runInPool('CPU', function ()
          print("in cpu", _OSTLS.async_t_marker);
        end);
        print("here", _OSTLS.async_t_marker);
        msys.runInPool('CPU', function ()
          _OSTLS.async_t_marker = 43;
          msys.runInPool('CPU', function() end);
          print("cpu again", _OSTLS.async_t_marker == 43);
        end);
      ]]
      )
    end)

    it("have a _TLS for each session, a job's own included", function()
      assert.same(
        { "a\t1", "b\t2", "job\tnil", "main\t0" },
        lines [[
        _TLS.value = 0
        for value, name in ipairs { "a", "b" } do
          msys.spawn(function()
            _TLS.value = value
            msys.sleep(0.001)
            print(name, _TLS.value)
          end)
        end
        msys.run()
        msys.runInPool("CPU", function() print("job", _TLS.value) end)
        print("main", _TLS.value)
      ]]
      )
    end)

    it("share state between a module's functions, as its callouts do through self", function()
      assert.equal(
        "5\t5\ttrue\n",
        printed [[
        state = { count = 0 }
        mod = {}
        function mod:validate_data(msg)
          local context = self.context
          context.count = context.count + #msg
          return context.count
        end
        mod.context = state
        local ok, count = msys.runInPool("IO", function()
          return mod:validate_data("hello")
        end)
        print(count, state.count, ok)
      ]]
      )
    end)

    it("call global functions that the script has defined, closures with what they captured", function()
      assert.equal(
        "true\tdoing heavy lifting\n",
        printed [[
        local what = "heavy lifting"
        do_heavy_lifting = function()
          return "doing " .. what
        end
        print(msys.runInPool('IO', function() return do_heavy_lifting() end))
      ]]
      )
    end)
  end)

  it("a global that a job assigns is seen by all, of whatever kind", function()
    assert.equal(
      "1\tone\tfalse\t3\tfunction\tnil\n",
      printed [[
      gone = "here"
      msys.runInPool("CPU", function()
        number, text, no, list, gone = 1, "one", false, { 1, 2, 3 }, nil
        function fn() return number end
      end)
      print(number, text, no, #list, type(fn), gone)
    ]]
    )
  end)

  it("a table is one for all VMs, whatever it is nested in", function()
    assert.equal(
      "job\t2\tdeep\ntable\ttrue\n",
      printed [[
      config = { list = { 1 }, inner = { inner = {} } }
      msys.runInPool("CPU", function()
        config.by = "job"
        config.list[2] = 2
        config.inner.inner.value = "deep"
      end)
      print(config.by, #config.list, config.inner.inner.value)
      print(type(config), config.list == config.list)
    ]]
    )
  end)

  it("a function is the same each time that it is read", function()
    assert.equal(
      "true\ttrue\n",
      printed [[
      function fn() end
      print(fn == fn, select(2, msys.runInPool("CPU", function() return fn == fn end)))
    ]]
    )
  end)

  it("what cannot be sent is seen by its own VM, and is nil in others", function()
    assert.equal(
      "true\ttrue\tnil\n5\n",
      printed [[
      file = io.stdout
      print(file == io.stdout, msys.runInPool("CPU", function() return file end))
      msys.runInPool("CPU", function() file = 5 end)
      print(file)
    ]]
    )
  end)

  it("reading a global that nobody has assigned gives nil", function()
    assert.equal(
      "nil\ttrue\tnil\n",
      printed [[
      print(nothing, msys.runInPool("CPU", function() return nothing end))
    ]]
    )
  end)

  describe("the library takes shared tables as it takes others:", function()
    local cases = {
      ["pairs"] = { "t = { a = 1, b = 2 } local n = 0 for k, v in pairs(t) do n = n + v end return n", "3" },
      ["ipairs"] = { "t = { 5, 6, 7 } local n = 0 for i, v in ipairs(t) do n = n + i * v end return n", "38" },
      ["next"] = { "t = { a = 1 } local k, v = next(t) return k, v, next(t, k)", "a 1 nil" },
      ["next of an empty one"] = { "t = {} return next(t)", "nil" },
      ["#"] = { "t = { 1, 2, 3 } t[#t + 1] = 4 return #t", "4" },
      ["table.insert at the end"] = {
        "t = {} table.insert(t, 'a') table.insert(t, 'b') return #t, t[1], t[2]",
        "2 a b",
      },
      ["table.insert in the middle"] = {
        "t = { 1, 3 } table.insert(t, 2, 2) return #t, t[1], t[2], t[3]",
        "3 1 2 3",
      },
      ["table.remove"] = { "t = { 1, 2, 3 } local last = table.remove(t) return last, #t", "3 2" },
      ["table.remove in the middle"] = {
        "t = { 1, 2, 3 } local it = table.remove(t, 1) return it, #t, t[1], t[2]",
        "1 2 2 3",
      },
      ["table.concat"] = { "t = { 'a', 'b' } return table.concat(t, ',')", "a,b" },
      ["table.sort"] = { "t = { 3, 1, 2 } table.sort(t) return t[1], t[2], t[3]", "1 2 3" },
      ["table.sort with an order"] = {
        "t = { 3, 1, 2 } table.sort(t, function(a, b) return a > b end) return t[1], t[3]",
        "3 1",
      },
      ["table.maxn"] = { "t = { 1, [7] = true } return table.maxn(t)", "7" },
      ["unpack"] = { "t = { 1, 2, 3 } return unpack(t)", "1 2 3" },
      ["unpack of a part"] = { "t = { 1, 2, 3 } return unpack(t, 2, 3)", "2 3" },
      ["type"] = { "t = {} return type(t), type(io.stdout)", "table userdata" },
      ["rawget and rawset"] = {
        "t = { a = 1 } rawset(t, 'b', 2) return rawget(t, 'a'), rawget(t, 'b')",
        "1 2",
      },
      ["rawget of _G"] = { "x = 1 return rawget(_G, 'x'), rawget(_G, 'y')", "1 nil" },
      ["pairs of _G"] = {
        [[x1, x2 = 1, 2
          local n = 0
          for k in pairs(_G) do
            if k == 'x1' or k == 'x2' or k == 'print' then n = n + 1 end
          end
          return n]],
        "3",
      },
      ["_G as a table"] = { "_G.x = 1 local name = 'x' return _G[name], x", "1 1" },
      ["setmetatable with a class"] = {
        "Account = {} Account.__index = Account "
          .. "function Account.new(balance) return setmetatable({ balance = balance }, Account) end "
          .. "function Account:deposit(n) self.balance = self.balance + n return self.balance end "
          .. "return Account.new(1):deposit(2)",
        "3",
      },
      ["arg"] = { "return type(arg), #arg, arg[1]", "table 0 nil" },
    }
    for what, case in pairs(cases) do
      it(what, function()
        local out = printed(([[
          local function run() %s end
          local function show(...)
            local texts = { n = select("#", ...) }
            for place = 1, select("#", ...) do texts[place] = tostring((select(place, ...))) end
            return table.concat(texts, " ", 1, texts.n)
          end
          print(show(run()))
          print(select(2, msys.runInPool("CPU", function() return show(run()) end)))
        ]]):format(case[1]))
        assert.equal(("%s\n%s\n"):format(case[2], case[2]), out)
      end)
    end
  end)

  it("table.insert from many VMs loses nothing", function()
    assert.equal(
      "4000\n",
      printed [[
      list = {}
      local pool = msys.threadpool.create { name = "four", concurrency = 4 }
      for _ = 1, 4 do
        msys.spawn(function()
          msys.runInPool("four", function() for n = 1, 1000 do table.insert(list, n) end end)
        end)
      end
      msys.run()
      print(#list)
      pool:shutdown()
    ]]
    )
  end)

  it("modules keep their functions, and fill _G as they did", function()
    local folder =
      helper.folder { ["lib.lua"] = "lib_loaded = true return { twice = function(x) return 2 * x end }" }
    local out = printed(([[
      package.path = %q .. package.path
      local lib = require "lib"
      print(lib_loaded, lib.twice(4), msys.runInPool("CPU", function() return lib.twice(5), lib_loaded end))
    ]]):format(folder .. "/?.lua;"))
    assert.equal("true\t8\ttrue\t10\ttrue\n", out)
  end)
end)

describe("requiring msys.globals", function()
  after_each(helper.clean)

  it("shares what the script had assigned before", function()
    local out, err, status = helper.script [[
      before = 7
      require "msys.globals"
      print(before, msys.runInPool("CPU", function() before = before + 1 end), before)
    ]]
    assert.same({ "7\ttrue\t8\n", "", 0 }, { out, err, status })
  end)

  it("is refused when a worker has begun with globals of its own", function()
    local out, err, status = helper.script [[
      local msys = require "msys"
      msys.runInPool("CPU", function() end)
      print(pcall(require, "msys.globals"))
    ]]
    assert.same({ "", 0 }, { err, status })
    assert.is_truthy(
      out:find("msys.globals: required too late: a worker runs already, with globals of its own", 1, true)
    )
  end)
end)
