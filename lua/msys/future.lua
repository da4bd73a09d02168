--- `msys.submit` and what comes of it: futures, several of them, and lists mapped by many jobs.

local handles = require "msys.handles"
local native = require "msys.native"
local scheduler = require "msys.scheduler"
local submit = require "msys.submit"
local threadpool = require "msys.threadpool"

local getmetatable, select, type, unpack = getmetatable, select, type, unpack
-- Not `table.new`, which loading would add to the host's library.
local new_table = native.new_table

local future = {}

---@class msys.Future
local Future = {}

local function check(self, method)
  if getmetatable(self) ~= "msys.future" then
    error(("msys.future:%s: called on %s (call it with a colon)"):format(method, type(self)), 3)
  end
end

--- Outcomes that have been asked for in this VM: each is decoded once, so that its tables are the same each time.
---@type table<msys.Future, table>
local outcomes = setmetatable({}, { __mode = "k" })

local function keep(fut, ...)
  local count = select("#", ...)
  if count == 0 then return nil end
  local outcome = { n = count, ... }
  outcomes[fut] = outcome
  return outcome
end

--- The outcome, packed, or nil if the job has not ended.
local function outcome_of(fut)
  return outcomes[fut] or keep(fut, native.future_outcome(fut))
end

--- Waits until one of the futures may have ended; false if the time was over.
---@async
local function await_any(list, count, deadline)
  local ticket = scheduler.wait_ticket()
  if not native.future_wait(ticket, list, count, scheduler.slot()) then return true end
  return not handles.await_once(ticket, deadline and math.max(0, deadline - scheduler.now()))
end

--- Waits for the job's end: gives what `msys.runInPool` gives. Any number of times, in any VM.
---@async
---@param timeout? number  seconds; if the time is over, gives `nil, "timeout"`, and the job goes on
---@return boolean? ok
---@return any ...
function Future:wait(timeout)
  check(self, "wait")
  timeout = handles.check_timeout(timeout, "msys.future:wait")
  local deadline = timeout and scheduler.now() + timeout
  local outcome, more = outcome_of(self), timeout ~= 0
  while not outcome do
    if not more then return nil, "timeout" end
    more = await_any({ self }, 1, deadline)
    outcome = outcome_of(self)
  end
  return unpack(outcome, 1, outcome.n)
end

--- Ends the job: at once, if it has not begun; one that runs is stopped, and its outcome is there within milliseconds.
---@param reason? string
---@return boolean cancelled  false if it had ended, or was being stopped
function Future:cancel(reason)
  check(self, "cancel")
  if reason ~= nil and type(reason) ~= "string" then
    error("msys.future:cancel: reason must be a string, got " .. type(reason), 2)
  end
  return native.future_cancel(self, reason or "")
end

--- How far the job has come.
---@return "queued"|"running"|"done"|"failed"
function Future:status()
  check(self, "status")
  return (native.future_status(self))
end

handles.define("msys.future", Future, function(fut)
  return ("msys.future: %s (%s)"):format(handles.address(fut), (native.future_status(fut)))
end)

--- Futures of failures that nobody may have asked for: at the exit, those are reported.
---@type table<msys.Future, true>
local made = setmetatable({}, { __mode = "k" })

--- Reports the failures that nobody has asked for; for the end of a host.
function future.report_left()
  for fut in pairs(made) do
    local status, observed = native.future_status(fut)
    if status == "failed" and not observed then
      local outcome = outcome_of(fut)
      if outcome then submit.report(outcome[2], outcome[3]) end
    end
  end
end

-- It runs at exit: see msys.names.
jit.off(future.report_left)

local function made_or_raise(text, fut)
  if text then error("msys.submit: " .. text, 2) end
  made[fut] = true
  return fut
end

--- Sends a job, and gives a future of its outcome. The function gets copies of the arguments, and works on its own
--- copies of what it has captured.
---@async
---@param pool string|integer|msys.Pool
---@param fn function
---@param ... any  arguments
---@return msys.Future
function future.submit(pool, fn, ...)
  local id = threadpool.ids[pool] or threadpool.resolve(pool)
  if not id then error("msys.submit: " .. threadpool.unknown(pool), 2) end
  if type(fn) ~= "function" then error("msys.submit: fn must be a Lua function, got " .. type(fn), 2) end
  return made_or_raise(submit.keep(pool, id, fn, nil, ...))
end

