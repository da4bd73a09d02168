-- Random programs of sessions on the host and eight workers, with all that `thread` has: what they count is exact, and
-- nothing is left at the end.
--
-- A failure prints the seed of its program: `MSYS_SPEC_SEED=<seed> scripts/busted.sh spec/sync_stress_spec.lua` runs
-- that one again (threads take turns as they like, so perhaps more than once). `make stress` runs programs of a
-- thousand sessions for a minute: `MSYS_SPEC_SESSIONS=<n>`, `MSYS_SPEC_SECONDS=<n>`.

local helper = require "spec.helper"
local describe, it, _, after_each, assert = helper.busted()
local msys = require "msys"
local native = require "msys.native"
local thread = require "thread"

local LIMIT = helper.LIMIT
local must, in_sessions = helper.must, helper.in_sessions

local FIRST = tonumber(os.getenv "MSYS_SPEC_SEED")
local SECONDS = tonumber(os.getenv "MSYS_SPEC_SECONDS")
local SESSIONS = tonumber(os.getenv "MSYS_SPEC_SESSIONS") or 16
-- The more sessions, the fewer steps of each, so that a program takes no minute.
local PROGRAMS, STEPS, LOCKS = 20, SESSIONS > 100 and 10 or 60, 4

--- What all sessions of a program share.
local function make_world(pools)
  local world = {
    pools = pools,
    mutexes = {},
    rwlock = thread.rwlock(),
    -- Counted under the lock of the same place, by reading and setting.
    guarded = {},
    written = thread.counter(),
    -- What is to be in them at the end.
    expected = thread.shared {},
    sent = thread.counter(),
    received = thread.counter(),
    channel = thread.channel(3),
    meeting = thread.channel(0),
    counter = thread.counter(),
    shared = thread.shared { n = 0, nested = { n = 0 } },
    buffer = thread.buffer("double", 1),
    names = { "stress 1", "stress 2" },
  }
  for place = 1, LOCKS do
    world.mutexes[place] = thread.mutex(place % 2 == 0 and thread.MUTEX_RECURSIVE or nil)
    world.guarded[place] = thread.counter()
  end
  world.condition = thread.condition(world.mutexes[1])
  return world
end

