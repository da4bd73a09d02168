--- What the benchmarks share: a clock, measurements in turn, tables of results.

local ffi = require "ffi"

ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } bench_timespec;
  int clock_gettime(int clock, bench_timespec *time);
]]

local MONOTONIC = 1
local spec = ffi.new "bench_timespec"

local measure = {}

--- Seconds of a clock that only goes forward.
---@return number
function measure.now()
  ffi.C.clock_gettime(MONOTONIC, spec)
  return tonumber(spec.seconds) + tonumber(spec.nanoseconds) * 1e-9
end
local now = measure.now

--- How long `fn(count)` takes for one of `count`, in seconds.
---@param count integer
---@param fn fun(count: integer)
---@return number
function measure.each(count, fn)
  local started = now()
  fn(count)
  return (now() - started) / count
end

---@param list number[]
---@return number median
---@return number least
---@return number most
function measure.median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)], list[1], list[#list]
end

--- Takes the measurements in turn, so that all see the same machine, and prints a table of them.
---@param rounds integer
---@param rows { [1]: string, [2]: fun(): number }[]  what it is, and what measures it
---@return table<string, number> medians  by what it is
function measure.table(rounds, rows)
  local figures, medians = {}, {}
  for _ = 1, rounds do
    for place, row in ipairs(rows) do
      collectgarbage()
      figures[place] = figures[place] or {}
      table.insert(figures[place], row[2]())
    end
  end
  print(("| what | median of %d rounds | from, to |"):format(rounds))
  print "|---|---|---|"
  for place, row in ipairs(rows) do
    local middle, least, most = measure.median(figures[place])
    print(("| %s | %.4g | %.4g to %.4g |"):format(row[1], middle, least, most))
    medians[row[1]] = middle
  end
  return medians
end

--- Prints how many times as fast the first is as the second; both are rates, or with `times` both are times.
---@param medians table<string, number>
---@param what string
---@param one string
---@param other string
---@param times? boolean
function measure.ratio(medians, what, one, other, times)
  local a, b = medians[one], medians[other]
  if not (a and b) then return end
  print(("%s: %.2f times"):format(what, times and b / a or a / b))
end

--- A figure with three digits that count, or all of those before the point.
---@param value number
---@return string
function measure.short(value)
  return (value < 1000 and "%.3g" or "%.0f"):format(value)
end

--- The results of a job; raises its error.
function measure.must(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

return measure
