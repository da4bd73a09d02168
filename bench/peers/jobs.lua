--- What the peers do: the jobs, how many, and how the figures of a row are printed.
---
--- A peer is a program that measures one row in a process of its own and prints a number, or two: `luajit
--- bench/peers/<peer>.lua <row>`. bench/peers.lua runs them in turn.

local jobs = { WORKERS = 2 }

--- How much a row does.
jobs.COUNT = {
  tiny = 200000,
  trip = 20000,
  -- Jobs of some 0.1 ms.
  short = 3000,
  -- Jobs of some 5 ms.
  numeric = 300,
  tables = 300,
  pool = 100,
  threads = 64,
}

--- Some 5 ms of arithmetic, compiled: points of the Mandelbrot set.
function jobs.numeric(seed)
  local inside = 0
  for y = 0, 134 do
    for x = 0, 134 do
      local cr, ci = -2 + x / 45, -1.5 + y / 45 + seed * 1e-9
      local zr, zi, steps = 0, 0, 0
      while steps < 500 and zr * zr + zi * zi < 4 do
        zr, zi, steps = zr * zr - zi * zi + cr, 2 * zr * zi + ci, steps + 1
      end
      if steps == 500 then inside = inside + 1 end
    end
  end
  return inside
end

--- Some 5 ms with a table of 350,000 entries, made anew in each job: primes.
function jobs.tables(seed)
  local limit = 350000 + seed % 2
  local is_composite, count = {}, 0
  for i = 1, limit do
    is_composite[i] = false
  end
  for i = 2, limit do
    if not is_composite[i] then
      count = count + 1
      for j = i * i, limit, i do
        is_composite[j] = true
      end
    end
  end
  return count
end

--- Some 0.1 ms of arithmetic, compiled.
function jobs.short(seed)
  local sum = 0
  for i = 1, 25000 do
    sum = sum + (i + seed) % 7
  end
  return sum
end

--- What a job gives for the seed 0, for a check. Not made before it is asked for: what a table of the job's leaves in
--- memory would be in the rows about memory.
function jobs.expected(row)
  return jobs[row](0)
end

--- Seconds of `count` calls of a job in this VM, which has compiled it.
function jobs.inline(row, now)
  local fn, count = jobs[row], jobs.COUNT[row]
  for i = 1, 20 do
    fn(i)
  end
  local started = now()
  for i = 1, count do
    fn(i)
  end
  return now() - started
end

--- The median of a list and what 99 of 100 are below, in microseconds; printed.
function jobs.print_trips(list)
  table.sort(list)
  print(("%.3f %.3f"):format(list[math.ceil(#list * 0.5)] * 1e6, list[math.ceil(#list * 0.99)] * 1e6))
end

--- Prints the same of how much longer `run(i)` takes, which has a thread call `jobs.short(i)` and waits, than that.
---@param run fun(i: integer): number
---@param now fun(): number
function jobs.print_overhead(run, now)
  local function times(fn)
    local list = {}
    for i = 1, jobs.COUNT.short do
      local started = now()
      local value = fn(i)
      list[i] = now() - started
      assert(value > 0)
    end
    return list
  end
  times(jobs.short)
  local inline = times(jobs.short)
  table.sort(inline)
  times(run)
  local list = times(run)
  for i, time in ipairs(list) do
    list[i] = time - inline[math.ceil(#inline * 0.5)]
  end
  jobs.print_trips(list)
end

--- Measures a row and prints its figure, if it has not printed any itself. `speed_up(row)` is the row of numeric and of
--- table-heavy jobs.
---@param rows table<string, fun(): number?>
---@param row string
---@param speed_up fun(row: string): number
function jobs.measure(rows, row, speed_up)
  local value
  if row == "numeric" or row == "tables" then
    value = speed_up(row)
  else
    value = rows[row]()
  end
  if value then print(("%.6g"):format(value)) end
end

--- KiB that this process has in memory, without this VM's garbage.
function jobs.resident()
  collectgarbage()
  collectgarbage()
  local file = assert(io.open "/proc/self/statm")
  local _, pages = file:read("*n", "*n")
  file:close()
  return pages * 4
end

return jobs