--- Runs the program of a seed, in whatever VM this is.
local function run_program(seed, steps, depth, world)
  local state = seed
  local function random(count)
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return math.floor(state / 65536) % count
  end
  local function expect(key, count)
    thread.update(world.expected, key, function(before)
      return (before or 0) + count
    end)
  end
  local function pause()
    local how = random(8)
    if how == 0 then
      msys.sleep(0)
    elseif how == 1 then
      msys.yield()
    end
  end
  local function count_under(place)
    local counter = world.guarded[place]
    local before = counter:get()
    pause()
    counter:set(before + 1)
    expect("guarded " .. place, 1)
  end
  --- Locks some mutexes in order, counts, and unlocks them in any order.
  local function lock_some()
    local taken = {}
    for place = 1, LOCKS do
      if random(2) == 0 then
        local mutex, how = world.mutexes[place], random(4)
        local got
        if how == 0 then
          got = mutex:trylock()
        elseif how == 1 then
          got = mutex:lock(0.0002)
        elseif how == 2 then
          got = mutex:lock(LIMIT)
          if not got then error "a lock that is not to be had" end
        else
          got = mutex:lock()
        end
        if got then
          table.insert(taken, random(#taken + 1) + 1, place)
          count_under(place)
          if place % 2 == 0 and random(2) == 0 then
            mutex:lock()
            pause()
            mutex:unlock()
          end
        end
      end
    end
    for _, place in ipairs(taken) do
      world.mutexes[place]:unlock()
    end
  end
  local actions = {
    lock_some,
    lock_some,
    function()
      local write = random(2) == 0
      if write then
        world.rwlock:wrlock()
        world.buffer[0] = world.buffer[0] + 1
        pause()
        world.written:set(world.written:get() + 1)
        expect("written", 1)
      else
        world.rwlock:rdlock()
        local before = world.written:get()
        pause()
        if world.written:get() ~= before or world.buffer[0] ~= before then
          error "a writer beside a reader"
        end
      end
      world.rwlock:unlock()
    end,
    function()
      local name = world.names[random(2) + 1]
      msys.lock(name)
      thread.update(world.shared.nested, "n", function(n)
        return n + 1
      end)
      expect("nested", 1)
      msys.unlock(name)
    end,
    function()
      world.mutexes[1]:lock()
      if random(2) == 0 then
        world.condition:signal()
      elseif random(2) == 0 then
        world.condition:broadcast()
      else
        world.condition:wait(0.0002)
        count_under(1)
      end
      world.mutexes[1]:unlock()
    end,
    function()
      local value = random(1000)
      if world.channel:send(random(2) == 0 and value or { value }, 0.001) then world.sent:add(value) end
    end,
    function()
      local got, value = world.channel:receive(0.0005)
      if got then world.received:add(type(value) == "table" and value[1] or value) end
    end,
    function()
      local value = random(1000)
      if random(2) == 0 then
        if world.meeting:send(value, 0.0005) then world.sent:add(value) end
      else
        local got, other = world.meeting:receive(0.0005)
        if got then world.received:add(other) end
      end
    end,
    function()
      local value = random(100) - 50
      if random(2) == 0 then
        world.counter:add(value)
      else
        repeat
          local now = world.counter:get()
        until world.counter:cas(now, now + value)
      end
      expect("counter", value)
    end,
    function()
      local value = random(10)
      thread.update(world.shared, "n", function(n)
        pause()
        return n + value
      end)
      expect("n", value)
    end,
    function()
      if depth == 0 then return pause() end
      local pool = world.pools[random(2) + 1]
      local ok, err = msys.runInPool(pool, run_program, {
        args = { random(2 ^ 15), 4, depth - 1, world },
        in_place = false,
      })
      if not ok then error(err, 0) end
    end,
    function()
      local ok, err = msys.runInPool(world.pools[random(2) + 1], function()
        world.mutexes[LOCKS]:lock(LIMIT)
        world.mutexes[LOCKS]:unlock()
        error({ "as it should" }, 0)
      end, { in_place = false })
      if ok or err[1] ~= "as it should" then error "an error that does not come" end
    end,
    pause,
  }
  for _ = 1, steps do
    actions[random(#actions) + 1]()
  end
end

--- How many objects the process has, garbage apart.
local function alive()
  helper.collect()
  return native.alive()
end

local function check(seed)
  local before = alive()
  local errors = helper.catching(function()
    helper.with_two({ concurrency = 4 }, function(a, b)
      local world = make_world { a, b }
      in_sessions(SESSIONS, function(i)
        local where = world.pools[i % 3]
        if where then
          must(where, run_program, seed * SESSIONS + i, STEPS, 2, world)
        else
          run_program(seed * SESSIONS + i, STEPS, 2, world)
        end
      end)
      for _, channel in ipairs { world.channel, world.meeting } do
        channel:close()
        while true do
          local got, value = channel:receive(0)
          if not got then break end
          world.received:add(type(value) == "table" and value[1] or value)
        end
      end
      local expected = world.expected
      for place = 1, LOCKS do
        assert.equal(expected["guarded " .. place] or 0, world.guarded[place]:get())
      end
      assert.equal(expected.written or 0, world.written:get())
      assert.equal(expected.written or 0, world.buffer[0])
      assert.equal(expected.counter or 0, world.counter:get())
      assert.equal(expected.n or 0, world.shared.n)
      assert.equal(expected.nested or 0, world.shared.nested.n)
      assert.equal(world.sent:get(), world.received:get())
      for place = 1, LOCKS do
        assert.matches("%(free%)$", tostring(world.mutexes[place]))
      end
      assert.matches("%(free%)$", tostring(world.rwlock))
      for _, name in ipairs(world.names) do
        assert.is_true(must(a, function()
          return msys.lock(name, 0) and msys.unlock(name)
        end))
      end
      assert.equal(0, world.condition:broadcast())
    end)
  end)
  assert.same({}, errors)
  -- The workers' VMs are closed now or soon, and ours keeps nothing.
  local now
  local ok, err = pcall(helper.eventually, function()
    now = alive()
    return now <= before
  end)
  if not ok then error(("%d objects are left of %d: %s"):format(now, before, err)) end
  -- Fewer are no proof: what other specs have left in workers was collected meanwhile.
  if now < before then return check(seed) end
end

describe("sessions of the host and eight workers that lock, send, count and nest at random", function()
  after_each(helper.clean)

  it("count exactly, and leave nothing", function()
    local first, started = FIRST or os.time() % 100000 * 1000, os.time()
    local seed, done = first, 0
    while
      done == 0
      or not FIRST and (SECONDS and os.time() - started < SECONDS or not SECONDS and done < PROGRAMS)
    do
      local ok, err = pcall(check, seed)
      seed, done = seed + 1, done + 1
      if not ok then
        local text = type(err) == "table" and err.message or err
        error(("MSYS_SPEC_SEED=%d: %s"):format(seed - 1, tostring(text)), 0)
      end
    end
    if SECONDS then print(("%d programs of %d sessions, from seed %d on"):format(done, SESSIONS, first)) end
  end)
end)