local function check_list(list, method)
  if type(list) ~= "table" then
    error(("%s: futures must be a list, got %s"):format(method, type(list)), 3)
  end
  for place = 1, #list do
    if getmetatable(list[place]) ~= "msys.future" then
      error(("%s: item %d must be a future, got %s"):format(method, place, type(list[place])), 3)
    end
  end
end

--- Waits for all of the futures: gives true and a list of their first results, or, as soon as one has failed, false,
--- its error, its info, and its place in the list.
---@async
---@param futures msys.Future[]
---@return boolean ok
---@return any ...
function future.all(futures)
  check_list(futures, "msys.all")
  local results, left, count = { n = #futures }, {}, #futures
  ---@cast left integer[]
  for place = 1, count do
    left[place] = place
  end
  while count > 0 do
    local waiting = {}
    for place = 1, count do
      local index = left[place] --[[@as integer]]
      local outcome = outcome_of(futures[index])
      if not outcome then
        waiting[#waiting + 1] = index
      elseif not outcome[1] then
        return false, outcome[2], outcome[3], index
      else
        results[index] = outcome[2]
      end
    end
    left, count = waiting, #waiting
    if count > 0 then
      local list = {}
      for place = 1, count do
        list[place] = futures[
          left[place] --[[@as integer]]
        ]
      end
      await_any(list, count)
    end
  end
  return true, results
end

--- Waits until one of the futures has results: gives true, its place in the list, and those. If all fail: false, the
--- error and info of the last, and its place.
---@async
---@param futures msys.Future[]
---@return boolean ok
---@return any ...
function future.any(futures)
  check_list(futures, "msys.any")
  local count = #futures
  if count == 0 then error("msys.any: the list is empty: none of its futures will ever end", 2) end
  local failed = {}
  while true do
    local list = {}
    for place = 1, count do
      if not failed[place] then
        local outcome = outcome_of(futures[place])
        if not outcome then
          list[#list + 1] = futures[place]
        elseif outcome[1] then
          return true, place, unpack(outcome, 2, outcome.n)
        else
          failed[place], failed.last = true, place
        end
      end
    end
    if #list == 0 then
      local outcome = outcome_of(futures[failed.last]) --[[@as table]]
      return false, outcome[2], outcome[3], failed.last
    end
    await_any(list, #list)
  end
end

--- What the job of a chunk does; gives whether all went well, the results or the error, how far it came, and how long
--- it took.
local function run_chunk(fn, items, first, count)
  local clock = require("msys.scheduler").now
  local started = clock()
  local results = require("msys.native").new_table(count, 0)
  local place = 0
  local ok, err = pcall(function()
    while place < count do
      place = place + 1
      results[place] = fn(items[place], first + place - 1)
    end
  end)
  return ok, ok and results or err, first + place - 1, clock() - started
end

--- How long a chunk is to take, in seconds: long enough that sending it costs little beside.
local CHUNK_TIME = 0.001
--- How many chunks each worker has waiting or running, at most.
local AHEAD = 3

--- A refusal of a chunk, with the caller's words for what is in it.
local function in_words(text, first)
  return (
    text
      :gsub("argument 2%[(%d+)%]", function(place)
        return ("item %d"):format(first - 1 + place)
      end)
      :gsub("argument 1", "fn")
  )
end

---@class msys.MapOptions
---@field chunk? integer  items for each job; found out by measuring, by default
---@field progress? fun(done: integer, count: integer)  called as chunks come back

--- The options, checked; raises at the caller's caller's line.
---@param options? msys.MapOptions
---@return integer? chunk
---@return function? progress
local function check_map_options(options)
  if options == nil then return nil end
  if type(options) ~= "table" then error("msys.map: options must be a table, got " .. type(options), 3) end
  for key in
    pairs(options --[[@as table<any, any>]])
  do
    if key ~= "chunk" and key ~= "progress" then
      error(("msys.map: unknown option '%s', expected chunk or progress"):format(tostring(key)), 3)
    end
  end
  local chunk, progress = options.chunk, options.progress
  if chunk ~= nil and (type(chunk) ~= "number" or chunk < 1 or chunk % 1 ~= 0) then
    error("msys.map: chunk must be a whole number from 1, got " .. tostring(chunk), 3)
  end
  if progress ~= nil and type(progress) ~= "function" then
    error("msys.map: progress must be a function, got " .. type(progress), 3)
  end
  return chunk, progress
end

--- Maps a list by many jobs: gives the results of `fn(item, index)` in the order of the list, as `results.n` of them.
--- Raises the first error, by its index in the list, with that index. Chunks are sized so that each takes some
--- milliseconds.
---@async
---@param pool string|integer|msys.Pool
---@param list table
---@param fn fun(item: any, index: integer): any
---@param options? msys.MapOptions
---@return table results
function future.map(pool, list, fn, options)
  local id = threadpool.ids[pool] or threadpool.resolve(pool)
  if not id then error("msys.map: " .. threadpool.unknown(pool), 2) end
  if type(list) ~= "table" then error("msys.map: list must be a table, got " .. type(list), 2) end
  if type(fn) ~= "function" then error("msys.map: fn must be a Lua function, got " .. type(fn), 2) end
  local chunk, progress = check_map_options(options)
  local count = list.n == nil and #list or list.n
  if type(count) ~= "number" or count < 0 or count % 1 ~= 0 then
    error("msys.map: list.n must be a whole number from 0, got " .. tostring(count), 2)
  end
  local results = new_table(count --[[@as integer]], 1)
  results.n = count
  ---@type integer, integer, integer
  local next_item, done, in_flight = 1, 0, 0
  local size, failed = chunk or 1, nil
  local most = AHEAD * math.max(1, (native.stat(id) or { concurrency = 1 }).concurrency)
  ---@type msys.Future[], integer[], integer[]
  local futures, starts, sizes = {}, {}, {}

  ---@async
  local function send()
    local first = next_item
    local length = math.min(size, count - first + 1) --[[@as integer]]
    -- The last chunks are small, so that all workers end together.
    if not chunk then
      length = math.max(1, math.min(length, math.ceil((count - first + 1) / (most / AHEAD) / 2)))
    end
    local items = new_table(length --[[@as integer]], 0)
    for place = 1, length do
      items[place] = list[first + place - 1]
    end
    local text, fut, is_full = submit.keep(pool, id, run_chunk, nil, fn, items, first, length)
    if is_full and in_flight > 0 then
      -- By its own doing, perhaps: there is room when a chunk has come back.
      most = in_flight
      return nil
    elseif text then
      return in_words(text, first)
    end
    next_item, in_flight = first + length, in_flight + 1
    futures[in_flight], starts[in_flight], sizes[in_flight] = fut, first, length
  end

  --- Takes in the outcome of the chunk at `place`.
  local function take(place, outcome)
    local first, length =
      starts[place], --[[@as integer]]
      sizes[place] --[[@as integer]]
    futures[place], starts[place], sizes[place] = futures[in_flight], starts[in_flight], sizes[in_flight]
    futures[in_flight] = nil
    in_flight = in_flight - 1
    if not outcome[1] then
      local starts_at = first --[[@as integer]]
      local err, index = outcome[2], starts_at
      if type(err) == "string" then
        -- The result of one item cannot cross.
        local place_in_chunk = tonumber(err:match "result 2%[(%d+)%]") --[[@as integer?]]
        if place_in_chunk then index = starts_at + place_in_chunk - 1 end
        err = err:gsub("^msys%.runInPool: ", "msys.map: "):gsub("result 2%[%d+%]", "the result")
      end
      if not failed or index < failed.index then failed = { index = index, err = err } end
      return
    end
    local ok, values, index, seconds = outcome[2], outcome[3], outcome[4], outcome[5]
    if not ok then
      if not failed or index < failed.index then failed = { index = index, err = values } end
      return
    end
    local behind = first --[[@as integer]] - 1
    for item = 1, length do
      results[behind + item] = values[item]
    end
    done = done + length
    if not chunk then
      local wanted = seconds > 0 and math.floor(length * CHUNK_TIME / seconds) or 16 * length
      size = math.max(1, math.min(wanted, 16 * size, math.ceil(count / 2)))
    end
    if progress then progress(done, count) end
  end

  while true do
    while in_flight < most and next_item <= count and not failed do
      local text = send()
      if text then error("msys.map: " .. text, 2) end
    end
    if in_flight == 0 then break end
    local place = 1
    while place <= in_flight do
      local outcome = outcome_of(futures[place])
      if outcome then
        take(place, outcome)
      else
        place = place + 1
      end
    end
    if in_flight > 0 and not (in_flight < most and next_item <= count and not failed) then
      await_any(futures, in_flight)
    end
  end
  if failed then
    local err = failed.err
    if type(err) == "string" then err = ("%s (item %d)"):format(err, failed.index) end
    error(err, 0)
  end
  return results
end

return future
